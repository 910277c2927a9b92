"""A model hub on this machine: enough of the protocol for the real client to download from it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import huggingface_hub.constants
import pytest


class Hub:
    """Files by `repo/resolve/revision/path`; `breaks_at` closes a download after that many bytes."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.breaks_at: int | None = None
        self.ranges: list[str | None] = []


@contextmanager
def running(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve `hub` and let addresses lead to it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = hub.files.get(self.path.lstrip("/"))
            wanted = self.headers.get("Range")
            start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
            if body is not None and start >= len(body):
                self.send_error(416)
                return
            if body is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.end_headers()
            hub.ranges.append(wanted)
            end = len(body) if hub.breaks_at is None else max(start, hub.breaks_at)
            self.wfile.write(body[start:end])
            if end < len(body):
                self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", partial(huggingface_hub.hf_hub_url, endpoint=endpoint))
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
