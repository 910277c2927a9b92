"""The folder layouts in which the field's data sets are published, as one table of patterns.

A pattern is a regular expression for the path of an image below the folder that is scanned, that folder's own
name included and the suffix left out; ``file#VARIABLE`` is an array inside a MATLAB or HDF5 file. Upper and
lower case are the same. ``sample`` is what all images of a sample have in common, ``part`` keeps equal names
of different parts apart, and images told apart by ``order`` are a stack, first to last. docs/datasets.md says
where the layouts are from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

STACK = "*"
"""The column of images that make up a stack of any number."""


@dataclass(frozen=True, slots=True)
class Layout:
    """``columns``: manifest column (role, ``target``, ``mask``) -> pattern.

    ``splits``: the first pattern found in the path of a sample's first source decides, else the split is
    ``test``. ``bits``: of the stored values, when the file type does not tell. ``roles``: of a stack's first
    and last images. ``prompt``: what the values 1, 2, … of the masks mean.
    """

    task: str
    columns: Mapping[str, str]
    splits: tuple[tuple[str, str], ...] = ()
    bits: int | None = None
    roles: tuple[str, str] = ("", "")
    prompt: tuple[str, ...] = ()


_NAME = "(?P<sample>[^/#]+)"
_SPLIT_NAMES = (
    (r"(?:^|/|_)train", "train"),
    (r"(?:^|/|_)val", "validation"),
)


def _pancollection(sensor: str, bits: int, scale: str = r"(?!.*OrigScale)") -> Layout:
    """Reduced resolution (with ``gt``) by default; stacks N x C x H x W, or one sample to a MATLAB file."""
    file = rf"(?P<sample>{scale}[^/#]*{sensor}[^/#]*)"
    return Layout(
        task="pansharpening",
        columns={"pan": f"{file}#pan", "ms": f"{file}#ms", "target": f"{file}#gt"},
        splits=_SPLIT_NAMES,
        bits=bits,
    )


LAYOUTS: dict[str, Layout] = {
    "msrs": Layout(
        task="visible_infrared",
        columns={
            "visible": f"(?P<part>train|test)/vi/{_NAME}",
            "infrared": f"(?P<part>train|test)/ir/{_NAME}",
            "mask": f"(?P<part>train|test)/Segmentation_labels/{_NAME}",
        },
        splits=(("/train/", "train"),),
        # The classes of MFNet, whose values the label maps have.
        prompt=("car", "person", "bike", "curve", "car stop", "guardrail", "color cone", "bump"),
    ),
    "m3fd": Layout(
        task="visible_infrared",
        columns={
            "visible": f"M3FD_(?P<part>Fusion|Detection)/(?:Vis|vi)/{_NAME}",
            "infrared": f"M3FD_(?P<part>Fusion|Detection)/ir/{_NAME}",
        },
        splits=(("M3FD_Detection/", "train"),),
    ),
    "roadscene": Layout(
        task="visible_infrared",
        columns={"visible": f"crop_LR_visible/{_NAME}", "infrared": f"cropinfrared/{_NAME}"},
    ),
    "llvip": Layout(
        task="visible_infrared",
        columns={
            "visible": f"visible/(?P<part>train|test)/{_NAME}",
            "infrared": f"infrared/(?P<part>train|test)/{_NAME}",
        },
        splits=(("/train/", "train"),),
    ),
    "harvard": Layout(
        task="medical",
        columns={
            "ct": r"(?P<part>CT-MRI)/CT/(?P<sample>\d+)",
            "pet": r"(?P<part>PET-MRI)/PET/(?P<sample>\d+)",
            "spect": r"(?P<part>SPECT-MRI)/SPECT/(?P<sample>\d+)",
            "mri": r"(?P<part>(?:CT|PET|SPECT)-MRI)/MRI/(?P<sample>\d+)",
        },
        # A file's name is its case and a slice number of three digits.
        splits=(
            (r"CT-MRI/CT/(?:2|20|28|33)\d{3}$", "train"),
            (r"CT-MRI/CT/37\d{3}$", "validation"),
            (r"PET-MRI/PET/25\d{3}$", "train"),
            (r"SPECT-MRI/SPECT/(?:10|15|18|21|25|28)\d{3}$", "train"),
            (r"SPECT-MRI/SPECT/11\d{3}$", "validation"),
        ),
    ),
    "sice": Layout(
        task="multi_exposure",
        columns={
            STACK: r"(?P<part>Dataset_Part[12])/(?P<sample>\d+)/(?P<order>\d+)",
            "target": r"(?P<part>Dataset_Part[12])/Label/(?P<sample>\d+)",
        },
        splits=(("Dataset_Part1/", "train"),),
        roles=("under", "over"),
    ),
    "mefb": Layout(
        task="multi_exposure",
        columns={
            "under": r"input/(?P<sample>[^/]+)/(?P=sample)_A",
            "over": r"input/(?P<sample>[^/]+)/(?P=sample)_B",
        },
    ),
    "mfi_whu": Layout(
        task="multi_focus",
        columns={
            "near": f"source_1/{_NAME}",
            "far": f"source_2/{_NAME}",
            "target": f"full_clear/{_NAME}",
        },
    ),
    "realmff": Layout(
        task="multi_focus",
        columns={
            "near": r"imageA/(?P<sample>\d+)_A",
            "far": r"imageB/(?P<sample>\d+)_B",
            "target": r"Fusion/(?P<sample>\d+)_F",
        },
    ),
    "lytro": Layout(
        task="multi_focus",
        columns={STACK: r"(?:(?P<part>Triple)[ _]?Series/(?:.*/)?)?(?P<sample>lytro-\d+)-(?P<order>[A-D])"},
        roles=("near", "far"),
    ),
    "wv3": _pancollection("wv3", 11),
    "gf2": _pancollection("gf2", 10),
    "qb": _pancollection("qb", 11),
    "wv2": _pancollection("wv2", 11),
    "wv3_full": _pancollection("wv3", 11, "(?=.*OrigScale)"),
    "gf2_full": _pancollection("gf2", 10, "(?=.*OrigScale)"),
    "qb_full": _pancollection("qb", 11, "(?=.*OrigScale)"),
    "wv2_full": _pancollection("wv2", 11, "(?=.*OrigScale)"),
    "chikusei": Layout(
        task="hyper_multispectral",
        columns={"ms": f"{_NAME}#RGB", "hs": f"{_NAME}#LRHSI", "target": f"{_NAME}#GT"},
        splits=_SPLIT_NAMES,
    ),
    "pavia": Layout(
        task="hyper_multispectral",
        columns={
            # In capitals: in small letters they are PanCollection's.
            "pan": f"{_NAME}#(?-i:PAN)",
            "hs": f"{_NAME}#(?-i:MS)",
            "target": f"{_NAME}#(?-i:GT)",
        },
        splits=_SPLIT_NAMES,
    ),
    "tno": Layout(
        task="visible_infrared",
        columns={
            "visible": r"(?P<part>(?:Athena|DHV|FEL|Triclobs)_images/.+|tank)/"
            r"(?:(?:visual|dhv)/(?:DHV)?|VIS?_?)(?P<sample>[^/]*?)(?:_[a-z]|v)?",
            "infrared": r"(?P<part>(?:Athena|DHV|FEL|Triclobs)_images/.+|tank)/"
            r"(?:thermal/(?:RAD)?|(?:LW)?IR_?)(?P<sample>[^/]*?)(?:_[a-z]|i)?",
        },
    ),
}
"""Name -> layout; the first of two that explain a folder equally well is taken."""
