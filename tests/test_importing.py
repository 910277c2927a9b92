"""What people and the authors made, taken into the stores, and what the stages then do with it."""

import csv
import json
from pathlib import Path

import fake_backends
import numpy as np
import pytest
from PIL import Image as PillowImage
from ruamel.yaml import YAML
from safetensors.numpy import save_file
from typer.testing import CliRunner

from pipeline import boxes, captions, masks, runner, texts
from pipeline.cli import app
from pipeline.coco import export_coco
from pipeline.coco_import import import_coco
from pipeline.config import PipelineConfig, load_pipeline
from pipeline.errors import InputError
from pipeline.guidance import run_guidance
from pipeline.importing import import_captions, import_masks, import_texts
from pipeline.manifest import Sample, read_manifest
from pipeline.store import Caption, MergedMasks, SampleInstances, Text, open_store

SIZES = ((24, 32), (24, 32), (20, 28))
FOLDER = Path("guidance/mini")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PipelineConfig:
    """Three samples, params.yaml, and fakes in the place of the backends (put back afterwards)."""
    monkeypatch.chdir(tmp_path)
    for stage in (captions, texts, boxes, masks):
        monkeypatch.setattr(stage, "backend", stage.backend)
    fake_backends.use_fakes()
    fake_backends.make_dataset(Path(), SIZES)
    Path("params.yaml").write_text(
        "datasets:\n  mini: # ours\n    manifest: mini.csv\n    root: images\n    masks: auto\n"
    )
    return load_pipeline()


def write_captions(rows: list[tuple[str, str]], header: tuple[str, str] = ("sample", "caption")) -> Path:
    path = Path("captions.csv")
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def caption(sample: str) -> str:
    record = open_store(FOLDER / "captions.zarr").get(sample)
    assert isinstance(record, Caption)
    return record.text


@pytest.mark.parametrize("header", [("sample", "caption"), ("", "caption")])
@pytest.mark.parametrize("name", ["s{}", "s{}.png"])
def test_captions_stay_and_text_features_follow_them(
    project: PipelineConfig, header: tuple[str, str], name: str
) -> None:
    run_guidance(project, "mini")
    rows = [(name.format(f"00{n}"), f'Zwei "Autos", {n}') for n in range(3)]
    done = import_captions(project, "mini", write_captions(rows, header))
    assert (done.done, done.missing, done.unused) == (3, (), 0)
    for _ in range(2):  # the second time nothing is left to do
        summaries = run_guidance(project, "mini")
        assert [caption(f"s00{n}") for n in range(3)] == [text for _, text in rows]
    assert all(s.computed == 0 for s in summaries)
    record = open_store(FOLDER / "texts.zarr").get("s001")
    assert isinstance(record, Text)
    expected = fake_backends.TextEncoder.features(rows[1][1]).astype(np.float16)
    np.testing.assert_array_equal(record.features, expected)


def test_another_file_makes_everything_after_it_anew(project: PipelineConfig) -> None:
    for word in ("one", "two"):
        import_captions(project, "mini", write_captions([(f"s00{n}", word) for n in range(3)]))
        summaries = {s.stage: s for s in run_guidance(project, "mini")}
        assert summaries["texts"].computed == 3
    record = open_store(FOLDER / "texts.zarr").get("s000")
    assert isinstance(record, Text)
    np.testing.assert_array_equal(
        record.features, fake_backends.TextEncoder.features("two").astype(np.float16)
    )


def test_samples_without_a_caption_fail_alone_and_say_what_to_do(
    project: PipelineConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    done = import_captions(project, "mini", write_captions([("s000", "a"), ("s002", " "), ("zzz", "b")]))
    assert (done.done, done.missing, done.unused) == (1, ("s001", "s002"), 1)
    summary = runner.run(captions.stage(project, "mini"))
    assert (summary.current, summary.failed) == (1, 2)
    printed = capsys.readouterr()
    assert "imported from captions.csv, kept as it is" in printed.out
    assert "'s001': is not among what was imported from captions.csv" in printed.err
    assert runner.run(texts.stage(project, "mini")).computed == 1


def test_a_sample_whose_files_changed_is_not_taken_for_the_imported_one(project: PipelineConfig) -> None:
    import_captions(project, "mini", write_captions([(f"s00{n}", "x") for n in range(3)]))
    image = Path("images/infrared/s001.png")
    PillowImage.open(image).point(lambda value: 255 - value).save(image)
    summary = runner.run(captions.stage(project, "mini"))
    assert (summary.current, summary.failed) == (2, 1)


def test_deleting_the_store_computes_it_again(project: PipelineConfig) -> None:
    import shutil

    import_captions(project, "mini", write_captions([(f"s00{n}", "x") for n in range(3)]))
    shutil.rmtree(FOLDER / "captions.zarr")
    assert runner.run(captions.stage(project, "mini")).computed == 3
    assert caption("s000").startswith("Scène s000")


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([("s000", "a")], ("sample", "text"), "needs the columns"),
        ([("s000", "a")], ("caption", "caption"), "needs the columns"),
        ([("s000", "a"), ("s000", "b")], ("sample", "caption"), "row 3: 's000' has a caption already"),
        ([("s000", "a"), ("s000.png", "b")], ("sample", "caption"), "are both 's000'"),
        ([("other", "a")], ("sample", "caption"), "none of its 1 entries"),
    ],
)
def test_other_tables_are_refused_and_change_nothing(
    project: PipelineConfig, rows: list[tuple[str, str]], header: tuple[str, str], message: str
) -> None:
    runner.run(captions.stage(project, "mini"))
    before = caption("s000")
    with pytest.raises(InputError, match=message):
        import_captions(project, "mini", write_captions(rows, header))
    assert caption("s000") == before


def features(tokens: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(tokens, 512)).astype(np.float16)


def test_the_authors_features_become_the_text_store(project: PipelineConfig) -> None:
    """Their layout: one file, a float16 (1, tokens, 512) tensor under every image's stem."""
    values = {f"s00{n}": features(5 + n, n) for n in range(3)}
    padded = {
        name: np.concatenate([v, np.zeros((9 - len(v), 512), v.dtype)])[None] for name, v in values.items()
    }
    save_file(padded, "t5_feature_mini.safetensors")
    done = import_texts(project, "mini", Path("t5_feature_mini.safetensors"), "t5-small")
    assert done.done == 3
    summaries = {s.stage: s for s in run_guidance(project, "mini")}
    assert summaries["texts"].computed == 0
    store = open_store(FOLDER / "texts.zarr")
    assert store.config["identity"] == "imported t5-small"
    for name, expected in values.items():
        record = store.get(name)
        assert isinstance(record, Text)
        np.testing.assert_array_equal(record.features, expected)


def test_features_of_several_files_are_one_store_and_long_ones_are_cut(project: PipelineConfig) -> None:
    Path("t5").mkdir()
    save_file({"s000": features(200, 0), "s001": features(3, 1)}, "t5/train.safetensors")
    save_file({"s002": features(1, 2)}, "t5/test.safetensors")
    assert import_texts(project, "mini", Path("t5"), "t5-small").done == 3
    record = open_store(FOLDER / "texts.zarr").get("s000")
    assert isinstance(record, Text)
    np.testing.assert_array_equal(record.features, features(200, 0)[: project.texts.max_tokens])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"s000": np.zeros((4, 1024), np.float16)}, r"shape \(4, 1024\)"),
        ({"s000": np.zeros((2, 4, 512), np.float16)}, r"shape \(2, 4, 512\)"),
        ({"s000": np.full((4, 512), 1e6, np.float32)}, "not finite in float16"),
        ({"other": np.zeros((4, 512), np.float16)}, "none of its 1 entries"),
    ],
)
def test_other_features_are_refused_and_change_nothing(
    project: PipelineConfig, tensors: dict[str, np.ndarray], message: str
) -> None:
    runner.run(captions.stage(project, "mini"))
    runner.run(texts.stage(project, "mini"))
    save_file(tensors, "t.safetensors")
    with pytest.raises(InputError, match=message):
        import_texts(project, "mini", Path("t.safetensors"), "t5-small")
    assert runner.run(texts.stage(project, "mini")).current == 3
    assert not list(FOLDER.glob("*.import*"))


def test_a_file_that_is_no_safetensors_is_named(project: PipelineConfig) -> None:
    Path("t.safetensors").write_bytes(b"nothing")
    for path in ("t.safetensors", "absent"):
        with pytest.raises(InputError, match=path):
            import_texts(project, "mini", Path(path), "t5-small")


def write_label_map(path: Path, size: tuple[int, int], palette: bool = False) -> None:
    labels = np.zeros(size, np.uint8)
    labels[2:8, 2:8] = 1
    labels[2:8, 12:18] = 1
    labels[10:14, 4:20] = 2
    path.parent.mkdir(parents=True, exist_ok=True)
    image = PillowImage.fromarray(labels)
    if palette:
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.save(path)


def test_human_label_maps_become_the_masks(project: PipelineConfig) -> None:
    """As in MSRS: a folder of label maps beside those of the images, values named by the prompt."""
    for n, size in enumerate(SIZES):
        write_label_map(Path(f"images/Segmentation_labels/s00{n}.png"), size, palette=n == 1)
    done = import_masks(project, "mini", Path("images/Segmentation_labels"), ["car", "person"])
    assert done.done == 3
    assert "# ours" in Path("params.yaml").read_text()
    config = load_pipeline()
    assert config.datasets["mini"].masks == "provided"
    assert config.datasets["mini"].prompt == ("car", "person")
    run_guidance(config, "mini")
    for n in range(3):
        record = open_store(FOLDER / "masks.zarr").get(f"s00{n}")
        assert isinstance(record, SampleInstances)
        assert sorted(record.sources[0].label) == ["car", "car", "person"]
        assert len(record.sources[1]) == 0


def test_label_maps_that_do_not_fit_change_nothing(project: PipelineConfig, tmp_path: Path) -> None:
    before = Path("mini.csv").read_text(), Path("params.yaml").read_text()
    write_label_map(Path("elsewhere/s000.png"), SIZES[0])
    write_label_map(Path("images/wrong/s000.png"), (24, 30))
    Path("images/colours").mkdir()
    PillowImage.new("RGB", (32, 24)).save("images/colours/s000.png")
    Path("images/empty").mkdir()
    for folder, message in (
        ("elsewhere", "not below images"),
        ("images/wrong", "24x32 with one band is needed, not 24x30"),
        ("images/colours", "not 24x32 with 3"),
        ("images/empty", "none of its 0 entries"),
        ("images/absent", "no such folder"),
    ):
        with pytest.raises(InputError, match=message):
            import_masks(project, "mini", Path(folder), [])
    assert (Path("mini.csv").read_text(), Path("params.yaml").read_text()) == before


def instances(path: str) -> dict[str, SampleInstances | MergedMasks]:
    store = open_store(FOLDER / path)
    return {sample: store.get(sample) for sample in store.ids if store.is_done(sample)}  # type: ignore[misc]


def test_coco_there_and_back_gives_the_same_masks(project: PipelineConfig) -> None:
    run_guidance(project, "mini")
    before, united = instances("masks.zarr"), instances("merged.zarr")
    export_coco(project, "mini", Path("mini.json"))
    assert import_coco(project, "mini", Path("mini.json")).done == 3
    assert import_coco(project, "mini", Path("mini.json"), merged=True).done == 3
    summaries = run_guidance(project, "mini")
    assert all(s.computed == 0 for s in summaries[2:])
    for sample, record in instances("masks.zarr").items():
        for one, other in zip(record.sources, before[sample].sources, strict=True):
            assert one.label == other.label
            for name in ("box", "score", "iou", "mask"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    for sample, merged in instances("merged.zarr").items():
        assert merged.label == united[sample].label
        np.testing.assert_array_equal(merged.mask, united[sample].mask)
        np.testing.assert_array_equal(merged.sources, united[sample].sources)


def test_corrected_masks_are_merged_anew(project: PipelineConfig) -> None:
    run_guidance(project, "mini")
    export_coco(project, "mini", Path("mini.json"))
    document = json.loads(Path("mini.json").read_text())
    image = next(i for i in document["images"] if (i["sample"], i["role"]) == ("s001", "visible"))
    drawn = {"id": 900, "image_id": image["id"], "category_id": 1}
    drawn["segmentation"] = [[24, 14, 30, 14, 30, 22, 24, 22]]
    document["annotations"].append(drawn)
    Path("mini.json").write_text(json.dumps(document))
    import_coco(project, "mini", Path("mini.json"))
    summaries = {s.stage: s for s in run_guidance(project, "mini")}
    assert (summaries["boxes"].computed, summaries["masks"].computed, summaries["merge"].computed) == (
        0,
        0,
        3,
    )
    merged = instances("merged.zarr")["s001"]
    assert isinstance(merged, MergedMasks)
    assert any(mask[14:22, 24:30].all() for mask in merged.mask)


def test_files_of_annotation_tools_are_known_by_their_names(project: PipelineConfig) -> None:
    names = ["infrared/s000.png", "s001.png"]  # below the root, or just the sample: then the first source
    document = {
        "images": [{"id": n, "file_name": name, "height": 24, "width": 32} for n, name in enumerate(names)],
        "categories": [{"id": 3, "name": "car"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 3, "segmentation": [[2, 2, 9, 2, 9, 9, 2, 9]]}
            for n in range(2)
        ],
    }
    Path("cvat.json").write_text(json.dumps(document))
    done = import_coco(project, "mini", Path("cvat.json"))
    assert (done.done, done.missing) == (2, ("s002",))
    found = instances("masks.zarr")
    assert [len(source) for source in found["s000"].sources] == [0, 1]
    assert [len(source) for source in found["s001"].sources] == [1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 12, "width": 16}, "is 12x16, but sample 's000' is 24x32"),
        ({"file_name": "unknown.png"}, "none of its 1 images shows sources of 'mini'"),
    ],
)
def test_images_that_are_not_the_data_sets_are_refused(
    project: PipelineConfig, change: dict[str, object], message: str
) -> None:
    image = {"id": 1, "file_name": "s000.png", "height": 24, "width": 32} | change
    Path("x.json").write_text(json.dumps({"images": [image], "categories": [], "annotations": []}))
    with pytest.raises(InputError, match=message):
        import_coco(project, "mini", Path("x.json"))
    assert not FOLDER.exists() or not list(FOLDER.glob("*.zarr"))


def test_the_commands_say_what_they_did(project: PipelineConfig) -> None:
    runner = CliRunner()
    write_captions([("s000", "a"), ("s001", "b")])
    result = runner.invoke(app, ["import", "--dataset", "mini", "--captions", "captions.csv"])
    assert result.exit_code == 1
    assert "captions: 2 samples imported" in result.stdout
    assert "1 sample without captions (s002)" in result.stderr
    for n, size in enumerate(SIZES):
        write_label_map(Path(f"images/labels/s00{n}.png"), size)
    arguments = ["import", "--dataset", "mini", "--masks", "images/labels", "--prompt", "car . person"]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert YAML(typ="safe").load(Path("params.yaml"))["datasets"]["mini"]["prompt"] == ["car", "person"]
    samples: list[Sample] = read_manifest(Path("mini.csv"), Path("images"))
    assert all(sample.mask == Path(f"images/labels/{sample.id}.png") for sample in samples)
    assert runner.invoke(app, ["import", "--dataset", "mini"]).exit_code == 2
    assert runner.invoke(app, ["export", "--dataset", "mini", "-o", "x.json"]).exit_code == 2
    merge_error = runner.invoke(app, ["import", "--dataset", "nini", "--captions", "captions.csv"])
    assert merge_error.exit_code == 2
