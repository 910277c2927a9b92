"""The names of every parameter of the guidance pipeline; their values stand in params.yaml."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_type_hints

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pipeline.errors import InputError
from pipeline.images import write_atomically
from pipeline.manifest import Sample, nearest, read_manifest
from pipeline.objects import ObjectPath, Place

if TYPE_CHECKING:
    from ruamel.yaml import YAML

PARAMS = Path("params.yaml")
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)

T = TypeVar("T")
Florence = Literal["florence2-base", "florence2-large"]
Sensor = Literal["qb", "ikonos", "geoeye1", "wv4", "wv2", "wv3", "gf2", "other"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DatasetConfig:
    """One data set: where its manifest and files are, and where its object masks come from.

    ``masks``: ``prompt`` detects the words of ``prompt``; ``auto`` detects whatever stands out; ``provided``
    reads the manifest's human label maps; ``none`` stores no masks (text guidance only). ``sensor``: whose
    optics pansharpening methods and metrics without a target assume (pipeline/sensors.py).
    """

    manifest: str
    root: str
    masks: Literal["prompt", "auto", "provided", "none"] = "auto"
    prompt: tuple[str, ...] = ()
    sensor: Sensor = "other"

    def samples(self) -> list[Sample]:
        """Read the manifest. Raises InputError."""
        return read_manifest(Path(self.manifest), Path(self.root))


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CaptionsConfig:
    """Who writes the captions.

    For ``florence2``: its ``checkpoint``; the ``task``, in growing length; the ``sources`` to describe (roles
    such as visible; none given, or none of them there: all); ``beams``, 1 being greedy; and the most tokens
    that an answer may have, per source.
    """

    backend: Literal["classical", "florence2"] = "classical"
    checkpoint: Florence = "florence2-base"
    task: Literal["caption", "detailed_caption", "more_detailed_caption"] = "detailed_caption"
    sources: tuple[str, ...] = ()
    beams: int = Field(default=3, ge=1, le=16)
    max_new_tokens: int = Field(default=256, ge=1, le=1024)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Names of the checkpoints that are needed (pipeline/checkpoints.py)."""
        return (self.checkpoint,) if self.backend == "florence2" else ()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TextsConfig:
    """``max_tokens``: longer captions are cut; features are ``TEXT_WIDTH`` wide whatever the backend."""

    backend: Literal["classical", "t5"] = "classical"
    max_tokens: int = Field(default=128, ge=1, le=512)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Names of the checkpoints that are needed."""
        return ("t5-small",) if self.backend == "t5" else ()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BoxesConfig:
    """``threshold``: detector score below which a box is dropped; ``max_boxes`` per source, best first.

    For the two Grounding DINOs: ``text_threshold``, the score that a word of the prompt needs to name a box;
    and, for a data set with ``masks: auto``, the checkpoint ``words`` that says what to look for: the
    ``objects`` that it detects, or the ``phrases`` of its own description that it finds in the picture.
    """

    backend: Literal["classical", "groundingdino", "transformers"] = "classical"
    threshold: float = Field(default=0.40, ge=0, le=1)
    text_threshold: float = Field(default=0.25, ge=0, le=1)
    max_boxes: int = Field(default=32, ge=1, le=64)
    words: Florence = "florence2-base"
    words_are: Literal["objects", "phrases"] = "objects"

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Names of the checkpoints that are needed, without the one for automatic prompts."""
        by_backend = {"groundingdino": "groundingdino-swint", "transformers": "groundingdino-tiny"}
        return (by_backend[self.backend],) if self.backend in by_backend else ()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MasksConfig:
    """Who segments the boxes, and for ``sam`` with which ``checkpoint``."""

    backend: Literal["classical", "sam"] = "classical"
    checkpoint: Literal["sam-vit-b", "sam-vit-l", "sam-vit-h"] = "sam-vit-b"

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Names of the checkpoints that are needed."""
        return (self.checkpoint,) if self.backend == "sam" else ()


@dataclass(frozen=True, kw_only=True, config=STRICT)
class MergeConfig:
    """Thresholds of the mask merging algorithm (docs/merging.md).

    ``mode``: ``merged`` unites the sources' masks; ``unmerged`` keeps every source's masks as channels;
    ``label_map`` gives one channel per label; ``binary`` one channel with all objects.
    """

    mode: Literal["merged", "unmerged", "label_map", "binary"] = "merged"
    min_area: int = Field(default=16, ge=0)
    min_area_share: float = Field(default=2e-5, ge=0, le=1)
    min_score: float = Field(default=0.30, ge=0, le=1)
    min_predicted_iou: float = Field(default=0.60, ge=0, le=1)
    duplicate_iou: float = Field(default=0.70, ge=0, le=1)
    alias_iou: float = Field(default=0.90, ge=0, le=1)
    match_iou: float = Field(default=0.50, ge=0, le=1)
    match_iou_other_label: float = Field(default=0.80, ge=0, le=1)
    part_containment: float = Field(default=0.80, ge=0, le=1)
    parts_cover: float = Field(default=0.60, ge=0, le=1)
    parts_margin: float = Field(default=0.05, ge=0, le=1)
    max_channels: int = Field(default=20, ge=1, le=20)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class PipelineConfig:
    """All sections of params.yaml that the guidance pipeline reads."""

    datasets: dict[str, DatasetConfig]
    captions: CaptionsConfig = CaptionsConfig()
    texts: TextsConfig = TextsConfig()
    boxes: BoxesConfig = BoxesConfig()
    masks: MasksConfig = MasksConfig()
    merge: MergeConfig = MergeConfig()

    def dataset(self, name: str) -> DatasetConfig:
        """Return one data set's section. Raises InputError with the nearest name."""
        return find_dataset(self.datasets, name)

    def checkpoints(self, dataset: str | None = None) -> list[str]:
        """Names of the foundation checkpoints that a data set, or any, needs, in the order of stages."""
        chosen = self.datasets.values() if dataset is None else (self.dataset(dataset),)
        sources = {data.masks for data in chosen}
        names = [*self.captions.checkpoints, *self.texts.checkpoints]
        if sources & {"prompt", "auto"}:
            names += [*self.boxes.checkpoints, *self.masks.checkpoints]
        if "auto" in sources and self.boxes.checkpoints:
            names.append(self.boxes.words)
        return list(dict.fromkeys(names))


def find_dataset(datasets: Mapping[str, DatasetConfig], name: str) -> DatasetConfig:
    """Return ``datasets[name]``. Raises InputError with the nearest name."""
    if name not in datasets:
        raise InputError(
            f"unknown data set '{name}'.{nearest(name, datasets)} Data sets are listed in {PARAMS}."
        )
    return datasets[name]


def load_pipeline(path: Path = PARAMS) -> PipelineConfig:
    """Read the pipeline's sections of params.yaml. Raises InputError naming the key."""
    return load_sections(PipelineConfig, path)


def load_sections(config: type[T], path: Path) -> T:
    """Build a configuration dataclass from the sections of ``path`` that bear its fields' names.

    Raises InputError when the file is missing, is not YAML, or a section has an unknown key or a wrong value.
    """
    params = read_params(path)
    names = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    return build(config, {name: section for name, section in params.items() if name in names}, str(path))


def read_params(path: Path) -> dict[str, Any]:
    """Parse params.yaml into a mapping of sections and refuse sections that nobody reads."""
    from ruamel.yaml import YAML, YAMLError  # a tenth of a second, and fusing reads no params.yaml

    try:
        params = YAML(typ="safe").load(path)
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror}); run from the project's folder") from error
    except YAMLError as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(params, dict):
        raise InputError(f"{path}: must be a mapping of sections; see the file in the repository")
    for section in params:
        if section not in SECTIONS:
            raise InputError(f"{path}: unknown section '{section}'.{nearest(str(section), SECTIONS)}")
    return params


def build(config: type[T], values: Mapping[str, Any], place: str) -> T:
    """Validate ``values`` into a configuration dataclass; InputError names ``place`` and the key."""
    try:
        return TypeAdapter(config).validate_python(dict(values))
    except ValidationError as error:
        raise InputError(f"{place}: {_explain(error, config)}") from error


def _explain(error: ValidationError, config: type) -> str:
    first = error.errors(include_url=False)[0]
    parts = [str(part) for part in first["loc"]]
    where = ".".join(parts)
    if first["type"] == "unexpected_keyword_argument":
        return f"unknown key '{where}'.{nearest(parts[-1], _keys(config, parts[:-1]))}"
    if first["type"] == "missing":
        return f"'{where}' is missing"
    return f"'{where}' is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _keys(config: type, path: list[str]) -> list[str]:
    """Field names of the dataclass that ``path`` leads to from ``config`` through fields and mappings."""
    for part in path:
        is_section = dataclasses.is_dataclass(config)
        config = get_type_hints(config)[part] if is_section else get_args(config)[1]
    return [field.name for field in dataclasses.fields(config)]


def register_dataset(name: str, config: DatasetConfig, path: Path = PARAMS) -> bool:
    """Add ``datasets.<name>`` to params.yaml, comments kept; True if it was not there yet.

    A section for the same folder is left as it is: its prompt and mask source are the user's. Raises
    InputError when the name belongs to another folder.
    """
    known = load_sections(PipelineConfig, path).datasets
    yaml = _editor()
    params = yaml.load(path)
    if name in known:
        root = known[name].root
        if Path(root).resolve() != Path(config.root).resolve():
            raise InputError(
                f"{path}: data set '{name}' is there already, for {root}; give {config.root} another name"
            )
        return False
    section: dict[str, object] = {"manifest": config.manifest, "root": config.root, "masks": config.masks}
    if config.prompt:
        section["prompt"] = list(config.prompt)
    if config.sensor != "other":
        section["sensor"] = config.sensor
    _leave_space_to_the_next_section(params, "datasets")
    params["datasets"][name] = section
    write_atomically(path, lambda temporary: yaml.dump(params, temporary))
    return True


def _leave_space_to_the_next_section(params: Any, name: str) -> None:
    """Give the blank lines and comments after a section to the next one: additions then come before them.

    ruamel.yaml keeps them with the last value of the section, which then is the last no more.
    """
    from ruamel.yaml.error import CommentMark
    from ruamel.yaml.tokens import CommentToken

    following = list(params)[list(params).index(name) + 1 :]
    last: Any = params
    key: Any = name
    while isinstance(value := last[key], dict | list) and value:
        last, key = value, len(value) - 1 if isinstance(value, list) else list(value)[-1]
    token = last.ca.items.get(key, [None] * 4)[0 if isinstance(last, list) else 2]
    if token is None or not following:
        return
    same_line, _, rest = token.value.partition("\n")
    if rest:
        token.value = f"{same_line}\n"
        notes = params.ca.items.setdefault(following[0], [None] * 4)
        notes[1] = [CommentToken(rest, CommentMark(0), None), *(notes[1] or [])]


def _editor() -> YAML:
    """A parser and writer that keeps comments and lines as they are."""
    from ruamel.yaml import YAML

    yaml = YAML()
    yaml.width = 10_000
    return yaml


def update_dataset(name: str, values: Mapping[str, object], path: Path = PARAMS) -> None:
    """Set values of ``datasets.<name>`` in params.yaml, comments kept. Raises InputError."""
    find_dataset(load_sections(PipelineConfig, path).datasets, name)
    yaml = _editor()
    params = yaml.load(path)
    params["datasets"][name].update(values)
    build(DatasetConfig, params["datasets"][name], f"{path}: datasets.{name}")
    write_atomically(path, lambda temporary: yaml.dump(params, temporary))


TEXT_WIDTH = 512
"""Width of a text feature: that of T5-small, which the paper's network expects."""

MASK_CHANNELS = 20
"""Object channels that the network sees at most (the paper's experimental setting)."""

SECTIONS = (
    *(field.name for field in dataclasses.fields(PipelineConfig)),
    "model",
    "loss",
    "train",
    "tasks",
)
"""Every section of params.yaml: the pipeline's, then the model's (model/config.py)."""


GUIDANCE_VARIABLE = "RWKVFUSION_GUIDANCE"


def guidance_dir(dataset: str) -> Place:
    """Folder of a data set's guidance stores: below `$RWKVFUSION_GUIDANCE`, a folder or a URL such as
    `s3://bucket/prefix`, else below `guidance`."""
    root = os.environ.get(GUIDANCE_VARIABLE) or "guidance"
    return (ObjectPath(root) if "://" in root else Path(root)) / dataset
