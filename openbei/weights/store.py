"""The local store of artifacts: one folder each, named by what is in it; and the lock that builds take.

Owns the folder (OPENBEI_HOME, else openbei in XDG_CACHE_HOME or ~/.cache) and what is thrown out when it grows too
large; never looks into an artifact's files.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from openbei.errors import ModelError, ModelNotFound
from openbei.weights.manifest import NAME, Manifest, read_manifest

SHORT = 12  # digits of an id that people see
_SHORTEST = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """One artifact of the store. used_s: time.time() when it was last built or served."""

    folder: Path
    manifest: Manifest
    used_s: float


def store_folder() -> Path:
    """Where the store is; it need not exist."""
    if home := os.environ.get("OPENBEI_HOME"):
        return Path(home).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "openbei"


def artifacts_folder() -> Path:
    """Where the store's artifacts are."""
    return store_folder() / "artifacts"


def list_store() -> list[Entry]:
    """The artifacts of the store, the last used first; what cannot be read is left out, as a build that runs is."""
    entries = []
    root = artifacts_folder()
    for folder in root.iterdir() if root.is_dir() else ():
        with contextlib.suppress(ModelError, OSError):
            manifest = None if folder.name.startswith(".") else read_manifest(folder)
            if manifest is not None:
                entries.append(Entry(folder, manifest, (folder / NAME).stat().st_mtime))
    return sorted(entries, key=lambda entry: entry.used_s, reverse=True)


def find(name: str) -> Entry:
    """The first digits of an id -> the artifact. Raises ModelNotFound, also if several begin so."""
    found = [entry for entry in list_store() if len(name) >= _SHORTEST and entry.folder.name.startswith(name)]
    if len(found) != 1:
        raise ModelNotFound(
            f"{len(found)} artifacts of {artifacts_folder()} have an id that begins with {name!r}; see bei ls"
        )
    return found[0]


def note_use(folder: Path) -> None:
    """Remember that an artifact of the store is used now, if it is one and may be written."""
    if folder.resolve().parent == artifacts_folder().resolve():
        with contextlib.suppress(OSError):
            os.utime(folder / NAME)


def remove(entry: Entry) -> None:
    """Take an artifact away. What maps it meanwhile keeps its files until it ends."""
    hidden = entry.folder.with_name(f".{entry.folder.name}.gone")  # at once no artifact any more, whatever happens
    shutil.rmtree(hidden, ignore_errors=True)
    entry.folder.rename(hidden)
    shutil.rmtree(hidden)


def shrink(max_bytes: int, keep: Path | None = None) -> list[Entry]:
    """Remove the artifacts that were not used for longest until the rest has at most max_bytes; keep stays."""
    total, removed = sum(entry.manifest.size_bytes for entry in list_store()), []
    for entry in reversed(list_store()):
        if total <= max_bytes:
            break
        if entry.folder != keep:
            remove(entry)
            removed.append(entry)
            total -= entry.manifest.size_bytes
    return removed


def sweep() -> int:
    """Clear up after builds, fetches and removals that were killed -> bytes. What runs holds its lock, and stays.

    A fetch that was broken off is cleared up too, though the next build of the same source would have gone on with it.
    """
    folders = {path.with_name(path.stem.removeprefix(".")): path for path in _hidden(artifacts_folder(), "part")}
    folders |= {path: path for path in _visible(_fetched())}
    for lock in [*_hidden(artifacts_folder(), "lock"), *_hidden(_fetched(), "lock")]:
        folders.setdefault(lock.with_name(lock.stem.removeprefix(".")), lock.with_suffix(".part"))
    num_bytes = sum(map(_take_away, _hidden(artifacts_folder(), "gone")))
    for made, left in folders.items():
        with contextlib.suppress(BlockingIOError), locked(lock_of(made), wait=False):
            num_bytes += _take_away(left)
    return num_bytes


def fetched_folder(name: str) -> Path:
    """Where a source of this name is fetched to; who fetches holds the lock beside it."""
    return _fetched() / name


def lock_of(folder: Path) -> Path:
    """The lock file of what is made of a name: a hidden one beside it."""
    return folder.with_name(f".{folder.name}.lock")


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Be the only process of this machine that holds this lock file; a killed process holds none.

    The file is gone afterwards, so whoever waited for it looks whether it is still the one at the path. Raises
    BlockingIOError if another holds it and this one shall not wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_at(file.fileno(), path):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _fetched() -> Path:
    return store_folder() / "fetched"


def _hidden(root: Path, kind: str) -> list[Path]:
    return list(root.glob(f".*.{kind}")) if root.is_dir() else []


def _visible(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if not path.name.startswith(".")] if root.is_dir() else []


def _take_away(folder: Path) -> int:
    """Remove a folder, if it is there -> its bytes."""
    num_bytes = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
    shutil.rmtree(folder, ignore_errors=True)
    return num_bytes
