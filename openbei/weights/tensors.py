"""The weight files of a folder -> named arrays, still in their files: memory-mapped views, not copies.

Owns the file formats (safetensors, torch pickles, sharded indexes) and which of them is read; never knows what an
array is for. safetensors' own NumPy reader copies every tensor (87 MB more resident memory for MiniLM), so its
header is parsed here: 8 bytes of length, JSON, then raw little-endian data (format: huggingface/safetensors README).
"""

import json
import math
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_dtypes import bfloat16, float8_e4m3fn
from numpy.typing import NDArray

from openbei.errors import ModelNotFound, WeightsError
from openbei.model.spec import Array
from openbei.weights.files import read_object

_DTYPES: dict[str, type[np.generic]] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": bfloat16,
    "F64": np.float64,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "F8_E4M3": float8_e4m3fn,
    "BOOL": np.bool_,
}
_LFS = b"version https://git-lfs"  # its pointers' first line, by docs/spec.md of git-lfs/git-lfs
_ALIGNED_BYTES = 64  # a cache line


def read_tensors(folder: Path) -> dict[str, Array]:
    """The weights at the root of a folder, by name and of the types they are stored in; the first of four files wins.

    Raises ModelNotFound if there is none, WeightsError if one cannot be read.
    """
    if (folder / "model.safetensors").exists():
        return read_safetensors_file(folder / "model.safetensors")
    if (folder / "model.safetensors.index.json").exists():
        return _sharded(folder / "model.safetensors.index.json")
    if (folder / "pytorch_model.bin").exists():
        return read_torch_file(folder / "pytorch_model.bin")
    if (folder / "pytorch_model.bin.index.json").exists():
        return _sharded(folder / "pytorch_model.bin.index.json")
    raise ModelNotFound(
        f"{folder} has no weights: neither model.safetensors nor pytorch_model.bin, nor an index of them"
    )


class Shape(NamedTuple):
    """What a tensor of a file that is being written will be."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Of all its values."""
        return self.dtype.itemsize * math.prod(self.shape)


def write_safetensors(path: Path, tensors: Mapping[str, Array]) -> None:
    """Named arrays -> a safetensors file. Raises WeightsError of a type that the format has not."""
    shapes = {name: Shape(tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    write_pieces(path, shapes, tensors.items())


def write_pieces(path: Path, shapes: Mapping[str, Shape], pieces: Iterable[tuple[str, Array]]) -> None:
    """Tensors that come in pieces, in any order -> a safetensors file; the pieces of one tensor are its rows, in order.

    Wide types first, so that each begins at a multiple of its own width. Raises WeightsError of a type that the format
    has not.
    """
    names = {np.dtype(kind): name for name, kind in _DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers wants to be told
    places, end = {}, 0
    for name, wanted in sorted(shapes.items(), key=lambda item: -item[1].dtype.itemsize):
        if wanted.dtype not in names:
            raise WeightsError(f"{name} is {wanted.dtype}, which safetensors cannot hold")
        begin, end = end, end + wanted.num_bytes
        header[name] = {"dtype": names[wanted.dtype], "shape": wanted.shape, "data_offsets": [begin, end]}
        places[name] = begin
    written = json.dumps(header).encode()
    written += b" " * (-(8 + len(written)) % _ALIGNED_BYTES)
    start, num_bytes = 8 + len(written), 0
    with path.open("wb") as file:
        file.write(len(written).to_bytes(8, "little") + written)
        for name, piece in pieces:
            file.seek(start + places[name])
            places[name] += file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
            num_bytes += piece.nbytes
    assert num_bytes == end, f"{num_bytes} of {end} bytes were written"


def _sharded(index: Path) -> dict[str, Array]:
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise WeightsError(f"{index} has no weight_map")
    tensors: dict[str, Array] = {}
    for file in sorted(set(weight_map.values())):
        tensors |= _shard(index.parent, file)
    missing = [name for name in weight_map if name not in tensors]
    if missing:
        raise WeightsError(f"{index} names {len(missing)} tensors that its files lack, such as {missing[0]}")
    return tensors


def _shard(folder: Path, file: str) -> dict[str, Array]:
    path = folder / file
    if path.name != file:
        raise WeightsError(f"an index may only name files beside it, got {file!r}")
    if not path.exists():
        raise ModelNotFound(f"{folder} has no {file}, which its index names")
    return read_safetensors_file(path) if path.suffix == ".safetensors" else read_torch_file(path)


def read_safetensors_file(path: Path) -> dict[str, Array]:
    """One safetensors file -> its arrays, mapped. Raises WeightsError."""
    try:
        # Copy-on-write: OpenVINO shares only arrays that are writable, and nobody writes.
        raw = np.asarray(np.memmap(path, mode="c"))
        if raw[: len(_LFS)].tobytes() == _LFS:
            raise ValueError("it is the pointer that Git LFS leaves; git lfs pull brings the file")
        start = 8 + int.from_bytes(raw[:8].tobytes(), "little")
        if start > len(raw):
            raise ValueError(f"its header ends at byte {start} of {len(raw)}")
        header = json.loads(raw[8:start].tobytes())
        return {name: _view(raw[start:], name, entry) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is not a whole safetensors file: {error}") from error


def _view(data: NDArray[np.uint8], name: str, entry: dict[str, Any]) -> Array:
    begin, end = entry["data_offsets"]
    if entry["dtype"] not in _DTYPES:
        raise WeightsError(f"{name} is stored as {entry['dtype']}, which openbei does not read")
    if not 0 <= begin <= end <= len(data):
        raise ValueError(f"{name} lies at bytes {begin} to {end} of {len(data)}")
    return data[begin:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])


def read_torch_file(path: Path) -> dict[str, Array]:
    """A PyTorch file of plain tensors -> them by name, memory-mapped. Raises WeightsError, also without PyTorch."""
    try:
        import torch
    except ImportError as error:
        raise WeightsError(
            f"{path} is a PyTorch file and PyTorch is not installed: pip install torch, "
            "or convert the model to safetensors"
        ) from error
    try:
        # Files older than torch 1.6 are no zip archives and cannot be mapped.
        state = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
        return {name: _from_torch(tensor) for name, tensor in state.items()}
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
        raise WeightsError(f"{path} is not a file of plain tensors: {str(error).splitlines()[0]}") from error


def _from_torch(tensor: Any) -> Array:
    import torch

    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.view(torch.uint16).numpy()).view(bfloat16)
    if tensor.dtype == torch.float8_e4m3fn:
        return np.asarray(tensor.view(torch.uint8).numpy()).view(float8_e4m3fn)
    return np.asarray(tensor.numpy())
