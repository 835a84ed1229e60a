"""A model hub of the test's own, on loopback: the few endpoints that fetching a snapshot asks for, and faults.

HUB/owner/name/resolve/main is a plain web server's folder of the same files, with ranges.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SHA = "5" * 40
TOKEN = "hf_right"


@dataclass
class Hub:
    """Repositories by id, each a folder; gated and private ids answer as the hub does.

    broken: answer 500 to all. lost: a file that is listed and not there. asked: the files that were fetched.
    faults: by a file's name, or "api", what goes wrong with the next answers: a status; "truncate" (half of it, then
    the connection ends); "hang" (until the hub is let go); "change" (the file, before it is sent); "flip" (one bit).
    ranges: the offsets that were asked for; whole: they are answered with all of the file. retry_after: of 429 and the
    like. tokens: what came as Authorization. sends_to: where files are instead.
    """

    repos: dict[str, Path]
    gated: frozenset[str] = frozenset()
    private: frozenset[str] = frozenset()
    broken: bool = False
    lost: str = ""
    asked: list[str] = field(default_factory=list)
    faults: dict[str, list[int | str]] = field(default_factory=dict)
    ranges: list[int] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)
    let_go: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    sends_to: str = ""
    whole: bool = False
    retry_after: str = "0"


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve a Hub on a free port of 127.0.0.1 until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.let_go.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if api else parts
        repo, rest = f"{owner}/{name}", rest or ["revision", "main"]
        self.hub.tokens.append(self.headers.get("Authorization"))
        if api and self._fault("api"):
            return
        if refused := self._refused(repo, rest[1]):
            self._answer(refused[0], b"{}", {"X-Error-Code": refused[1], "X-Error-Message": refused[1]})
        elif api:
            self._answer_json(self._about(repo, rest[0]))
        else:
            self._send_file("/".join(rest[2:]), self.hub.repos[repo])

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def _refused(self, repo: str, revision: str) -> tuple[int, str] | None:
        if self.hub.broken:
            return 500, "ServerError"
        if repo in self.hub.gated:
            return 403, "GatedRepo"
        if repo in self.hub.private and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, "RepoNotFound"
        if repo not in self.hub.repos:
            return 404, "RepoNotFound"
        return None if revision in ("main", "v1", SHA) else (404, "RevisionNotFound")

    def _about(self, repo: str, kind: str) -> Any:
        folder = self.hub.repos[repo]
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
        if kind == "tree":
            return [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)}
                for name, path in zip(names, files, strict=True)
            ]
        return {"id": repo, "modelId": repo, "sha": SHA, "siblings": [{"rfilename": name} for name in names]}

    def _send_file(self, name: str, folder: Path) -> None:
        if name == self.hub.lost:
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        path = folder / name
        if not path.is_file():
            self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        if self.command == "GET":
            self.hub.asked.append(path.name)
            if self._fault(path.name, path):
                return
        if self.hub.sends_to:
            about = {
                "X-Linked-ETag": f'"{_etag(path)}"',
                "X-Linked-Size": str(path.stat().st_size),
                "X-Repo-Commit": SHA,
            }
            self._answer(302, b"", {"Location": f"{self.hub.sends_to}{self.path}", **about})
            return
        data, start = path.read_bytes(), int(self.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        self.hub.ranges += [start] if start else []
        start = 0 if self.hub.whole else start
        headers = {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": SHA}
        if start:
            headers |= {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        self._answer(206 if start else 200, data[start:], headers)

    def _fault(self, name: str, path: Path | None = None) -> bool:
        """Do the next fault of a name; True if that was the answer."""
        faults = self.hub.faults.get(name)
        fault = faults.pop(0) if faults else None
        if fault is None:
            return False
        if fault == "change":
            assert path is not None
            path.write_bytes(path.read_bytes().replace(b" ", b"\n", 1))  # as long as before
            return False
        if fault == "hang":
            self.hub.let_go.wait(30)
            self.close_connection = True
        elif isinstance(fault, int):
            self._answer(fault, b"{}", {"Retry-After": self.hub.retry_after})
        else:
            assert path is not None
            self._send_damaged(path, fault == "truncate")
        return True

    def _send_damaged(self, path: Path, truncate: bool) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= not truncate
        self.send_response(200)
        for key, value in {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": SHA, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if truncate else data)
        self.close_connection = truncate

    def _answer_json(self, value: Any) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def _etag(path: Path) -> str:
    """What the hub says of files that it keeps in git: the id of the blob."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
