"""Serve the page of `rwkvfusion app`, with one temporary folder that is deleted at the end."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.app_examples import draw_examples
from model.app_visit import offered_weights
from model.sample import Settings
from pipeline.errors import InputError

LOOPBACK = ("127.0.0.1", "localhost")
OVERHEAD = 2**20  # bytes that a request may have beside the file it uploads


def serve(
    host: str,
    port: int | None,
    most_bytes: int,
    weights: Sequence[str],
    settings: Settings,
    ready: Callable[[str], None],
) -> None:
    """Serve the page until Ctrl-C or SIGTERM; ``ready`` is told its address.

    ``port``: None takes the first free one from 7860 on. ``most_bytes`` of one upload. Raises InputError for
    a missing extra, bad weights, and an address that cannot be used.
    """
    offered = offered_weights(weights)
    with _temporary_folder() as folder, _until_told() as stopped:
        _prepare_environment(folder)
        try:
            import gradio as gr
        except ImportError as error:
            raise InputError(f"{error}; the page needs the extra: pip install 'rwkvfusion[app]'") from error
        from model.app_page import CSS, Page

        page = Page(folder, offered, settings, draw_examples(folder / "examples"))
        system = ["system-ui", "sans-serif"]  # a font by name only: gradio's own themes would load theirs
        try:
            _, address, _ = page.blocks.queue(default_concurrency_limit=1).launch(
                server_name=host,
                server_port=port,
                max_file_size=most_bytes,
                app_kwargs={"middleware": _guards(host, most_bytes)},
                theme=gr.themes.Soft(font=system, font_mono=["monospace"]),
                css=CSS,
                share=False,
                allowed_paths=[],
                blocked_paths=[],
                root_path="",
                enable_monitoring=False,
                ssr_mode=False,
                mcp_server=False,
                run_history=False,
                footer_links=[],
                prevent_thread_lock=True,
                quiet=True,
            )
        except OSError as error:
            raise InputError(f"cannot serve on {host} ({error}); give another --host or --port") from error
        try:
            ready(address)
            stopped.wait()
        finally:
            page.blocks.close(verbose=False)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """The only folder that is written to, also by what asks Python for temporary files."""
    with tempfile.TemporaryDirectory(prefix="rwkvfusion-app-") as name:
        before, tempfile.tempdir = tempfile.tempdir, name
        try:
            yield Path(name).resolve()
        finally:
            tempfile.tempdir = before


@contextmanager
def _until_told() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, so that the folder is deleted then too; Ctrl-C raises as ever."""
    stopped = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, before)


def _prepare_environment(folder: Path) -> None:
    """What gradio reads from the environment when it is imported: where it writes, and nothing outside."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(folder / "cache")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    for name in ("GRADIO_VIBE_MODE", "GRADIO_WATCH_DIRS", "GRADIO_NUM_WORKERS"):
        os.environ.pop(name, None)


def _guards(host: str, most_bytes: int) -> list[Any]:
    """Before gradio sees a request: its host, its size, and that it does not ask for another server's file.

    A page of any name that leads to this machine could otherwise be made to talk to a page meant for
    localhost.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    guards = [Middleware(_Guard, most_bytes=most_bytes + OVERHEAD)]
    if host in LOOPBACK:
        guards.append(Middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK)))
    return guards


class _Guard:
    """ASGI middleware that refuses large requests, and gradio's ways to fetch from other servers."""

    def __init__(self, app: Any, most_bytes: int) -> None:
        self.app, self.most_bytes = app, most_bytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.exceptions import HTTPException
        from starlette.responses import PlainTextResponse

        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if "/proxy=" in scope["path"] or "/file=http" in scope["path"]:
            return await PlainTextResponse("not served", 403)(scope, receive, send)
        taken = 0

        async def limited() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.most_bytes:
                raise HTTPException(413, "too large")
            return message

        return await self.app(scope, limited, send)
