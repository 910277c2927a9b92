"""`manifest --check`: everything that is wrong is in one table, and nothing else."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import Workspace
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from test_cli import PIPELINE

from pipeline.checking import Finding, check_and_report, check_samples
from pipeline.images import luminance, read_image
from pipeline.layouts import scan_folder
from pipeline.manifest import Sample, Source, check_manifest
from pipeline.shifts import estimate_shift

Array = np.ndarray


def scene(size: tuple[int, int] = (96, 128), seed: int = 0) -> Array:
    """Blobs with edges, uint8."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.standard_normal(size), 4)
    return (np.digitize(field, np.quantile(field, [0.2, 0.4, 0.6, 0.8])) * 50 + 20).astype(np.uint8)


def save(path: Path, pixels: Array) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    else:
        Image.fromarray(pixels).save(path)
    return path


def sample(folder: Path, task: str = "visible_infrared", name: str = "a", **images: Array) -> Sample:
    """A sample of images by column; `target` and `mask` are columns too."""
    paths = {}
    for column, pixels in images.items():
        is_picture = pixels.dtype == np.uint8 and (pixels.ndim == 2 or pixels.shape[2] == 3)
        paths[column] = save(folder / column / f"{name}.{'png' if is_picture else 'npy'}", pixels)
    sources = tuple(Source(role, path) for role, path in paths.items() if role not in ("target", "mask"))
    return Sample(name, task, "test", sources, paths.get("target"), paths.get("mask"))


def texts(samples: list[Sample], level: str = "error") -> str:
    return "\n".join(finding.text for finding in check_samples(samples) if finding.level == level)


def test_a_good_sample_is_silent(tmp_path: Path) -> None:
    visible = scene()
    good = sample(tmp_path, visible=visible, infrared=255 - visible, mask=(visible > 100).astype(np.uint8))
    assert check_samples([good]) == []


def broken_samples(folder: Path) -> dict[str, tuple[Sample, str]]:
    """What is wrong -> the sample and what the table must say of it."""
    picture = scene()
    nan = picture / np.float32(255)
    nan[3, 4] = np.nan
    missing = sample(folder / "missing", visible=picture, infrared=picture)
    missing.sources[1].path.unlink()
    cut = sample(folder / "cut", visible=picture, infrared=picture)
    cut.sources[0].path.write_bytes(cut.sources[0].path.read_bytes()[:300])
    return {
        "missing": (missing, "infrared: {1}: no such image file; check the path"),
        "cut": (cut, "visible: {0}: cannot be read as an image"),
        "sizes": (
            sample(folder / "sizes", visible=picture, infrared=scene((96, 120))),
            "infrared is 96x120 ({1}); register and resize",
        ),
        "bands": (
            sample(folder / "bands", visible=picture, infrared=picture[..., None].repeat(4, 2)),
            "has 4 bands ({1})",
        ),
        "constant": (
            sample(folder / "constant", visible=picture, infrared=np.full_like(picture, 51)),
            "{1}: every value is 0.2; replace the file",
        ),
        "nan": (sample(folder / "nan", visible=picture, infrared=nan), "{1}: the image holds NaN"),
        "target": (
            sample(folder / "target", "multi_focus", near=picture, far=picture, target=scene((90, 128))),
            "the target is 90x128",
        ),
        "target_bands": (
            sample(
                folder / "target_bands", "pansharpening", pan=picture,
                ms=scene((24, 32))[..., None].repeat(4, 2), target=picture,
            ),
            "the target has 1 bands",
        ),
        "mask": (
            sample(folder / "mask", visible=picture, infrared=picture, mask=picture[..., None].repeat(3, 2)),
            "the mask has 3 bands",
        ),
        "ratio": (
            sample(folder / "ratio", "pansharpening", pan=picture, ms=scene((25, 32))),
            "smaller by a whole ratio",
        ),
    }  # fmt: skip


def test_everything_that_is_wrong_is_said_in_one_line(tmp_path: Path) -> None:
    for name, (bad, words) in broken_samples(tmp_path).items():
        findings = [finding for finding in check_samples([bad]) if finding.level == "error"]
        assert len(findings) == 1, name
        assert words.format(*(source.path for source in bad.sources)) in findings[0].text, name
        assert "\n" not in findings[0].text, name


def test_a_label_map_may_have_colours_but_must_decode(tmp_path: Path) -> None:
    visible = scene()
    good = sample(tmp_path, visible=visible, infrared=255 - visible, mask=(visible > 100).astype(np.uint8))
    assert good.mask is not None
    coloured = Image.fromarray((visible > 100).astype(np.uint8)).convert("P")
    coloured.putpalette([0, 0, 0, 255, 0, 0])
    coloured.save(good.mask)
    assert check_samples([good]) == []
    good.mask.write_bytes(good.mask.read_bytes()[:90])
    assert "mask: " in texts([good])
    assert "cannot be read as a label map" in texts([good])


def test_the_check_goes_on_after_the_first(tmp_path: Path) -> None:
    broken = broken_samples(tmp_path)
    found = {finding.text for finding in check_samples([bad for bad, _ in broken.values()])}
    for bad, words in broken.values():
        assert any(words.format(*(source.path for source in bad.sources)) in text for text in found)


def test_bands_unlike_the_others_are_a_warning(tmp_path: Path) -> None:
    made = [
        sample(tmp_path, "pansharpening", name, pan=scene(), ms=scene((24, 32))[..., None].repeat(bands, 2))
        for name, bands in (("a", 4), ("b", 4), ("c", 3))
    ]
    findings = check_samples(made)
    assert [(finding.sample, finding.level) for finding in findings] == [("c", "warning")]
    assert "1 and 3 bands, most samples of pansharpening have 1 and 4" in findings[0].text


@given(row=st.integers(-12, 12), column=st.integers(-12, 12), seed=st.integers(0, 9))
@settings(max_examples=20)
def test_a_shift_is_found_whatever_the_contrast(row: int, column: int, seed: int) -> None:
    """The second image shows the scene inverted, noisier and moved."""
    large = scene((192, 224), seed) / np.float32(255)
    first = large[20:-20, 20:-20]
    second = 1 - large[20 - row : 172 - row, 20 - column : 204 - column]
    second = second + 0.02 * np.random.default_rng(seed).standard_normal(second.shape).astype(np.float32)
    shift = estimate_shift(first, second)
    if max(abs(row), abs(column)) > 3:
        assert shift == (row, column)
    else:
        assert shift is None


def test_images_that_have_nothing_in_common_are_not_called_shifted() -> None:
    planes = [scene((200, 200), seed) / np.float32(255) for seed in range(8)]
    assert [estimate_shift(a, b) for a, b in zip(planes[:4], planes[4:], strict=True)] == [None] * 4
    tiny = np.random.default_rng(0).random((5, 6), dtype=np.float32)
    assert estimate_shift(tiny, tiny) is None


def test_a_shifted_pair_is_a_warning_that_says_where_to(tmp_path: Path) -> None:
    large = scene((160, 200))
    moved = sample(tmp_path, visible=large[10:-10, 10:-10], infrared=255 - large[2:-18, 16:-4])
    findings = check_samples([moved])
    assert [finding.level for finding in findings] == ["warning"]
    assert "infrared looks shifted by +8 rows, -6 columns against visible" in findings[0].text


def test_a_large_image_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pipeline.checking as checking

    monkeypatch.setattr(checking, "_WHOLE", 1000)
    monkeypatch.setattr(checking, "read_image", None)  # nothing may be read whole
    picture = scene()
    paths = [tmp_path / "visible.tif", tmp_path / "infrared.tif"]
    for path, pixels in zip(paths, (picture, 255 - picture), strict=True):
        tifffile.imwrite(path, pixels)
    large = Sample(
        "a", "visible_infrared", "test", (Source("visible", paths[0]), Source("infrared", paths[1]))
    )
    assert check_samples([large]) == []
    tifffile.imwrite(paths[1], np.where(np.arange(96)[:, None] == 90, np.nan, picture / np.float32(255)))
    assert "NaN" in texts([large])


def test_every_bad_row_of_a_manifest_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text(
        "sample,task,split,visible,infrared\n"
        "a,visible_infrared,test,a.png,b.png\n"
        "b,fusion,test,a.png,b.png\n"
        "c,visible_infrared,tset,a.png,b.png\n"
        "a,visible_infrared,test,a.png,b.png\n"
        "d,visible_infrared,test,a.png,\n"
        "e,visible_infrared,test,a.png,b,c.png\n"
    )
    samples, problems = check_manifest(path, tmp_path)
    assert [sample.id for sample in samples] == ["a"]
    assert [name for name, _ in problems] == ["b", "c", "a", "d", "e"]
    for number, (_, text) in zip((3, 4, 5, 6, 7), problems, strict=True):
        assert text.startswith(f"{path}: row {number}")


def test_the_command_prints_one_table_and_tells_by_its_exit_code(workspace: Workspace) -> None:
    root = workspace.path / "images"
    for name in ("good", "bad"):
        sample(root, name=name, visible=scene(), infrared=255 - scene())
    made = workspace.run(*PIPELINE, "manifest", "images", "--dataset", "mine").stdout
    assert "2 samples" in made
    good = workspace.run(*PIPELINE, "manifest", "--check", "--dataset", "mine")
    assert "2 samples read: 0 errors in 0 of them, 0 warnings" in good.stdout
    (root / "infrared" / "bad.png").write_text("no")
    manifest = workspace.path / "data_manifests" / "mine.csv"
    manifest.write_text(manifest.read_text() + "worse,visible_infrared,tset,a.png,b.png\n")
    bad = workspace.run(*PIPELINE, "manifest", "--check", "--dataset", "mine", check=False)
    assert bad.returncode == 1
    lines = bad.stdout.splitlines()
    assert sum("bad.png: cannot be read" in line and "replace the file" in line for line in lines) == 1
    assert sum("worse" in line and "unknown split" in line for line in lines) == 1
    assert "2 errors in 2 of them" in lines[-1]
    assert "Traceback" not in bad.stderr
    nothing = workspace.run(*PIPELINE, "manifest", "--check", check=False)
    assert (nothing.returncode, "say what to check" in nothing.stderr) == (2, True)


def test_lines_are_whole_however_narrow_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    bad = sample(tmp_path, visible=scene(), infrared=np.full((96, 128), 9, np.uint8))
    assert check_and_report(tmp_path, None, None, None) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sum(str(bad.sources[1].path) in line and "replace the file" in line for line in lines) == 1


def test_making_a_manifest_again_keeps_its_splits(workspace: Workspace) -> None:
    root = workspace.path / "images"
    for name in ("a", "b"):
        sample(root, name=name, visible=scene(), infrared=scene())
    workspace.run(*PIPELINE, "manifest", "images", "--dataset", "mine")
    manifest = workspace.path / "data_manifests" / "mine.csv"
    manifest.write_text(manifest.read_text().replace("a,visible_infrared,test", "a,visible_infrared,train"))
    again = workspace.run(*PIPELINE, "manifest", "images", "--dataset", "mine")
    assert "1 train, 1 test" in again.stdout


@pytest.mark.slow
def test_real_samples_are_good_and_mostly_silent(shared_data: Path) -> None:
    """All are read; of 147 registered pairs two look shifted by more than 3 pixels, and may be."""
    samples = list(scan_folder(shared_data).samples)
    assert len(samples) == 147
    findings: list[Finding] = check_samples(samples)
    assert [finding for finding in findings if finding.level == "error"] == []
    shifted = {finding.sample for finding in findings if "looks shifted" in finding.text}
    assert len(shifted) <= 4, shifted


def test_real_pairs_are_caught_when_they_are_shifted(shared_data: Path) -> None:
    pairs = [
        sample.sources
        for folder in ("visible_infrared/tno", "multi_exposure", "multi_focus")
        for sample in scan_folder(shared_data / folder).samples[:8]
    ]
    caught = 0
    for first, second in ([luminance(read_image(source.path).pixels) for source in pair] for pair in pairs):
        shift = estimate_shift(first[12:-12, 12:-12], second[20:-4, 6:-18])
        caught += shift is not None and np.hypot(shift[0] + 8, shift[1] - 6) < 3
    assert caught > 0.7 * len(pairs)
