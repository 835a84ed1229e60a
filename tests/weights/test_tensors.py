"""Weight files -> arrays: formats, types as stored, views instead of copies, and damaged files."""

import json
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ml_dtypes import bfloat16
from safetensors.torch import save_file

from openbei.errors import ModelNotFound, WeightsError
from openbei.weights.tensors import read_tensors

VALUES = torch.tensor([[1.0, -2.5, 3.140625], [1e-3, 65504.0, -0.0]])


def _header(header: Any, data: bytes = b"\0" * 16) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize("dtype", [np.float32, np.float16, bfloat16])
@pytest.mark.parametrize("kind", ["safetensors", "torch", "old torch"])
def test_every_format_keeps_the_type_and_every_value(kind: str, dtype: type[np.generic], tmp_path: Path) -> None:
    stored = VALUES.to(getattr(torch, np.dtype(dtype).name))
    if kind == "safetensors":
        save_file({"a": stored, "ids": torch.arange(3)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    else:
        new = kind == "torch"
        torch.save(
            {"a": stored, "ids": torch.arange(3)}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=new
        )
    tensors = read_tensors(tmp_path)
    assert set(tensors) == {"a", "ids"}
    assert tensors["a"].dtype == dtype
    assert tensors["ids"].dtype == np.int64
    np.testing.assert_array_equal(tensors["a"].astype(np.float32), stored.float().numpy())


def test_a_torch_tensor_whose_rows_are_apart_becomes_one_whose_rows_are_not(tmp_path: Path) -> None:
    torch.save({"a": VALUES.T}, tmp_path / "pytorch_model.bin")
    array = read_tensors(tmp_path)["a"]
    assert array.flags.c_contiguous
    np.testing.assert_array_equal(array, VALUES.numpy().T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_array_is_a_view_of_the_file_and_writing_to_it_does_not_reach_the_file(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    save_file({"a": VALUES, "b": (VALUES + 1).to(dtype)}, tmp_path / "model.safetensors")
    array = read_tensors(tmp_path)["b"]
    root: Any = array
    while isinstance(root.base, np.ndarray):
        root = root.base
    assert isinstance(root, np.memmap)
    before = (tmp_path / "model.safetensors").read_bytes()
    array[0, 0] = 7
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_reading_a_model_keeps_its_floats_out_of_resident_memory(tmp_path: Path) -> None:
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("resident memory is read from /proc")
    save_file({"a": torch.zeros(32_000_000, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    before = int(statm.read_text().split()[1])
    array = read_tensors(tmp_path)["a"]
    grown_bytes = (int(statm.read_text().split()[1]) - before) * 4096
    assert array.nbytes == 64_000_000
    assert grown_bytes < 8_000_000


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_read_through_their_index(kind: str, tmp_path: Path) -> None:
    save: Any = save_file if kind == "safetensors" else torch.save
    stem = "model" if kind == "safetensors" else "pytorch_model"
    first, second = f"{stem}-00001-of-00002.{kind}", f"{stem}-00002-of-00002.{kind}"
    save({"a": VALUES}, tmp_path / first)
    save({"b": VALUES + 1}, tmp_path / second)
    index = tmp_path / f"{stem}.{kind}.index.json"
    index.write_text(json.dumps({"weight_map": {"a": first, "b": second}}))
    tensors = read_tensors(tmp_path)
    np.testing.assert_array_equal(tensors["b"], VALUES.numpy() + 1)

    index.write_text(json.dumps({"weight_map": {"a": first, "b": second, "c": second}}))
    with pytest.raises(WeightsError, match="1 tensors that its files lack, such as c"):
        read_tensors(tmp_path)
    (tmp_path / second).unlink()
    with pytest.raises(ModelNotFound, match=second):
        read_tensors(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(WeightsError, match=r"only name files beside it, got '\.\./elsewhere"):
        read_tensors(tmp_path)
    index.write_text("{}")
    with pytest.raises(WeightsError, match="no weight_map"):
        read_tensors(tmp_path)


def test_safetensors_win_over_torch_files_and_subfolders_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "onnx").mkdir()
    save_file({"a": VALUES}, tmp_path / "onnx" / "model.safetensors")
    with pytest.raises(ModelNotFound, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        read_tensors(tmp_path)
    torch.save({"b": VALUES}, tmp_path / "pytorch_model.bin")
    assert set(read_tensors(tmp_path)) == {"b"}
    save_file({"a": VALUES}, tmp_path / "model.safetensors")
    assert set(read_tensors(tmp_path)) == {"a"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a whole safetensors file"),
        (b"abc", "not a whole safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "pointer that Git LFS leaves; git lfs pull"),
        (struct.pack("<Q", 1 << 40) + b"{}", "not a whole safetensors file"),
        (_header([1]), "not a whole safetensors file"),
        (_header({"a": {"dtype": "F32", "shape": [4]}}), "data_offsets"),
        (_header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 32]}}), "a lies at bytes 0 to 32 of 16"),
        (_header({"a": {"dtype": "F32", "shape": [4], "data_offsets": [-4, 12]}}), "a lies at bytes -4"),
        (_header({"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}}), "cannot reshape"),
        (_header({"a": {"dtype": "F8_E5M2", "shape": [16], "data_offsets": [0, 16]}}), "a is stored as F8_E5M2"),
    ],
)
def test_a_damaged_safetensors_file_is_told_by_what_is_wrong(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=said):
        read_tensors(tmp_path)


def test_a_torch_file_that_runs_code_or_is_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": VALUES, "code": sys.exit}, path)
    with pytest.raises(WeightsError, match="not a file of plain tensors"):
        read_tensors(tmp_path)
    torch.save({"a": VALUES}, path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(WeightsError, match="not a file of plain tensors"):
        read_tensors(tmp_path)


def test_a_torch_file_without_torch_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": VALUES}, tmp_path / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(WeightsError, match="pip install torch, or convert the model to safetensors"):
        read_tensors(tmp_path)
