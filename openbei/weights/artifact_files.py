"""A model's folder -> the files of an artifact: nothing in them that anyone could run, and all of it on the disk.

Owns which files go in, PyTorch's as safetensors, and what is said of a disk that is full; never what they mean.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from openbei.errors import ModelError
from openbei.model.spec import Array
from openbei.weights.convert import Conversion
from openbei.weights.manifest import FileFact, Manifest, OnBytes, list_files, sha256_of
from openbei.weights.repo import is_of_model
from openbei.weights.tensors import read_tensors, read_torch_file, write_safetensors

SAFE = (".json", ".jinja", ".safetensors", ".metadata")
SPARE_BYTES = 64_000_000
_CHUNK_BYTES = 1 << 20


def state_of_folder(folder: Path) -> str:
    """A model's folder -> 64 hexadecimal digits that stand for its files; whatever else lies there does not count."""
    rows = "".join(f"{name} {sha256_of(path)}\n" for name, path in _model_files(folder).items())
    return hashlib.sha256(rows.encode()).hexdigest()


def copy_model(source: Path, stage: Path, converted: Conversion | None, on_bytes: OnBytes) -> dict[str, FileFact]:
    """A model's folder -> all that is in stage then: files of SAFE kinds as they are, PyTorch's as safetensors.

    What is converted comes in the place of the files that it replaces. Raises ModelError if there is no room.
    """
    chosen = _model_files(source)
    _check_room(stage, sum(path.stat().st_size for path in chosen.values()))
    if converted is not None:
        converted.write(stage / converted.body.relative_to(source))
        chosen = {name: path for name, path in chosen.items() if not converted.replaces(path)}
    safe = [name for name in chosen if name.endswith(SAFE) and not name.endswith(".bin.index.json")]
    copied = {name: _copy(chosen[name], stage / name, on_bytes) for name in safe}
    for target, tensors in _unpickled(chosen, source, stage):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_safetensors(target, tensors)
    made = {name: path for name, path in list_files(stage).items() if name not in copied}
    return copied | {name: FileFact(path.stat().st_size, sha256_of(path, on_bytes)) for name, path in made.items()}


def copy_artifact(source: Path, stage: Path, manifest: Manifest, on_bytes: OnBytes) -> None:
    """The files of an artifact -> stage; what is in stage already stays. Raises ModelError if there is no room."""
    _check_room(stage, manifest.size_bytes)
    for name in manifest.files:
        if (source / name).exists() and not (stage / name).exists():
            _copy(source / name, stage / name, on_bytes)


def sync(*paths: Path) -> None:
    """What is in files and folders is on the disk, and not only on its way there."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def full_disk_explained(stage: Path) -> Iterator[None]:
    """A disk that fills up meanwhile is an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ModelError(
            f"{stage.parent}: {error.strerror}; nothing was built: free some space, or give another --out"
        ) from error


def _model_files(folder: Path) -> dict[str, Path]:
    return {name: path for name, path in list_files(folder).items() if is_of_model(name)}


def _unpickled(chosen: Mapping[str, Path], source: Path, stage: Path) -> Iterator[tuple[Path, Mapping[str, Array]]]:
    """The safetensors files that PyTorch's become, one after another; of weights only where the stage has none yet."""
    for name, path in chosen.items():
        if path.suffix == ".pt":
            yield (stage / name).with_suffix(".safetensors"), read_torch_file(path)
    for folder in sorted({path.parent for path in chosen.values() if path.name.startswith("pytorch_model")}):
        target = stage / folder.relative_to(source) / "model.safetensors"
        if not any(target.parent.glob("model*.safetensors")):
            yield target, read_tensors(folder)


def _copy(path: Path, target: Path, on_bytes: OnBytes) -> FileFact:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file, target.open("wb") as out:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += out.write(chunk)
            on_bytes(len(chunk))
    return FileFact(size, digest.hexdigest())


def _check_room(stage: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(stage).free
    if free < needed_bytes + SPARE_BYTES:
        raise ModelError(
            f"{stage.parent} has {free / 1e9:.2f} GB free, the artifact needs {(needed_bytes + SPARE_BYTES) / 1e9:.2f}"
            ": free some, or give another --out; bei ls and bei rm show and empty the store"
        )
