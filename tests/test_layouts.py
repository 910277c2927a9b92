"""Folders to samples: small copies of each published layout, and anybody's folders."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.errors import InputError
from pipeline.images import read_sources
from pipeline.layouts import Scan, scan_folder
from pipeline.manifest import ROLE_WORDS, TASKS, Sample, Source
from pipeline.pairs import spread
from pipeline.published_layouts import LAYOUTS


def picture(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5), value, np.uint8)).save(path)
    return path


def stack(path: Path, shapes: dict[str, tuple[int, ...]], peak: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, shape in shapes.items():
            file[name] = np.full(shape, peak / 2)


PAN = {"pan": (3, 1, 16, 16), "ms": (3, 8, 4, 4), "lms": (3, 8, 16, 16), "gt": (3, 8, 16, 16)}
# Layout -> files as the data set's archive or repository has them.
FILES = {
    "msrs": [
        f"MSRS/{part}/{kind}/{name}.png"
        for part, name in (("train", "00001D"), ("test", "00004N"))
        for kind in ("vi", "ir", "Segmentation_labels")
    ] + ["MSRS/detection/vi/1.png", "MSRS/detection/ir/1.png"],
    "m3fd": [
        f"M3FD_{part}/{kind}/{name}.png"
        for part, name in (("Fusion", "00000"), ("Detection", "00000"), ("Detection", "00001"))
        for kind in ("Ir", "Vis")
    ],
    "tno": [
        "TNO_Image_Fusion_Dataset/Athena_images/2_men_in_front_of_house/IR_meting003_g.bmp",
        "TNO_Image_Fusion_Dataset/Athena_images/2_men_in_front_of_house/VIS_meting003_r.bmp",
        "TNO_Image_Fusion_Dataset/FEL_images/Nato_camp_sequence/thermal/1800i.bmp",
        "TNO_Image_Fusion_Dataset/FEL_images/Nato_camp_sequence/visual/1800v.bmp",
        "TNO_Image_Fusion_Dataset/DHV_images/Fire_sequence/part_1/thermal/RAD01.bmp",
        "TNO_Image_Fusion_Dataset/DHV_images/Fire_sequence/part_1/dhv/DHV01.bmp",
        "TNO_Image_Fusion_Dataset/Triclobs_images/Kaptein_1123/IR.bmp",
        "TNO_Image_Fusion_Dataset/Triclobs_images/Kaptein_1123/NIR.bmp",
        "TNO_Image_Fusion_Dataset/Triclobs_images/Kaptein_1123/Vis.bmp",
        "TNO_Image_Fusion_Dataset/tank/LWIR.tif",
        "TNO_Image_Fusion_Dataset/tank/Vis.tif",
    ],
    "roadscene": [
        f"RoadScene/{kind}/FLIR_00006.{suffix}"
        for kind, suffix in (
            ("crop_LR_visible", "jpg"), ("crop_HR_visible", "jpg"),
            ("cropinfrared", "jpg"), ("infrared", "png"),
        )
    ],
    "llvip": [f"LLVIP/{kind}/{part}/{name}.jpg" for kind in ("visible", "infrared")
              for part, name in (("train", "010001"), ("test", "190001"))],
    "harvard": [
        f"Harvard/{first}-MRI/{kind}/{name}.png"
        for first, name in (
            ("CT", "2006"), ("CT", "37009"), ("CT", "41003"), ("PET", "25019"), ("SPECT", "2006"),
        )
        for kind in (first, "MRI")
    ],
    "sice": [f"SICE/Dataset_Part1/3/{number}.JPG" for number in range(1, 8)]
    + [f"SICE/Dataset_Part2/3/{number}.JPG" for number in range(1, 4)]
    + ["SICE/Dataset_Part1/Label/3.JPG", "SICE/Dataset_Part2/Label/3.JPG"],
    "mefb": [f"MEFB/input/Farmhouse/{name}.png" for name in ("FarmHouse_B", "Farmhouse_A", "img1", "img3")],
    "mfi_whu": [f"MFI-WHU/{kind}/1.jpg" for kind in ("source_1", "source_2", "full_clear")],
    "realmff": [f"RealMFF/{kind}/000_{mark}.png" for kind, mark in
                (("imageA", "A"), ("imageB", "B"), ("Fusion", "F"))],
    "lytro": [f"LytroDataset/lytro-01-{mark}.jpg" for mark in "AB"]
    + [f"LytroDataset/Triple Series/lytro-01-{mark}.jpg" for mark in "ABC"],
}  # fmt: skip
STACKS = {
    "wv3": ({"train_wv3.h5": PAN, "valid_wv3.h5": PAN, "test_wv3_multiExm1.h5": PAN}, 2047),
    "gf2": ({"train_gf2.h5": PAN, "test_gf2_multiExm1.h5": PAN}, 1023),
    "qb": ({"train_qb.h5": PAN, "test_qb_multiExm1.h5": PAN}, 2047),
    "chikusei": (
        {
            "train_chikusei.h5": {
                "GT": (2, 31, 16, 16), "LRHSI": (2, 31, 4, 4),
                "RGB": (2, 3, 16, 16), "HSI_up": (2, 31, 16, 16),
            }
        },
        1,
    ),
    "pavia": (
        {
            "Test_Pavia.h5": {
                "GT": (2, 9, 16, 16), "MS": (2, 9, 4, 4), "PAN": (2, 1, 16, 16), "LMS": (2, 9, 16, 16),
            }
        },
        1,
    ),
}  # fmt: skip


def published(root: Path, name: str) -> Path:
    for file in FILES.get(name, []):
        picture(root / file)
    if name in STACKS:
        files, peak = STACKS[name]
        for file, shapes in files.items():
            stack(root / name / file, shapes, peak)
    return root


def facts(scan: Scan) -> dict[str, tuple[str, tuple[str, ...], bool, bool]]:
    """Sample -> split, roles, whether it has a target, a mask."""
    return {
        sample.id: (sample.split, sample.roles, sample.target is not None, sample.mask is not None)
        for sample in scan.samples
    }


PAIR, FOCUS, SHARPEN = ("visible", "infrared"), ("near", "far"), ("pan", "ms")
SEVEN = ("under", "under_2", "under_3", "over", "over_2", "over_3", "over_4")
EXPECTED = {
    "msrs": {"00001D": ("train", PAIR, False, True), "00004N": ("test", PAIR, False, True)},
    "m3fd": {
        "Fusion_00000": ("test", PAIR, False, False),
        "Detection_00000": ("train", PAIR, False, False),
        "Detection_00001": ("train", PAIR, False, False),
    },
    "tno": {
        "TNO_Image_Fusion_Dataset_Athena_images-2_men_in_front_of_house_meting003": PAIR,
        "TNO_Image_Fusion_Dataset_FEL_images-Nato_camp_sequence_1800": PAIR,
        "TNO_Image_Fusion_Dataset_DHV_images-Fire_sequence-part_1_01": PAIR,
        "TNO_Image_Fusion_Dataset_Triclobs_images-Kaptein_1123": PAIR,
        "TNO_Image_Fusion_Dataset_tank": PAIR,
    },
    "roadscene": {"FLIR_00006": ("test", PAIR, False, False)},
    "llvip": {"010001": ("train", PAIR, False, False), "190001": ("test", PAIR, False, False)},
    "harvard": {
        "CT-MRI_2006": ("train", ("ct", "mri"), False, False),
        "CT-MRI_37009": ("validation", ("ct", "mri"), False, False),
        "CT-MRI_41003": ("test", ("ct", "mri"), False, False),
        "PET-MRI_25019": ("train", ("pet", "mri"), False, False),
        "SPECT-MRI_2006": ("test", ("spect", "mri"), False, False),
    },
    "sice": {
        "Dataset_Part1_3": ("train", SEVEN, True, False),
        "Dataset_Part2_3": ("test", ("under", "over", "over_2"), True, False),
    },
    "mefb": {"Farmhouse": ("test", ("under", "over"), False, False)},
    "mfi_whu": {"1": ("test", FOCUS, True, False)},
    "realmff": {"000": ("test", FOCUS, True, False)},
    "lytro": {
        "lytro-01": ("test", FOCUS, False, False),
        "Triple_lytro-01": ("test", ("near", "far", "far_2"), False, False),
    },
    "wv3": {
        f"{file}_{number}": (split, SHARPEN, True, False)
        for file, split in (
            ("train_wv3", "train"),
            ("valid_wv3", "validation"),
            ("test_wv3_multiExm1", "test"),
        )
        for number in range(3)
    },
    "gf2": {
        f"{file}_{number}": (split, SHARPEN, True, False)
        for file, split in (("train_gf2", "train"), ("test_gf2_multiExm1", "test"))
        for number in range(3)
    },
    "qb": {
        f"{file}_{number}": (split, SHARPEN, True, False)
        for file, split in (("train_qb", "train"), ("test_qb_multiExm1", "test"))
        for number in range(3)
    },
    "chikusei": {f"train_chikusei_{number}": ("train", ("ms", "hs"), True, False) for number in range(2)},
    "pavia": {f"Test_Pavia_{number}": ("test", ("pan", "hs"), True, False) for number in range(2)},
}


@pytest.mark.parametrize("by_name", [True, False], ids=["named", "recognised"])
@pytest.mark.parametrize("name", EXPECTED)
def test_a_published_layout_is_read(tmp_path: Path, name: str, by_name: bool) -> None:
    root = published(tmp_path / "data", name)
    scan = scan_folder(root, name if by_name else None)
    assert scan.layout == name
    found, expected = facts(scan), EXPECTED[name]
    if name == "tno":  # its long names are less interesting than that they differ
        assert len(found) == len(expected)
        assert {roles for _, roles, _, _ in found.values()} == {PAIR}
        return
    assert found == expected
    for sample in scan.samples:
        read_sources(sample)  # the paths lead to images that go together
        assert sample.bits == LAYOUTS[name].bits


def test_every_layout_has_a_copy_here() -> None:
    assert set(EXPECTED) == {name for name in LAYOUTS if not name.endswith("_full") and name != "wv2"}


def test_label_maps_are_taken_with_the_names_of_their_values(tmp_path: Path) -> None:
    scan = scan_folder(published(tmp_path, "msrs"))
    assert (scan.masks, scan.prompt[:2]) == ("provided", ("car", "person"))
    (tmp_path / "MSRS" / "test" / "Segmentation_labels" / "00004N.png").unlink()
    assert scan_folder(tmp_path).masks == "auto"
    assert scan_folder(published(tmp_path / "b", "mefb")).masks == "auto"


def test_full_resolution_is_a_data_set_of_its_own(tmp_path: Path) -> None:
    full = {name: shape for name, shape in PAN.items() if name != "gt"}
    stack(tmp_path / "test_wv3_OrigScale_multiExm1.h5", full, 2047)
    stack(tmp_path / "test_wv3_multiExm1.h5", PAN, 2047)
    assert {sample.target for sample in scan_folder(tmp_path, "wv3_full").samples} == {None}
    assert all(sample.target is not None for sample in scan_folder(tmp_path, "wv3").samples)
    assert scan_folder(tmp_path, "wv3").sensor == scan_folder(tmp_path, "wv3_full").sensor == "wv3"


def test_a_sensor_that_is_not_named_is_not_guessed(tmp_path: Path) -> None:
    stack(tmp_path / "train.h5", PAN, 2047)
    with pytest.raises(InputError, match="no samples found"):
        scan_folder(tmp_path)


def test_stacks_of_different_lengths_are_refused(tmp_path: Path) -> None:
    stack(tmp_path / "train_wv3.h5", PAN | {"ms": (2, 8, 4, 4)}, 2047)
    with pytest.raises(InputError, match=r"train_wv3\.h5.*different numbers of samples"):
        scan_folder(tmp_path, "wv3")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("visible/1.png", "infrared/1.png"),
        ("VIS/1.png", "IR/1.png"),
        ("a/1-vis.png", "a/1-ir.png"),
        ("a/IR_1.png", "a/VIS_1.png"),
        ("vi01.png", "ir01.bmp"),
        ("Train_LLVIP_vi/1.jpg", "Train_LLVIP_ir/1.jpg"),
        ("rgb/Night.PNG", "thermal/night.png"),
    ],
)
def test_pairs_are_told_by_words(tmp_path: Path, first: str, second: str) -> None:
    files = {picture(tmp_path / "set" / first), picture(tmp_path / "set" / second)}
    for layout in (None, "pairs"):
        (sample,) = scan_folder(tmp_path / "set", layout).samples
        assert sample.roles == PAIR
        assert {source.path for source in sample.sources} == files


@pytest.mark.parametrize(
    ("files", "roles"),
    [
        (("1_A.png", "1_B.png"), FOCUS),
        (("sourceA/1_a.png", "sourceB/1_b.png"), FOCUS),
        (("left/1.png", "right/1.png"), FOCUS),
        (("x/1_1.png", "x/1_2.png", "x/1_3.png"), ("near", "far", "far_2")),
    ],
)
def test_pairs_without_words_need_a_task(
    tmp_path: Path, files: tuple[str, ...], roles: tuple[str, ...]
) -> None:
    paths = [picture(tmp_path / "set" / file) for file in files]
    with pytest.raises(InputError, match="--task"):
        scan_folder(tmp_path / "set", "pairs")
    (sample,) = scan_folder(tmp_path / "set", "pairs", "multi_focus").samples
    assert sample.sources == tuple(Source(role, path) for role, path in zip(roles, paths, strict=True))


@given(
    task=st.sampled_from(sorted(TASKS)),
    stems=st.lists(
        st.from_regex(r"[a-z]{3,5}[0-9]{2}x", fullmatch=True), min_size=1, max_size=4, unique=True
    ),
    capitals=st.booleans(),
    in_folders=st.booleans(),
    data=st.data(),
)
@settings(max_examples=30)
def test_any_words_of_any_task_are_found(
    tmp_path_factory: pytest.TempPathFactory,
    task: str,
    stems: list[str],
    capitals: bool,
    in_folders: bool,
    data: st.DataObject,
) -> None:
    root = tmp_path_factory.mktemp("pairs")
    roles = data.draw(st.sampled_from(TASKS[task]))
    words = [data.draw(st.sampled_from(ROLE_WORDS[role])) for role in roles]
    for word in words:
        for stem in stems:
            said = word.upper() if capitals else word
            picture(root / (f"{said}/{stem}.png" if in_folders else f"{stem}-{said}.png"))
    found = scan_folder(root, task=task).samples
    assert sorted(sample.id for sample in found) == sorted(stems)
    assert {(sample.task, sample.roles) for sample in found} == {(task, tuple(roles))}


def test_folders_named_after_roles_are_samples_wherever_they_lie(tmp_path: Path) -> None:
    for role in ("Visible", "Infrared"):
        picture(tmp_path / "night" / role / "1.png")
        picture(tmp_path / "day" / role / "1.png")
    picture(tmp_path / "night" / "Visible" / "alone.png")
    for role in ("ct", "pet", "mri"):
        picture(tmp_path / "brain" / role / "a b.png")
    scan = scan_folder(tmp_path)
    found = {sample.id: sample for sample in scan.samples}
    assert set(found) == {"day_1", "night_1", "brain_a-b"}
    assert scan.left_over == 1
    assert found["brain_a-b"].roles == ("ct", "pet", "mri")
    assert found["day_1"].sources[1] == Source("infrared", tmp_path / "day" / "Infrared" / "1.png")
    assert {sample.task for sample in found.values()} == {"visible_infrared", "medical"}


def test_targets_are_found_and_optional(tmp_path: Path) -> None:
    for role in ("near", "far", "target"):
        picture(tmp_path / role / "a.png")
    picture(tmp_path / "near" / "b.png")
    picture(tmp_path / "far" / "b.png")
    targets = {sample.id: sample.target for sample in scan_folder(tmp_path).samples}
    assert targets == {"a": tmp_path / "target" / "a.png", "b": None}


def test_names_that_mean_the_same_file_on_some_systems_stay_apart(tmp_path: Path) -> None:
    for folder in ("a b", "a-b"):
        picture(tmp_path / folder / "near" / "1.png")
        picture(tmp_path / folder / "far" / "1.png")
    assert {sample.id for sample in scan_folder(tmp_path).samples} == {"a-b_1", "a-b_1-2"}


def bad_folders(root: Path) -> dict[str, tuple[dict[str, str], str]]:
    """Folder -> options of the scan, and what its message must say."""
    picture(root / "left" / "left" / "a.png")
    picture(root / "names" / "visible" / "a.png")
    picture(root / "names" / "infrared" / "b.png")
    (root / "empty").mkdir()
    (root / "broken").mkdir()
    (root / "broken" / "train_wv3.h5").write_text("no")
    return {
        "absent": ({}, "no such folder"),
        "left": ({}, "name the sub-folders"),
        "names": ({}, "same name"),
        "empty": ({"layout": "pairs"}, "holds no images"),
        "broken": ({"layout": "wv3"}, "train_wv3.h5: cannot be read"),
        "names/visible": ({"layout": "msrs"}, "no sample of the layout msrs"),
        "left/left": ({"layout": "m3df"}, "Did you mean 'm3fd'"),
        "names/infrared": ({"task": "focus"}, "unknown task"),
    }


def test_bad_folders_are_named_in_one_line(tmp_path: Path) -> None:
    for name, (options, words) in bad_folders(tmp_path).items():
        with pytest.raises(InputError) as error:
            scan_folder(tmp_path / name, **options)
        assert words in str(error.value), name
        assert "\n" not in str(error.value), name


@pytest.mark.parametrize("count", range(2, 10))
def test_a_stack_is_spread_over_two_roles(count: int) -> None:
    roles = spread(("under", "over"), count)
    assert len(set(roles)) == len(roles) == count
    assert roles[0] == "under"
    assert "over" in roles
    assert roles == sorted(roles, key=lambda role: ("over" in role, len(role), role))


def test_all_real_samples_are_recognised(shared_data: Path) -> None:
    found: tuple[Sample, ...] = scan_folder(shared_data).samples
    counts = {task: sum(sample.task == task for sample in found) for task in TASKS}
    assert counts == {
        "visible_infrared": 83,
        "medical": 30,
        "multi_exposure": 12,
        "multi_focus": 10,
        "pansharpening": 12,
        "hyper_multispectral": 0,
    }
