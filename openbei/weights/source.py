"""A model on a web server or in a bucket -> a folder on this disk: resumed, retried, never of two states of it.

https:// is read with the standard library; s3://, gs://, az:// and the rest by fsspec, which asks for a package of its
own for each. Owns which files are asked for, how they arrive whole, and what is said when they do not; never reads
weights. A URL may hold secrets: only `shown` is ever printed or written down.
"""

import contextlib
import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar
from urllib.parse import urlsplit, urlunsplit

from openbei.errors import ModelNotFound
from openbei.weights.manifest import NAME, OnBytes
from openbei.weights.repo import FILES, TORCH_FILES, is_of_model

PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}
# A web server lists nothing, so these are asked for by name; what modules.json and the indexes name comes after them.
PLAIN_NAMES = (
    *(name for name in (*FILES, *TORCH_FILES, NAME) if "*" not in name),
    "sentence_bert_config.json",
)
MODULE_NAMES = ("config.json", "model.safetensors", "pytorch_model.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
FORBIDDEN = (401, 403)
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_CHUNK_BYTES = 1 << 20

T = TypeVar("T")


class Transient(Exception):
    """It may work the next time. pause_s: what the server asks for, if it does."""

    def __init__(self, message: str, pause_s: float | None = None) -> None:
        super().__init__(message)
        self.pause_s = pause_s


@dataclass(frozen=True, slots=True)
class Patience:
    """How often, and how long. pauses_s: between attempts, so there is one attempt more; timeout_s: without a byte."""

    pauses_s: tuple[float, ...] = (1, 2, 5, 10)
    timeout_s: float = 30
    max_pause_s: float = 60


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What its server says of a file before it is read. tag: changes when the file does; None where that is unknown."""

    size_bytes: int | None
    tag: str | None


class Remote(Protocol):
    """Where files are read. shown: its address without secrets."""

    shown: str

    def list(self) -> dict[str, RemoteFile]:
        """The files of a model that are there, by path. Raises Transient, ModelNotFound."""
        ...

    def look(self, name: str) -> RemoteFile | None:
        """One of them, None if it is not there. Raises Transient, ModelNotFound."""
        ...

    def read(self, name: str, offset: int) -> tuple[int, Iterator[bytes]]:
        """The bytes from offset on, or from the start where that cannot be: the offset, and them. Raises Transient."""
        ...


def is_url(model: str) -> bool:
    """True of s3://bucket/path and the like."""
    return "://" in model


def hide_secrets(url: str) -> str:
    """A URL without user, password, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", ""))


def open_remote(url: str, token: str | None, patience: Patience) -> Remote:
    """A URL -> where its files are read. token: sent to web servers as a bearer. Raises ModelNotFound."""
    if urlsplit(url).scheme in ("http", "https"):
        return _Web(url, token, patience.timeout_s)
    return _Bucket(url)


def state_of(files: dict[str, RemoteFile]) -> str:
    """A listing -> 64 hexadecimal digits that change when a file of it does, as far as the server tells."""
    rows = sorted((name, file.size_bytes, file.tag) for name, file in files.items())
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def list_remote(remote: Remote, patience: Patience) -> dict[str, RemoteFile]:
    """The model's files. Raises ModelNotFound, also if there is no config.json."""
    files = patiently(remote.list, remote.shown, patience)
    if not any(name.rpartition("/")[2] == "config.json" for name in files):
        raise ModelNotFound(f"{remote.shown} has no config.json: give the address of the folder that holds it")
    return files


def fetch(
    remote: Remote, files: dict[str, RemoteFile], folder: Path, patience: Patience, on_bytes: OnBytes = lambda _: None
) -> None:
    """Bring the listed files into folder. What is there whole is kept, what is there in part is resumed.

    A file is called NAME.part until it is whole. Raises ModelNotFound, also if a file changed since it was listed.
    """
    for name, file in files.items():
        target = folder / name
        if not target.resolve().is_relative_to(folder.resolve()):
            raise ModelNotFound(f"{remote.shown} names a file outside of its folder: {name!r}")
        if target.exists() and (file.size_bytes is None or target.stat().st_size == file.size_bytes):
            on_bytes(target.stat().st_size)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")

        def attempt(name: str = name, file: RemoteFile = file, part: Path = part) -> None:
            _receive(remote, name, file, part, on_bytes)

        patiently(attempt, f"{remote.shown}/{name}", patience)
        part.rename(target)


def _receive(remote: Remote, name: str, file: RemoteFile, part: Path, on_bytes: OnBytes) -> None:
    have = part.stat().st_size if part.exists() else 0
    if have == 0 or have != file.size_bytes:
        try:
            offset, chunks = remote.read(name, have)
        except FileNotFoundError as error:
            raise ModelNotFound(f"{remote.shown}/{name} vanished while it was fetched: build again") from error
        with part.open("ab") as out:
            out.truncate(offset)
            for chunk in chunks:
                out.write(chunk)
                on_bytes(len(chunk))
        have = part.stat().st_size
    if remote.look(name) != file or (file.size_bytes is not None and have > file.size_bytes):
        part.unlink()
        raise ModelNotFound(f"{remote.shown}/{name} changed while it was fetched: build again")
    if file.size_bytes is not None and have < file.size_bytes:
        raise Transient(f"it ended after {have} of {file.size_bytes} bytes")


def read_all(remote: Remote, name: str, patience: Patience) -> bytes:
    """A small file's bytes. Raises ModelNotFound."""
    return patiently(lambda: b"".join(remote.read(name, 0)[1]), f"{remote.shown}/{name}", patience)


def patiently(action: Callable[[], T], shown: str, patience: Patience) -> T:
    """Try, and after a Transient error try again, as often as patience allows; then raise ModelNotFound."""
    for pause_s in (*patience.pauses_s, None):
        try:
            return action()
        except Transient as error:
            if pause_s is None:
                attempts = len(patience.pauses_s) + 1
                raise ModelNotFound(
                    f"{shown} could not be fetched in {attempts} attempts: {error}; build again to go on from there"
                ) from error
            time.sleep(min(max(pause_s, error.pause_s or 0), patience.max_pause_s))
    raise AssertionError("unreachable")


class _Web:
    """A folder of a web server. Its query, which may be a signature, is sent with every file."""

    def __init__(self, url: str, token: str | None, timeout_s: float) -> None:
        parts = urlsplit(url)
        if parts.username is not None:
            raise ModelNotFound(f"{hide_secrets(url)} must not hold a user or password: give a token with --token-file")
        self.shown = hide_secrets(url)
        self._query = f"?{parts.query}" if parts.query else ""
        self._token, self._timeout_s = token, timeout_s

    def list(self) -> dict[str, RemoteFile]:
        found = self._those_of(PLAIN_NAMES)
        if NAME in found:
            return found | self._those_of(self._json(NAME).get("files", {}))
        more: set[str] = set()
        if "modules.json" in found:
            folders = [entry["path"] for entry in self._json("modules.json") if entry.get("path")]
            more |= {f"{folder}/{name}" for folder in folders for name in (*MODULE_NAMES, *PLAIN_NAMES)}
        for index in INDEXES:
            if index in found:
                more |= set(self._json(index).get("weight_map", {}).values())
        return found | self._those_of(sorted(more))

    def look(self, name: str) -> RemoteFile | None:
        try:
            with self._open(name, "HEAD") as answer:
                length, tag = answer.headers.get("Content-Length"), answer.headers.get("ETag")
                return RemoteFile(int(length) if length else None, tag or answer.headers.get("Last-Modified"))
        except FileNotFoundError:
            return None

    def read(self, name: str, offset: int) -> tuple[int, Iterator[bytes]]:
        answer = self._open(name, "GET", {"Range": f"bytes={offset}-"} if offset else {})
        return (offset if answer.status == 206 else 0), self._chunks(answer)

    def _those_of(self, names: Any) -> dict[str, RemoteFile]:
        looked = {name: self.look(name) for name in names}
        return {name: file for name, file in looked.items() if file is not None}

    def _json(self, name: str) -> Any:
        _, chunks = self.read(name, 0)
        try:
            return json.loads(b"".join(chunks))
        except ValueError as error:
            raise ModelNotFound(f"{self.shown}/{name} is not JSON: {error}") from error

    def _open(self, name: str, method: str, headers: dict[str, str] | None = None) -> Any:
        request = urllib.request.Request(f"{self.shown}/{name}{self._query}", method=method, headers=headers or {})
        request.add_header("Accept-Encoding", "identity")
        if self._token:
            request.add_unredirected_header("Authorization", f"Bearer {self._token}")  # for this server alone
        with self._told():
            return urllib.request.urlopen(request, timeout=self._timeout_s)

    def _chunks(self, answer: Any) -> Iterator[bytes]:
        with answer, self._told():
            while chunk := answer.read(_CHUNK_BYTES):
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
        advice = "give a token with --token-file" if error.code in FORBIDDEN else "check the address"
        raise ModelNotFound(f"{self.shown} answers {error.code} {error.reason}: {advice}")


class _Bucket:
    """A folder of a file system that fsspec knows; the credentials are where that system keeps them."""

    def __init__(self, url: str) -> None:
        import fsspec  # type: ignore[import-untyped]

        self.shown = hide_secrets(url)
        scheme = urlsplit(url).scheme
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            package = PACKAGES.get(scheme, "the one that fsspec names")
            raise ModelNotFound(f"{scheme}:// needs a package: pip install {package} ({error})") from error
        except ValueError as error:
            raise ModelNotFound(f"{self.shown} is no address that fsspec knows: {error}") from error

    def list(self) -> dict[str, RemoteFile]:
        with self._told(self.shown):
            self._fs.invalidate_cache()
            paths = self._fs.find(self._root)
        names = [path.removeprefix(self._root).lstrip("/") for path in paths]
        looked = {name: self.look(name) for name in names if name == NAME or is_of_model(name)}
        return {name: file for name, file in looked.items() if file is not None}

    def look(self, name: str) -> RemoteFile | None:
        path = f"{self._root}/{name}"
        try:
            with self._told(f"{self.shown}/{name}"):
                self._fs.invalidate_cache(self._root)
                return RemoteFile(self._fs.info(path)["size"], str(self._fs.ukey(path)))
        except FileNotFoundError:
            return None

    def read(self, name: str, offset: int) -> tuple[int, Iterator[bytes]]:
        return offset, self._chunks(name, offset)

    def _chunks(self, name: str, offset: int) -> Iterator[bytes]:
        with self._told(f"{self.shown}/{name}"), self._fs.open(f"{self._root}/{name}", "rb") as file:
            file.seek(offset)
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk

    @contextlib.contextmanager
    def _told(self, shown: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except PermissionError as error:
            raise ModelNotFound(f"{shown} is forbidden: check the credentials that fsspec finds") from error
        except Exception as error:  # each file system raises its own
            raise Transient(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
