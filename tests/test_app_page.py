"""The page of `rwkvfusion app` in a browser, and what nobody may get from its server."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_project import make_weights, scene
from typer.testing import CliRunner

from model.app_examples import draw_examples
from model.cli import app as commands
from pipeline.images import read_image, write_image

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 2 * 2**20


@dataclass(frozen=True)
class Server:
    """A running page: its address, the folder it writes to, its process."""

    port: int
    folder: Path
    process: subprocess.Popen[str]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
        """Status and body, the path sent exactly as it is written."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.putrequest("GET", path, skip_host=bool(headers and "Host" in headers))
        for name, value in (headers or {}).items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.read()

    def upload(self, name: str, content: bytes) -> tuple[int, str]:
        """Send a file as the page does."""
        body = (
            f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'.encode()
            + content
            + b"\r\n--x--\r\n"
        )
        request = urllib.request.Request(
            f"{self.address}/gradio_api/upload",
            body,
            {"Content-Type": "multipart/form-data; boundary=x"},
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`rwkvfusion app` in a process of its own, whose temporary files have a place of their own."""
    pytest.importorskip("gradio", reason="the extra `app` is not installed")
    temporary, elsewhere = tmp_path_factory.mktemp("temporary"), tmp_path_factory.mktemp("elsewhere")
    own = tmp_path_factory.mktemp("own") / "told.safetensors"
    make_weights(own, "multi_focus", encoder="classical-texts-1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "model",
            "app",
            "--port",
            str(port),
            "--max-upload",
            f"{MOST_BYTES // 2**20}MiB",
            "--weights",
            str(own),
        ],
        cwd=elsewhere,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert f"open http://127.0.0.1:{port}/" in process.stdout.readline()
    (folder,) = temporary.iterdir()
    yield Server(port, folder, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert list(temporary.iterdir()) == [], "everything written is deleted at the end"
    assert list(elsewhere.iterdir()) == [], "nothing is written where it was started"


@pytest.fixture
def page(server: Server, browser: Any) -> Iterator[Any]:
    """The page in a fresh session; fails if it asks anybody else for anything, or its script breaks."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.set_default_timeout(90_000)  # it is the machine that is slow
    opened = context.new_page()
    problems: list[str] = []
    own = (server.address, "data:", "blob:")
    opened.on("request", lambda asked: None if asked.url.startswith(own) else problems.append(asked.url[:99]))
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.goto(server.address)
    opened.wait_for_selector("#fuse")
    yield opened
    if "SCREENSHOTS" in os.environ:  # to look at the page: SCREENSHOTS=folder pytest -m browser
        opened.screenshot(path=Path(os.environ["SCREENSHOTS"]) / "app.png", full_page=True)
    context.close()
    assert problems == []


def drop(page: Any, first: Path, second: Path) -> None:
    page.set_input_files("#first input[type=file]", first)
    page.set_input_files("#second input[type=file]", second)


def fuse(page: Any) -> str:
    """Press the button; what the page says when it has finished."""
    page.evaluate("document.querySelectorAll('#status .said').forEach(line => line.classList.add('old'))")
    page.click("#fuse")
    page.wait_for_selector("#status .said:not(.old)")
    return page.inner_text("#status .said")


def by_command(out: Path, *arguments: object) -> Path:
    """The result of `fuse` on the command line."""
    result = CliRunner().invoke(commands, ["fuse", *map(str, arguments), "-o", str(out)])
    assert result.exit_code == 0, result.output
    return out


def real_or_drawn_pair(folder: Path) -> tuple[Path, Path]:
    """A pair of RoadScene where real images are at hand, a scene of the embedded data set elsewhere."""
    real = ROOT.parent / "shared" / "data" / "visible_infrared" / "roadscene"
    if real.is_dir():
        name = sorted(path.name for path in (real / "visible").iterdir())[0]
        return real / "visible" / name, real / "infrared" / name
    first, second = draw_examples(folder)[1].sources
    return first, second


@pytest.mark.browser
@pytest.mark.slow
def test_a_pair_is_fused_compared_measured_and_downloaded(page: Any, tmp_path: Path) -> None:
    first, second = real_or_drawn_pair(tmp_path / "examples")
    drop(page, second, first)  # in the wrong order: told by their colours, or names
    page.wait_for_selector("#told:has-text('visible_infrared (guessed)')")
    page.click("#guidance > button")
    assert page.is_disabled("#caption textarea")
    assert "trained with masks only" in page.inner_text("#encoder")
    assert "visible+infrared), unguided" in fuse(page)
    page.wait_for_selector("table.metrics")
    with page.expect_download() as started:
        page.click("#download")
    content = Path(started.value.path()).read_bytes()
    result = by_command(tmp_path / "out.png", first, second)
    assert content == result.read_bytes()
    assert started.value.suggested_filename == f"{first.stem}_fused.png"
    values = dict(line.split("\t") for line in page.inner_text("table.metrics tbody").splitlines())
    sources = [read_image(path) for path in (first, second)]
    assert len(values) == 7
    assert (
        page.evaluate("[...document.querySelectorAll('.stage img')].map(i => i.naturalHeight)")
        == [sources[0].size[0]] * 3
    )

    def edges() -> list[float]:
        return page.evaluate("[...document.querySelectorAll('.stage input')].map(i => Number(i.value))")

    assert edges() == pytest.approx([100 / 3, 200 / 3], abs=0.1)
    page.focus(".stage input >> nth=0")
    page.keyboard.press("ArrowRight")
    moved = edges()[0]
    assert moved > 33.4
    clip = page.evaluate("document.querySelector('.stage img').style.clipPath")
    assert clip.startswith(f"inset(0px {100 - moved:.4g}"[:12])
    box = page.query_selector(".stage").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + moved / 100 * box["width"], middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.9 * box["width"], middle, steps=4)
    page.mouse.up()
    assert edges() == pytest.approx([90, 90], abs=0.5), "a divider pushes the next one along"


@pytest.mark.browser
@pytest.mark.slow
def test_masks_are_drawn_and_switched_off(page: Any) -> None:
    page.click("#examples button >> nth=1")
    page.wait_for_selector("#told:has-text('visible_infrared (guessed)')")
    assert "guided by masks" in fuse(page), "the example's own"
    page.click("#guidance > button")
    page.click("#guidance button[role=tab]:has-text('Upload')")
    page.click("#masks button[aria-label='Clear']")
    page.click("#guidance button[role=tab]:has-text('Draw')")
    assert "unguided" in fuse(page)
    page.wait_for_selector("#drawing canvas")
    box = page.query_selector("#drawing canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 - 20, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 20, box["y"] + box["height"] / 2, steps=6)
    page.mouse.up()
    assert "guided by masks" in fuse(page), "the drawing"
    page.uncheck("#use_masks input")
    assert "unguided" in fuse(page)


@pytest.mark.browser
@pytest.mark.slow
def test_a_caption_guides_weights_that_know_text(page: Any) -> None:
    page.click("#examples button >> nth=4")
    page.wait_for_selector("#told:has-text('multi_focus (told.safetensors) (guessed)')")
    page.click("#guidance > button")
    assert "classical-texts-1" in page.inner_text("#encoder")
    assert "fence" in page.input_value("#caption textarea")
    page.fill("#caption textarea", "flowers in front of a street")
    assert "guided by text" in fuse(page)
    page.uncheck("#use_text input")
    assert "unguided" in fuse(page)


@pytest.mark.browser
@pytest.mark.slow
def test_errors_are_one_line_and_others_see_nothing(
    page: Any, server: Server, browser: Any, tmp_path: Path
) -> None:
    first, second = real_or_drawn_pair(tmp_path / "examples")
    torn = tmp_path / "a_secret_name.png"
    torn.write_bytes(second.read_bytes()[:300])
    drop(page, first, torn)
    page.wait_for_selector("#told [role=alert]")
    said = page.inner_text("#told")
    assert "a_secret_name.png: cannot be read as an image" in said
    assert "\n" not in said
    page.click("#fuse")
    page.wait_for_selector("#status [role=alert]")
    assert str(server.folder) not in said + page.inner_text("#status")
    assert "Traceback" not in page.content()
    large = tmp_path / "large.png"
    large.write_bytes(bytes(MOST_BYTES + 1))
    page.click("#second button[aria-label='Clear']")
    page.set_input_files("#second input[type=file]", large)
    page.wait_for_selector("text=exceed the maximum allowed size")

    other = browser.new_context().new_page()
    other.goto(server.address)
    other.wait_for_selector("#fuse")
    assert "Drop two images" in other.inner_text("#comparison")
    assert "a_secret_name" not in other.content()
    other.context.close()
    assert b"a_secret_name" not in server.get("/config")[1]


@pytest.mark.slow
def test_the_server_serves_nothing_but_the_page(server: Server, tmp_path: Path) -> None:
    assert server.get("/")[0] == 200
    secret = server.folder / "visit-of-somebody" / "first" / "image.png"
    secret.parent.mkdir(parents=True)
    secret.write_bytes(b"not yours")
    outside = tmp_path / "outside.txt"
    outside.write_text("not yours")
    escapes = [
        f"/gradio_api/file={path}"
        for path in (
            "/etc/passwd",
            secret,
            outside,
            f"{server.folder}/uploads/../{secret.relative_to(server.folder)}",
            f"{server.folder}/uploads/%2e%2e/{secret.relative_to(server.folder)}",
            server.folder / "uploads",
            Path(__file__),
            "model/app_page.py",
            "params.yaml",
            "http://127.0.0.1:9/x",
            "https://example.com/x",
            "file:///etc/passwd",
        )
    ]
    escapes += [
        f"/{kind}/{'../' * 9}etc/passwd" for kind in ("static", "assets", "gradio_api/file", "svelte")
    ]
    escapes += [f"/static/{'%2e%2e/' * 9}etc/passwd", "/gradio_api/proxy=https://example.com/"]
    for path in escapes:
        status, body = server.get(path)
        assert status >= 400, path
        assert b"not yours" not in body, path
        assert b"root:" not in body, path
    assert server.get("/", {"Host": "elsewhere.example"})[0] == 400, "a name that was made to lead here"
    assert server.upload("small.png", bytes(1000))[0] == 200
    assert server.upload("large.png", bytes(MOST_BYTES + 1))[0] == 413
    status, answer = server.upload("../../escaped.png", b"x" * 100)
    assert status == 200
    (uploaded,) = json.loads(answer)
    assert Path(uploaded).resolve().is_relative_to(server.folder / "uploads")


@pytest.mark.slow
def test_a_file_that_was_not_uploaded_is_not_read(server: Server, tmp_path: Path) -> None:
    """What a program, not the page, may ask: to fuse files of this machine."""
    image = tmp_path / "private.png"
    write_image(image, scene(1, 3, 40, 52))
    config = json.loads(server.get("/config")[1])
    looks = next(each for each in config["dependencies"] if len(each["inputs"]) == 5)
    file = {"path": str(image), "meta": {"_type": "gradio.FileData"}}
    asked = {"data": [None, file, file, None, ""], "fn_index": looks["id"], "session_hash": "somebody"}
    request = urllib.request.Request(
        f"{server.address}/gradio_api/queue/join",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 200
    address = f"{server.address}/gradio_api/queue/data?session_hash=somebody"
    events = []
    with urllib.request.urlopen(address, timeout=30) as stream:
        for line in stream:
            if line.startswith(b"data:"):
                events.append(json.loads(line[5:]))
                if events[-1]["msg"] == "process_completed":
                    break
    assert events[-1]["success"] is False
    assert "base64" not in json.dumps(events)
