"""What all tests share: threads, offline mode, data for development, and a scratch copy of the project."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch and numba are imported: the suite runs on small machines and starts many short processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])

# A job that a shell starts in the background ignores SIGINT, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# The same examples every time in CI: a failure there must be reproducible here.
settings.register_profile("house", deadline=None, max_examples=25, derandomize="CI" in os.environ)
settings.load_profile("house")


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, for as long as a module's tests need it."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (looked for chromium, chromium-browser, google-chrome)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images for development, which is not part of the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real images: {folder.parent.name}/{folder.name} is not beside the repository")
    return folder


@pytest.fixture
def unguided_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with images and weights of one task, and no guidance."""
    from tiny_project import make_project, make_weights

    monkeypatch.chdir(tmp_path)
    make_project(tmp_path, guidance=False)
    make_weights(tmp_path / "runs/demo/visible_infrared/weights.safetensors", "visible_infrared")
    monkeypatch.setattr("model.inference.SHIPPED", tmp_path / "shipped")


@pytest.fixture(scope="session")
def tiny_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random checkpoint of every foundation model."""
    from tiny_checkpoints import make_all

    return make_all(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture
def tiny_weights(tiny_checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let the foundation backends use the tiny checkpoints, on the CPU, at the size of a stamp."""
    from pipeline import groundingdino_boxes

    monkeypatch.setenv("RWKVFUSION_WEIGHTS", str(tiny_checkpoints))
    monkeypatch.setenv("RWKVFUSION_DEVICE", "cpu")
    monkeypatch.setattr(groundingdino_boxes, "SHORT_SIDE", 64)
    return tiny_checkpoints


@dataclass(frozen=True)
class Workspace:
    """A scratch copy of the project in which commands may be run and files changed."""

    path: Path

    def run(
        self, *command: str, timeout: float = 240, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a command (`python` is this interpreter) in the workspace, output captured as text."""
        result = run_here(command, self.path, timeout)
        if check and result.returncode != 0:
            pytest.fail(
                f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout}\n{result.stderr}"
            )
        return result

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command in a process group of its own, for tests that kill it."""
        return subprocess.Popen(
            command,
            cwd=self.path,
            env=_environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A copy of the project for one test."""
    return scratch_copy(tmp_path / "project")


def scratch_copy(path: Path) -> Workspace:
    """Copy the code, parameters, manifests and DVC files, without git, data or results, to a new folder."""
    path.mkdir()
    for folder in ("pipeline", "model", "cuda", "data_manifests"):
        if (ROOT / folder).is_dir():
            shutil.copytree(ROOT / folder, path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("params.yaml", "dvc.yaml", ".dvcignore", "pyproject.toml"):
        if (ROOT / file).is_file():
            shutil.copy(ROOT / file, path / file)
    (path / ".dvc").mkdir()
    shutil.copy(ROOT / ".dvc" / "config", path / ".dvc" / "config")
    (path / ".dvc" / "config.local").write_text("[core]\n    no_scm = true\n")
    return Workspace(path)


def run_here(command: Sequence[str], cwd: Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run a command with this environment's programs first on the path."""
    return subprocess.run(
        command, cwd=cwd, env=_environment(), capture_output=True, text=True, timeout=timeout, check=False
    )


def _environment() -> dict[str, str]:
    """This process's environment, with help texts of a fixed width and no colours."""
    return {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb", "DVC_NO_ANALYTICS": "1"}
