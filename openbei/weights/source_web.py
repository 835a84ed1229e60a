"""A folder of a web server, read with the standard library.

A web server lists nothing, so files are asked for by name. Owns which names those are, what is sent, and what an answer
other than 200 means.
"""

import contextlib
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from openbei.errors import ModelNotFound
from openbei.weights.manifest import NAME, parse_manifest
from openbei.weights.remote import CHUNK_BYTES, TRANSIENT, RemoteFile, Transient, hide_secrets
from openbei.weights.repo import FILES, TORCH_FILES

# What modules.json and the indexes name is asked for after these.
PLAIN_NAMES = (
    *(name for name in (*FILES, *TORCH_FILES, NAME) if "*" not in name),
    "sentence_bert_config.json",
)
MODULE_NAMES = ("config.json", "model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
FORBIDDEN = (401, 403)

T = TypeVar("T")


class _SameMethod(urllib.request.HTTPRedirectHandler):
    """A HEAD that is sent on stays one; older Pythons make it a GET, of a whole file that nobody reads."""

    def redirect_request(self, req: urllib.request.Request, *args: Any) -> urllib.request.Request | None:
        sent_on = super().redirect_request(req, *args)
        if sent_on is not None:
            sent_on.method = req.get_method()
        return sent_on


_OPENER = urllib.request.build_opener(_SameMethod)


class Web:
    """A folder of a web server. Its query, which may be a signature, is sent with every file."""

    def __init__(self, url: str, token: str | None, timeout_s: float) -> None:
        parts = urlsplit(url)
        if parts.username is not None:
            raise ModelNotFound(
                f"{hide_secrets(url)} must not hold a user or password: give a token with --source-token"
            )
        self.shown = hide_secrets(url)
        self._query = f"?{parts.query}" if parts.query else ""
        self._token, self._timeout_s = token, timeout_s

    def list(self) -> dict[str, RemoteFile]:
        """Those that answer a HEAD, of the names known beforehand and of those that their files name."""
        found = self._those_of(PLAIN_NAMES)
        if NAME in found:
            _, chunks = self.read(NAME, 0)
            return found | self._those_of(parse_manifest(b"".join(chunks), f"{self.shown}/{NAME}").files)
        more: set[str] = set()
        if "modules.json" in found:
            folders = self._read_json("modules.json", lambda entries: [entry.get("path") for entry in entries])
            more |= {f"{folder}/{name}" for folder in folders if folder for name in (*MODULE_NAMES, *PLAIN_NAMES)}
        for index in INDEXES:
            if index in found:
                more |= self._read_json(index, lambda tree: set(tree["weight_map"].values()))
        return found | self._those_of(sorted(more))

    def look(self, name: str) -> RemoteFile | None:
        """What a HEAD says."""
        try:
            with self._open(name, "HEAD") as answer:
                length, tag = answer.headers.get("Content-Length"), answer.headers.get("ETag")
                return RemoteFile(int(length) if length else None, tag or answer.headers.get("Last-Modified"))
        except FileNotFoundError:
            return None

    def read(self, name: str, offset: int) -> tuple[int, Iterator[bytes]]:
        """A GET, from offset on where the server knows ranges."""
        answer = self._open(name, "GET", {"Range": f"bytes={offset}-"} if offset else {})
        return (offset if answer.status == 206 else 0), self._chunks(answer)

    def _those_of(self, names: Any) -> dict[str, RemoteFile]:
        looked = {name: self.look(name) for name in names}
        return {name: file for name, file in looked.items() if file is not None}

    def _read_json(self, name: str, pick: Callable[[Any], T]) -> T:
        _, chunks = self.read(name, 0)
        try:
            return pick(json.loads(b"".join(chunks)))
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise ModelNotFound(f"{self.shown}/{name} is not what it should be: {error!r}") from error

    def _open(self, name: str, method: str, headers: dict[str, str] | None = None) -> Any:
        request = urllib.request.Request(f"{self.shown}/{name}{self._query}", method=method, headers=headers or {})
        request.add_header("Accept-Encoding", "identity")
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")  # not where it may send us
        with self._told():
            return _OPENER.open(request, timeout=self._timeout_s)

    def _chunks(self, answer: Any) -> Iterator[bytes]:
        with answer, self._told():
            while chunk := answer.read(CHUNK_BYTES):
                yield chunk

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except urllib.error.HTTPError as error:
            with error:
                self._refuse(error)
        except http.client.IncompleteRead as error:
            raise Transient("the connection ended early") from error
        except (OSError, http.client.HTTPException) as error:
            raise Transient(str(getattr(error, "reason", None) or error or type(error).__name__)) from error

    def _refuse(self, error: urllib.error.HTTPError) -> NoReturn:
        if error.code in (404, 410):
            raise FileNotFoundError(error.code)
        if error.code in TRANSIENT:
            pause = error.headers.get("Retry-After") or ""
            raise Transient(f"it answers {error.code} {error.reason}", float(pause) if pause.isdigit() else None)
        advice = "give a token with --source-token" if error.code in FORBIDDEN else "check the address"
        raise ModelNotFound(f"{self.shown} answers {error.code} {error.reason}: {advice}")
