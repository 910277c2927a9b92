"""The rules of the house: what may import what, what stands where, and that facts told twice agree."""

import ast
import dataclasses
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from command_line import commands, leaves, listing
from packaging.requirements import Requirement
from packaging.version import Version
from ruamel.yaml import YAML

from model.config import DATA_FACTS, Config
from pipeline.config import PipelineConfig

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LONGEST = 400
FORBIDDEN_NAMES = {"utils", "util", "common", "helpers", "helper", "base", "misc"}
# What the model may know of the pipeline: facts, files and stores, never a stage. `sensors` and `protocols`
# are formulas: pansharpening methods and the metrics at full resolution degrade images as the protocol does.
SHARED_WITH_MODEL = {
    f"pipeline.{name}"
    for name in (
        "config",
        "manifest",
        "images",
        "zarr_images",
        "store",
        "errors",
        "_typer",
        "sensors",
        "protocols",
    )
}
ALLOWED = {
    ("model.cli", "pipeline.cli"),  # `rwkvfusion pipeline …`
    ("model.caption", "pipeline.texts"),  # a caption typed by the user, by the encoder the weights know
    ("model.app_examples", "pipeline.demo"),  # scenes for the page, drawn in memory: no stage, no store
}
# They cannot change what a stage computes: entry points and messages.
WITHOUT_INFLUENCE = {
    f"{package}.{name}" for package in ("pipeline", "model") for name in ("cli", "__main__", "_typer")
}
WITHOUT_INFLUENCE |= {"pipeline", "model", "pipeline.errors"}


@cache
def sources() -> dict[str, Path]:
    """Module name -> file, for both packages."""
    files = [file for package in ("pipeline", "model") for file in (ROOT / package).rglob("*.py")]
    return {module_name(file): file for file in files}


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def imports(node: ast.AST, module: str, file: Path) -> Iterator[str]:
    """Every module that the code below `node` imports, as an absolute dotted name, at any depth."""
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            start = package[: len(package) - child.level + 1] if child.level else []
            origin = ".".join([*start, *(child.module.split(".") if child.module else [])])
            for alias in child.names:
                inner = f"{origin}.{alias.name}"
                yield inner if inner in sources() else origin


def closure(roots: set[str]) -> set[str]:
    """The project's modules that importing `roots` can reach, without those that cannot change a result."""
    seen: set[str] = set()
    waiting = [name for name in roots if name in sources()]
    while waiting:
        module = waiting.pop()
        if module in seen or module in WITHOUT_INFLUENCE:
            continue
        seen.add(module)
        file = sources()[module]
        waiting += [name for name in imports(tree(file), module, file) if name in sources()]
    return seen


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git clone, so there is no list of tracked files")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.mark.parametrize("module", sorted(sources()))
def test_imports_go_one_way(module: str) -> None:
    file = sources()[module]
    for name in imports(tree(file), module, file):
        top = name.split(".")[0]
        if module.startswith("pipeline"):
            assert top != "model", f"{module} imports {name}: the pipeline never imports the model"
        elif top == "pipeline" and (module, name) not in ALLOWED:
            assert name in SHARED_WITH_MODEL, (
                f"{module} imports {name}; the model reads stores, it runs no stage"
            )
        if top == "zarr":
            # The one keeps guidance, the other images that are larger than memory: nothing to share.
            allowed = ("pipeline.store_arrays", "pipeline.zarr_images")
            assert module in allowed, f"{module} may not import zarr"
        if top in ("dask", "distributed"):
            assert module == "pipeline.parallel", f"{module} imports {top}; only pipeline/parallel.py may"


def test_cuda_folder_holds_no_python() -> None:
    assert not list((ROOT / "cuda").rglob("*.py")), "a .py file in cuda/ would hide NVIDIA's namespace `cuda`"


@pytest.mark.skipif(
    find_spec("cuda") is None or find_spec("cuda.bindings") is None, reason="no cuda-bindings here"
)
def test_cuda_folder_leaves_nvidias_namespace_alone() -> None:
    subprocess.run([sys.executable, "-c", "import cuda.bindings"], cwd=ROOT, check=True)


@pytest.mark.parametrize("module", sorted(sources()))
def test_modules_have_names_that_say_something(module: str) -> None:
    assert FORBIDDEN_NAMES.isdisjoint(module.split(".")), f"{module}: say what is in it"


def test_files_stay_readable() -> None:
    suffixes = {".py", ".cu", ".cuh", ".sh", ".j2", ".html"}
    code = [file for file in tracked_files() if file.suffix in suffixes]
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in code}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_no_paths_of_one_machine() -> None:
    homes = "|".join(
        ["/wor" + "k/", "/roo" + "t/", "/hom" + r"e/\w+/", "/User" + r"s/\w+/", r"[A-Z]:\\User" + r"s\\"]
    )
    pattern = re.compile(rf"(?<![\w.$}}/-])({homes})")
    found = []
    for file in tracked_files():
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        lines = enumerate(text.splitlines(), 1)
        found += [
            f"{file.relative_to(ROOT)}:{number}: {line}" for number, line in lines if pattern.search(line)
        ]
    assert found == []


def plain(value: object) -> object:
    """Tuples as lists, so that a default compares with what YAML can say."""
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("config", [PipelineConfig, Config])
def test_params_equal_the_defaults(config: type) -> None:
    params = YAML(typ="safe").load(ROOT / "params.yaml")
    for section in dataclasses.fields(config):
        default = section.default
        if not dataclasses.is_dataclass(default):
            continue  # a mapping of data sets or tasks has no default
        expected = {
            field.name: plain(getattr(default, field.name))
            for field in dataclasses.fields(default)
            if not (section.name == "model" and field.name in DATA_FACTS)
        }
        assert params[section.name] == expected, f"params.yaml and {type(default).__name__} differ"


def stages() -> dict[str, dict]:
    path = ROOT / "dvc.yaml"
    assert path.is_file(), "dvc.yaml is missing"
    described = YAML(typ="safe").load(path)["stages"]
    return {name: stage.get("do", stage) for name, stage in described.items()}


def bindings(nodes: list[ast.AST], cli: str, file: Path) -> dict[str, str]:
    """Local name -> module, of the import statements among `nodes`."""
    bound = {}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                one = type(node)(**{**dict(ast.iter_fields(node)), "names": [alias]})
                bound[alias.asname or alias.name.split(".")[0]] = next(imports(one, cli, file))
    return bound


def stage_modules(package: str, command: str) -> set[str]:
    """The modules whose names the command's function in `<package>/cli.py` uses, through its own helpers."""
    file = ROOT / package / "cli.py"
    cli = f"{package}.cli"
    functions = {node.name: node for node in tree(file).body if isinstance(node, ast.FunctionDef)}
    assert command in functions, f"{package}/cli.py has no function for the command '{command}'"
    used: set[str] = set()
    waiting, seen = [command], set()
    while waiting:
        current = waiting.pop()
        seen.add(current)
        inside = [node for part in functions[current].body for node in ast.walk(part)]
        bound = bindings(tree(file).body, cli, file) | bindings(inside, cli, file)
        names = {node.id for node in inside if isinstance(node, ast.Name)}
        used |= {bound[name] for name in names if name in bound}
        waiting += [name for name in names if name in functions and name not in seen]
    return used


def test_dvc_stages_depend_on_all_the_code_they_run() -> None:
    missing = []
    for name, stage in stages().items():
        words = shlex.split(stage["cmd"] if isinstance(stage["cmd"], str) else stage["cmd"][0])
        assert words[:2] == ["python", "-m"], f"stage {name} must run python -m pipeline|model …"
        package, command = words[2:4]
        listed = [Path(dep) for dep in stage.get("deps", []) if isinstance(dep, str)]
        for module in sorted(closure(stage_modules(package, command))):
            file = sources()[module].relative_to(ROOT)
            if not any(dep == file or dep in file.parents for dep in listed):
                missing.append(f"{name}: {file}")
    assert missing == [], "these files can change a stage's result but are not among its deps in dvc.yaml"


def test_dvc_dependencies_on_code_exist() -> None:
    code = {
        dep
        for stage in stages().values()
        for dep in stage.get("deps", [])
        if isinstance(dep, str) and dep.split("/")[0] in {"pipeline", "model", "cuda"}
    }
    assert [dep for dep in sorted(code) if not (ROOT / dep).exists()] == []


def test_command_line_is_frozen() -> None:
    committed = (ROOT / "tests" / "commands.txt").read_text()
    assert listing() == committed, (
        "the command line changed. If that is meant: python tests/command_line.py > tests/commands.txt, "
        "and say so in README.md and CHANGELOG.md"
    )


def test_help_shows_all_that_it_is_given() -> None:
    lost = [
        f"{name} {parameter.name}: {parameter.help}"
        for name, command in leaves()
        for parameter in command.params
        if "[" in (getattr(parameter, "help", "") or "")
    ]
    assert lost == [], "rich takes square brackets for markup and leaves them out"


def documented_commands() -> list[str]:
    """Every line of the fenced bash blocks of README and docs, continuation lines joined."""
    lines = []
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.strip().removeprefix("$ ")
                if line and not line.startswith("#"):
                    lines.append(line)
    return lines


def words_of(line: str) -> list[str]:
    """The words of a command without comment, environment's folder and `python -m` or `typer`."""
    words = shlex.split(line, comments=True)
    if words and "/" in words[0]:
        words[0] = Path(words[0]).name
    if words[:2] == ["python", "-m"]:
        return words[2:]
    if words[0] == "typer":
        return [word for word in words[1:] if word != "run"]
    if words[0] == "rwkvfusion":
        return words[1:] if words[1] in {"pipeline", "model"} else ["model", *words[1:]]
    return words


def test_links_between_pages_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in tracked_files()
        if page.suffix == ".md"
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text())
        if "://" not in target and not (page.parent / target).exists()
    ]
    code = [file for file in tracked_files() if file.suffix in {".py", ".yaml", ".toml", ".cu", ".cuh"}]
    mentioned = {
        f"{file.relative_to(ROOT)}: {page}"
        for file in code
        for page in re.findall(r"\bdocs/\w+\.md", file.read_text())
        if not (ROOT / page).exists()
    }
    assert broken + sorted(mentioned) == []


@pytest.mark.parametrize("package", ["pipeline", "model"])
def test_the_reading_guide_names_every_module(package: str) -> None:
    guide = (ROOT / "docs" / "code.md").read_text()
    section = guide.partition(f"### `{package}/`")[2].partition("\n#")[0]
    named = re.findall(r"`([\w*]+\.py)`", section)
    modules = {file.name for file in (ROOT / package).glob("*.py") if not file.name.startswith("__")}
    assert {name for name in modules if not any(fnmatch(name, pattern) for pattern in named)} == set()
    assert [pattern for pattern in named if not any(fnmatch(name, pattern) for name in modules)] == []


@pytest.mark.parametrize("line", documented_commands())
def test_documented_command_exists(line: str) -> None:
    words = words_of(line)
    if words[0] == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert set(words[1:]) <= set(targets)
    elif words[0] in {"pipeline", "model"}:
        if words[1:] == ["--help"]:
            return
        in_a_group = " ".join(words[:3]) in commands()
        name = " ".join(words[: 3 if in_a_group else 2])
        assert name in commands(), f"there is no such command; there are {sorted(commands())}"
        options = {word.split("=")[0] for word in words[2:] if re.match(r"--?[a-z]", word)} - {"--help"}
        assert options <= set(commands()[name])


def test_lock_names_versions_only() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+", line)] == []


def test_lock_satisfies_every_dependency() -> None:
    normal = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        name, version = line.split("==")
        normal[re.sub(r"[-_.]+", "-", name).lower()] = Version(version)
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    optional = [text for extra in extras.values() for text in extra]
    for text in [*project["dependencies"], *optional, *PYPROJECT["build-system"]["requires"]]:
        requirement = Requirement(text)
        if requirement.name == project["name"]:
            continue  # an extra made of other extras
        locked = normal.get(re.sub(r"[-_.]+", "-", requirement.name).lower())
        assert locked is not None, f"{requirement.name} is not in requirements.lock"
        assert locked in requirement.specifier, (
            f"requirements.lock has {requirement.name} {locked}, not {requirement}"
        )


def test_every_package_is_shipped() -> None:
    packages = {name for name, file in sources().items() if file.name == "__init__.py"}
    assert packages | {"model._cuda"} == set(PYPROJECT["tool"]["setuptools"]["packages"])


def test_version_is_told_everywhere() -> None:
    version = PYPROJECT["project"]["version"]
    assert re.search(rf"^## \[?{re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = YAML(typ="safe").load(ROOT / "CITATION.cff")
    assert str(citation["version"]) == version


@pytest.mark.parametrize("package", ["pipeline", "model"])
def test_importing_a_package_is_light(package: str) -> None:
    heavy = "{'torch', 'zarr', 'dask', 'transformers', 'typer', 'numpy'}"
    code = f"import sys, {package}; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
