"""A model on a web server or in a bucket -> a folder on this disk: resumed, retried, never of two states of it.

Owns how files arrive whole, and what is said when they do not; never reads weights. How a place is asked is
source_web.py's and source_bucket.py's.
"""

import hashlib
import json
from pathlib import Path
from urllib.parse import urlsplit

from openbei.errors import ModelNotFound
from openbei.weights.manifest import OnBytes
from openbei.weights.remote import Patience, Remote, RemoteFile, Transient, hide_secrets, patiently
from openbei.weights.source_bucket import Bucket
from openbei.weights.source_web import Web

ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")


def is_url(model: str) -> bool:
    """True of s3://bucket/path and the like."""
    return "://" in model


def open_remote(url: str, token: str | None, patience: Patience) -> Remote:
    """A URL -> where its files are read. token: sent to web servers as a bearer. Raises ModelNotFound."""
    if urlsplit(url).path.endswith(ARCHIVES):
        raise ModelNotFound(f"{hide_secrets(url)} is an archive: give the address of a folder that holds the files")
    if urlsplit(url).scheme in ("http", "https"):
        return Web(url, token, patience.timeout_s)
    return Bucket(url)


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
