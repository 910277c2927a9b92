"""A model hub on this machine that takes commits: what its client asks to create, push, resolve and fetch."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class WritableHub:
    """One repository: its commits as files by path, the newest one, and every request that was made."""

    repository: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    newest: str = ""
    requests: list[str] = field(default_factory=list)
    address: str = ""

    def commit(self, files: dict[str, bytes]) -> str:
        """Add a commit with these files on top of the newest; returns its name."""
        content = {**self.commits.get(self.newest, {}), **files}
        listed = "".join(f"{name} {hashlib.sha1(body).hexdigest()}" for name, body in sorted(content.items()))
        self.newest = hashlib.sha1(f"{len(self.commits)} {listed}".encode()).hexdigest()
        self.commits[self.newest] = content
        return self.newest

    def at(self, revision: str) -> dict[str, bytes] | None:
        """The files of a branch `main` or a commit."""
        return self.commits.get(self.newest if revision == "main" else revision)


@contextmanager
def running(hub: WritableHub) -> Iterator[WritableHub]:
    """Serve the hub at `hub.address`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            api = f"/api/models/{hub.repository}"
            if path.startswith(f"{api}/tree/"):
                files = hub.at(path.removeprefix(f"{api}/tree/"))
                entries = [
                    {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                    for name, body in (files or {}).items()
                ]
                self.answer(entries)
            elif path == api or path.startswith(f"{api}/revision/"):
                revision = path.removeprefix(f"{api}/revision/") if path != api else "main"
                commit = hub.newest if revision == "main" else revision
                if commit not in hub.commits:
                    self.missing("RevisionNotFound")
                else:
                    siblings = [{"rfilename": name} for name in hub.commits[commit]]
                    self.answer({"id": hub.repository, "sha": commit, "siblings": siblings, "tags": []})
            elif path.startswith(f"/{hub.repository}/resolve/"):
                revision, _, name = path.removeprefix(f"/{hub.repository}/resolve/").partition("/")
                body = (hub.at(revision) or {}).get(name)
                if body is None:
                    self.missing("EntryNotFound")
                else:
                    commit = hub.newest if revision == "main" else revision
                    tag = hashlib.sha1(body).hexdigest()
                    self.send(200, body, {"ETag": f'"{tag}"', "X-Repo-Commit": commit})
            else:
                self.missing("RepoNotFound")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"POST {path}")
            body = self.rfile.read(int(self.headers["Content-Length"]))
            api = f"/api/models/{hub.repository}"
            if self.headers.get("Authorization") != "Bearer hf_writer":
                self.send(401, b'{"error": "no right to write"}', {})
            elif path == "/api/repos/create":
                self.answer({"url": f"{hub.address}/{hub.repository}", "id": hub.repository})
            elif path == "/api/validate-yaml":
                self.answer({"errors": [], "warnings": []})
            elif path == f"{api}/preupload/main":
                asked = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in asked]
                self.answer({"files": modes})
            elif path == f"{api}/commit/main":
                lines = [json.loads(line) for line in body.splitlines()]
                files = [line["value"] for line in lines if line["key"] == "file"]
                commit = hub.commit({file["path"]: base64.b64decode(file["content"]) for file in files})
                url = f"{hub.address}/{hub.repository}/commit/{commit}"
                self.answer({"success": True, "commitOid": commit, "commitUrl": url})
            else:
                self.missing("RepoNotFound")

        def answer(self, value: object) -> None:
            self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def missing(self, code: str) -> None:
            self.send(404, b"", {"X-Error-Code": code})

        def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
