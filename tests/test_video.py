"""Videos made here, fused, and read again."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from test_fuse_cli import fuse
from tiny_project import make_weights, scene

av = pytest.importorskip("av", reason="videos need the extra `video`")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    make_weights(tmp_path / "runs/demo/visible_infrared/weights.safetensors", "visible_infrared")
    monkeypatch.setattr("model.inference.SHIPPED", tmp_path / "shipped")
    return tmp_path


def film(path: str, frames: list[np.ndarray], rate: int | Fraction = 10, sound: bool = False) -> None:
    """Write frames (3, H, W) in [0, 1], and a second of sound for every ten."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "4"})
        stream.height, stream.width = frames[0].shape[1:]
        stream.pix_fmt = "yuv444p" if frames[0].shape[1] % 2 else "yuv420p"
        audio = container.add_stream("aac", rate=16000, layout="mono") if sound else None
        for pixels in frames:
            values = np.ascontiguousarray((pixels * 255).round().astype(np.uint8).transpose(1, 2, 0))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(values, format="rgb24")))
        container.mux(stream.encode())
        if audio is not None:
            wave = np.sin(np.arange(1600 * len(frames)) * 0.2).astype(np.float32)
            for start in range(0, len(wave), 1024):
                frame = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], "fltp", "mono")
                frame.sample_rate, frame.pts = 16000, start
                container.mux(audio.encode(frame))
            container.mux(audio.encode())


def frames_of(path: str | Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def grey(seed: int, size: tuple[int, int]) -> np.ndarray:
    return np.repeat(scene(seed, 1, *size), 3, axis=0)


def test_a_static_scene_does_not_flicker_and_keeps_its_sound(folder: Path) -> None:
    size = (48, 64)
    film("a.mp4", [scene(1, 3, *size)] * 12, sound=True)
    film("b.mp4", [grey(2, size)] * 12)
    code, said = fuse("--video", "b.mp4", "a.mp4", "-o", "out.mp4")
    assert code == 0, said
    assert "out.mp4: visible_infrared (a.mp4 + b.mp4), 12 frames" in said
    fused = np.stack(frames_of("out.mp4")).astype(np.float64)
    assert fused.shape == (12, *size, 3)
    assert np.abs(np.diff(fused, axis=0)).mean(axis=(1, 2, 3)).max() < 1
    with av.open("a.mp4") as given, av.open("out.mp4") as written:
        assert float(written.streams.video[0].average_rate) == 10
        samples = [
            np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
            for container in (given, written)
        ]
    assert np.array_equal(*samples)
    assert not list(folder.glob("*.tmp"))


def test_frames_go_together_and_become_what_images_would(folder: Path) -> None:
    size = (32, 48)
    film("visible.mp4", [np.full((3, *size), level, np.float32) for level in (0.2, 0.4, 0.6, 0.8)])
    film("infrared.mp4", [np.full((3, *size), level, np.float32) for level in (0.8, 0.2, 0.5, 0.1)])
    assert fuse("--video", "visible.mp4", "infrared.mp4", "-o", "out.mkv")[0] == 0
    from model.inference import fuse as fuse_arrays
    from model.inference import load_weights

    fuser = load_weights("visible_infrared")
    pairs = zip(frames_of("visible.mp4"), frames_of("infrared.mp4"), strict=True)
    for found, (visible, infrared) in zip(frames_of("out.mkv"), pairs, strict=True):
        expected = 255 * fuse_arrays([visible, infrared], fuser).transpose(1, 2, 0)
        assert np.abs(found - expected).mean() < 3


def test_other_rates_and_lengths_are_remarked_on() -> None:
    size = (32, 32)
    levels = np.linspace(0.1, 0.9, 20)
    film("visible.mp4", [np.full((3, *size), 0.5, np.float32)] * 10, rate=10)
    film("infrared.mp4", [np.full((3, *size), level, np.float32) for level in levels], rate=20)
    code, said = fuse("--video", "visible.mp4", "infrared.mp4", "-o", "out.mp4")
    assert code == 0
    assert "infrared.mp4 has 20.000 frames per second, visible.mp4 10.000" in said
    assert "10 frames" in said
    film("infrared.mp4", [np.full((3, *size), 0.1, np.float32)] * 4, rate=10)
    code, said = fuse("--video", "visible.mp4", "infrared.mp4", "-o", "out.mp4", "--overwrite")
    assert code == 0
    assert "infrared.mp4 is shorter: the result ends with it, after 4 frames" in said
    assert len(frames_of("out.mp4")) == 4


def test_odd_sizes_come_back() -> None:
    film("visible.mp4", [scene(1, 3, 33, 45)] * 2)
    film("infrared.mp4", [grey(2, (33, 45))] * 2)
    assert fuse("--video", "visible.mp4", "infrared.mp4", "-o", "out.mp4")[0] == 0
    assert frames_of("out.mp4")[0].shape == (33, 45, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["visible.mp4", "infrared.mp4", "-o", "out.gif"], "cannot write '.gif'"),
        (["visible.mp4", "small.mp4", "-o", "out.mp4", "--task", "visible_infrared"], "register and resize"),
        (["visible.mp4", "none.mp4", "-o", "out.mp4"], "no such video"),
        (["visible.mp4", "text.mp4", "-o", "out.mp4"], "cannot be read as a video"),
        (["visible.mp4", "-o", "out.mp4", "--task", "visible_infrared"], "give two or more"),
        (["visible.mp4", "infrared.mp4", "-o", "visible.mp4", "--overwrite"], "is a source"),
        (["visible.mp4", "infrared.mp4", "-o", "infrared.mp4"], "exists"),
        (["a.mp4", "b.mp4", "-o", "out.mp4", "--masks", "m.png"], "--masks does nothing for videos"),
        (["a.mp4", "b.mp4", "-o", "out.mp4", "--caption", ""], "--caption does nothing for videos"),
        (["a.mp4", "b.mp4", "-o", "out.mp4", "--compile"], "--compile does nothing for videos"),
        (["--dataset", "demo", "-o", "out.mp4"], "--dataset does nothing for videos"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    film("visible.mp4", [scene(1, 3, 32, 32)] * 2)
    film("infrared.mp4", [grey(2, (32, 32))] * 2)
    film("small.mp4", [grey(2, (32, 48))] * 2)
    Path("text.mp4").write_text("no video")
    before = Path("visible.mp4").read_bytes()
    code, said = fuse("--video", *arguments)
    assert code == 2
    assert message in said
    assert not Path("out.mp4").exists()
    assert Path("visible.mp4").read_bytes() == before
