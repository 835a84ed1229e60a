"""What a web server, a bucket and the hub have in common as places of files: how one is described, and asked again.

Owns the words (Remote, RemoteFile), the patience, and that no secret of an address is shown; never opens one.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar
from urllib.parse import urlsplit, urlunsplit

from openbei.errors import ModelNotFound

TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
CHUNK_BYTES = 1 << 20

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


def hide_secrets(url: str) -> str:
    """A URL without user, password, query and fragment; what stands before the @ of an abfs:// is its container."""
    parts = urlsplit(url)
    before, at, host = parts.netloc.rpartition("@")
    kept = f"{before.partition(':')[0]}{at}{host}" if parts.scheme in ("abfs", "abfss") else host
    return urlunsplit((parts.scheme, kept, parts.path.rstrip("/"), "", ""))


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
