"""manifest.json: what an artifact is made of, and whether the folder still is that.

An artifact is a model's folder that was built once to be served anywhere: every file with its size and sha256, where
they came from, and inputs with the outputs that they must give. Owns the file, its form and the checks of files; never
runs a model, which engine/probe.py does.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import msgspec
import orjson

from openbei.config import DType
from openbei.errors import ModelError, WeightsError
from openbei.model.spec import Output, Pooling

NAME = "manifest.json"
DEPLOYMENT = "config.yaml"  # of the deployment that an artifact was built of; bei serve reads it
FORMAT = "openbei artifact 2"
SMALL_BYTES = 32_000_000  # smaller files are hashed at every start: 0.03 s each at most
_CHUNK_BYTES = 1 << 20
_SUM = b'"sum": "%s"'

OnBytes = Callable[[int], None]  # told how many more bytes are done


@dataclass(frozen=True, slots=True)
class FileFact:
    """One file of an artifact."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Probe:
    """One input, its token ids, and what the network answered to them in float32 when the artifact was built.

    texts: one, or two that are a pair. rows: of each output that the network has, before any activation: one row, or
    where there is one a token, those of some tokens (engine/probe.py says which).
    """

    texts: tuple[str, ...]
    ids: tuple[int, ...]
    type_ids: tuple[int, ...]
    rows: dict[Output, tuple[tuple[float, ...], ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The facts of an artifact. source, revision: where it was fetched, and the commit or the state of it then.

    dtype, pooling: what serves it where the command line does not say. model: what was understood of it, for people.
    files: by path in the folder, "/" between. sum: sha256 of the file without it, so that changes are noticed.
    """

    format: str = FORMAT
    openbei: str
    source: str
    revision: str | None
    dtype: DType = "auto"
    pooling: Pooling | Literal["splade"] | None = None
    model: dict[str, Any] = field(default_factory=dict)
    probes: tuple[Probe, ...] = ()
    files: dict[str, FileFact]
    sum: str = ""

    @property
    def id(self) -> str:
        """64 hexadecimal digits that stand for the files and how they are served; not for when or where it was made."""
        files = sorted((name, fact.sha256) for name, fact in self.files.items())
        return _digest([self.source, self.revision, self.dtype, self.pooling, files])

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, the manifest's own aside."""
        return sum(fact.size_bytes for fact in self.files.values())


def read_manifest(folder: Path) -> Manifest | None:
    """A folder -> its Manifest, None of a folder that is no artifact. Raises ModelError if it is damaged."""
    path = folder / NAME
    return parse_manifest(path.read_bytes(), str(path)) if path.exists() else None


def parse_manifest(data: bytes, shown: str) -> Manifest:
    """The bytes of a manifest.json -> a Manifest. Raises ModelError, which calls the file what is shown."""
    try:
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ModelError(f"{shown} is not an openbei manifest: {error}; build the artifact again") from error
    if manifest.format != FORMAT:
        raise ModelError(f"{shown} has format {manifest.format!r}; this openbei reads {FORMAT!r}: build it again")
    if manifest.sum != hashlib.sha256(data.replace(_SUM % manifest.sum.encode(), _SUM % b"")).hexdigest():
        raise ModelError(f"{shown} was changed after it was written: build the artifact again")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json, with its sum."""
    data = orjson.dumps(asdict(replace(manifest, sum="")), option=orjson.OPT_INDENT_2)
    digest = hashlib.sha256(data).hexdigest().encode()
    (folder / NAME).write_bytes(data.replace(_SUM % b"", _SUM % digest))


def check_files(folder: Path, manifest: Manifest, *, full: bool, on_bytes: OnBytes = lambda _: None) -> None:
    """Raise WeightsError unless the folder holds the manifest's files and no others, each of its size and sha256.

    full: hash every file; else only those up to SMALL_BYTES, so that a start does not read the weights twice.
    Names that begin with a dot are not looked at.
    """
    found = list_files(folder)
    for name in sorted(found.keys() - manifest.files.keys()):
        raise _damaged(folder, f"{name} is not in its manifest")
    for name, fact in manifest.files.items():
        if name not in found:
            raise _damaged(folder, f"{name} is missing")
        size = found[name].stat().st_size
        if size != fact.size_bytes:
            raise _damaged(folder, f"{name} has {size} bytes, its manifest says {fact.size_bytes}")
        if (full or size <= SMALL_BYTES) and sha256_of(found[name], on_bytes) != fact.sha256:
            raise _damaged(folder, f"{name} has another sha256 than its manifest says")


def list_files(folder: Path) -> dict[str, Path]:
    """A folder -> its files by path, "/" between; without the manifest and without names that begin with a dot."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if not path.is_dir()}
    seen = {short.as_posix(): path for short, path in paths.items() if not any(p.startswith(".") for p in short.parts)}
    seen.pop(NAME, None)
    return seen


def sha256_of(path: Path, on_bytes: OnBytes = lambda _: None) -> str:
    """A file -> the sha256 of its bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            on_bytes(len(chunk))
    return digest.hexdigest()


def _damaged(folder: Path, what: str) -> WeightsError:
    return WeightsError(f"the artifact {folder} is damaged: {what}; build or copy it again")


def _digest(value: Any) -> str:
    return hashlib.sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()
