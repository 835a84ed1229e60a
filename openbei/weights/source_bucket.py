"""A folder of a bucket, or of any file system that fsspec knows, which asks for a package of its own for each.

Owns what is asked of fsspec, and what its errors mean; the credentials are where each of its file systems keeps them.
"""

import contextlib
from collections.abc import Iterator
from urllib.parse import urlsplit

from openbei.errors import ModelNotFound
from openbei.weights.manifest import NAME, parse_manifest
from openbei.weights.remote import CHUNK_BYTES, RemoteFile, Transient, hide_secrets
from openbei.weights.repo import is_of_model

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
FORBIDDEN = (401, 403)


class Bucket:
    """A folder of a file system that fsspec knows."""

    def __init__(self, url: str) -> None:
        import fsspec  # type: ignore[import-untyped]

        self.shown = hide_secrets(url)
        scheme = urlsplit(url).scheme
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except ImportError as error:
            how = f": pip install 'openbei[{EXTRAS[scheme]}]'" if scheme in EXTRAS else ""
            raise ModelNotFound(f"{scheme}:// needs a package{how} ({error})") from error
        except ValueError as error:
            raise ModelNotFound(f"{self.shown} is no address that fsspec knows: {error}") from error

    def list(self) -> dict[str, RemoteFile]:
        """The files of a model that lie below the address."""
        try:
            with self._told(self.shown):
                self._fs.invalidate_cache()
                paths = self._fs.find(self._root)
        except FileNotFoundError:  # of the bucket itself
            return {}
        names = {path.removeprefix(self._root).lstrip("/") for path in paths}
        if NAME in names:
            data = b"".join(self._chunks(NAME, 0))
            wanted = names & {NAME, *parse_manifest(data, f"{self.shown}/{NAME}").files}
        else:
            wanted = {name for name in names if is_of_model(name)}
        looked = {name: self.look(name) for name in sorted(wanted)}
        return {name: file for name, file in looked.items() if file is not None}

    def look(self, name: str) -> RemoteFile | None:
        """What the file system says of it now, and not what it remembers."""
        path = f"{self._root}/{name}"
        try:
            with self._told(f"{self.shown}/{name}"):
                self._fs.invalidate_cache(self._root)
                return RemoteFile(self._fs.info(path)["size"], str(self._fs.ukey(path)))
        except FileNotFoundError:
            return None

    def read(self, name: str, offset: int) -> tuple[int, Iterator[bytes]]:
        """From offset on."""
        return offset, self._chunks(name, offset)

    def _chunks(self, name: str, offset: int) -> Iterator[bytes]:
        with self._told(f"{self.shown}/{name}"), self._fs.open(f"{self._root}/{name}", "rb") as file:
            file.seek(offset)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    @contextlib.contextmanager
    def _told(self, shown: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:  # each file system raises its own
            if _is_forbidden(error):
                raise ModelNotFound(f"{shown} is forbidden: check the credentials that fsspec finds") from error
            raise Transient(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def _is_forbidden(error: Exception) -> bool:
    """True of what will not pass: no credentials, or wrong ones, as s3fs, gcsfs and adlfs say it."""
    status = getattr(error, "status_code", getattr(error, "code", None))
    named = any(word in type(error).__name__ for word in ("Permission", "Credential", "Auth"))
    return named or status in FORBIDDEN or str(error).startswith("Forbidden")
