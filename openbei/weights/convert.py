"""A model's weights -> as an artifact of a precision stores them: 16 bit, or FP8 inside the blocks.

What is stored is what a GPU would make of the source at its start, bit for bit: matrices are rounded to 16 bit, those
of a block (of an encoder its feed-forward half) to FP8 with a scale for each output channel (quantize.py). Norms,
biases, the head of a classifier and a table of relative positions stay as they came. Names stay too, and config.json
says what was done as compressed-tensors would, so that others can read the result. Owns which tensor becomes what;
never runs a model.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from openbei.config import DType
from openbei.errors import WeightsError
from openbei.model.spec import Array, Linear
from openbei.model.stored import E4M3, attends_in_fp8, row_blocks, weight_of
from openbei.weights.families import Config
from openbei.weights.files import read_object
from openbei.weights.fill import EXACT, fill, in_blocks, our_spelling
from openbei.weights.load import Network
from openbei.weights.quantize import quantize
from openbei.weights.scheme import KEYS, fp8_scheme
from openbei.weights.tensors import Shape, read_tensors, write_pieces

Target = Literal["bfloat16", "float16", "fp8"]
TARGETS: dict[DType, Target] = {
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
    "fp8": "fp8",
}
WEIGHTS = "model.safetensors"
FP8_STEP = 16  # GPUs multiply no other sizes in FP8
_16_BIT: dict[Target, np.dtype[Any]] = {
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
    "fp8": np.dtype(ml_dtypes.bfloat16),  # of what is not in a block
}
_TABLES = ("word", "position", "segment", "relative_bias")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What is to be written. body: the folder that is converted. shapes: of the new file's tensors, by name."""

    body: Path
    tensors: Mapping[str, Array]
    shapes: Mapping[str, Shape]
    config: dict[str, Any]

    def replaces(self, path: Path) -> bool:
        """True of the files of the folder in whose place write puts its own."""
        names = ("config.json", "model.safetensors", "model-", "pytorch_model")
        return path.parent == self.body and path.name.startswith(names)

    def write(self, target: Path) -> tuple[Path, Path]:
        """Write weights and config.json into a folder, a few million values at a time -> their paths."""
        target.mkdir(parents=True, exist_ok=True)
        write_pieces(target / WEIGHTS, self.shapes, self._pieces())
        (target / "config.json").write_text(json.dumps(self.config, indent=2))
        return target / WEIGHTS, target / "config.json"

    def _pieces(self) -> Iterator[tuple[str, Array]]:
        for name, tensor in self.tensors.items():
            if name not in self.shapes:
                continue
            wanted, scale = self.shapes[name].dtype, _scale_of(name, tensor, self.tensors)
            if wanted == tensor.dtype:
                yield name, tensor
                continue
            linear = Linear(tensor, scale=scale)
            for rows in row_blocks(linear):
                if wanted == E4M3:
                    values, scales = quantize(weight_of(linear, rows))
                    yield name, values
                    yield f"{name}_scale", scales[:, None]
                else:
                    yield name, _rounded(name, weight_of(linear, rows), wanted)


def conversion(network: Network, target: Target) -> Conversion | None:
    """A model's files -> how they become those of an artifact; None where they are so already. Raises WeightsError."""
    fill(network.spec, network.family, network.tensors)  # which says what is wrong with them
    tensors = read_tensors(network.body)  # without those that were made of them
    raw = read_object(network.body / "config.json")
    published = any(raw.get(key) for key in KEYS)
    to_fp8 = _to_fp8(network, tensors) if target == "fp8" and not published else set()
    kept = _kept(network)
    shapes: dict[str, Shape] = {}
    for name, tensor in tensors.items():
        dtype, is_matrix = tensor.dtype, tensor.ndim == 2 and (tensor.dtype in EXACT or tensor.dtype == E4M3)
        if is_matrix and (dtype == E4M3 or our_spelling(name, network.family) not in kept):
            stays_fp8 = target == "fp8" and dtype == E4M3
            dtype = E4M3 if stays_fp8 or name in to_fp8 else _16_BIT[target]
        shapes[name] = Shape(dtype, tensor.shape)
        if dtype == E4M3 and tensor.dtype != E4M3:
            shapes[f"{name}_scale"] = Shape(np.dtype(np.float32), (len(tensor), 1))
    gone = [name for name in tensors if _is_scale_of_widened(name, shapes)]
    for name in gone:
        del shapes[name]
    if not gone and all(name in tensors and shape.dtype == tensors[name].dtype for name, shape in shapes.items()):
        return None
    return Conversion(network.body, tensors, shapes, _config(raw, network, target, shapes))


def _to_fp8(network: Network, names: Iterable[str]) -> set[str]:
    """The matrices of the blocks that a GPU multiplies in FP8: it has no other sizes, joined as it joins them."""
    spec, gated = network.spec, "gate" in network.family.names
    inner, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    products: dict[tuple[str, ...], tuple[int, int]] = {
        ("gate", "up"): (spec.ffn_width * (2 if gated else 1), spec.width),
        ("down",): (spec.width, spec.ffn_width),
    }
    if attends_in_fp8(spec):
        products |= {("q", "k", "v"): (inner + 2 * keys, spec.width), ("out",): (spec.width, inner)}
    fit = {name for names, sizes in products.items() if not any(size % FP8_STEP for size in sizes) for name in names}
    return {name for name, our in in_blocks(network.family, names).items() if our in fit}


def _kept(network: Network) -> set[str]:
    """The matrices that a GPU computes with in float32, by the family's spelling."""
    family = network.family
    head = family.head.parts if family.head and not network.modules.num_logs else ()
    names = [part.linear for part in head] + [family.names[name] for name in ("relative_bias",) if name in family.names]
    return {f"{name}.weight" for name in names}


def _config(raw: Config, network: Network, target: Target, shapes: Mapping[str, Shape]) -> dict[str, Any]:
    config = {key: value for key, value in raw.items() if key not in KEYS}
    config["dtype" if "dtype" in config else "torch_dtype"] = _16_BIT[target].name
    if target != "fp8":
        return config
    published = {key: raw[key] for key in KEYS if raw.get(key)}
    if published:
        return config | published
    tables = {f"{network.family.names[name]}.weight" for name in _TABLES if name in network.family.names}
    others = [
        name.removesuffix(".weight")
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape.shape) == 2 and shape.dtype != E4M3
        if our_spelling(name, network.family) not in tables
    ]
    return config | {"quantization_config": fp8_scheme(others)}


def _scale_of(name: str, tensor: Array, tensors: Mapping[str, Array]) -> Array | None:
    """float32 (rows,), of a weight that is stored in FP8."""
    if tensor.dtype != E4M3:
        return None
    scale = tensors[f"{name}_scale"].astype(np.float32).reshape(-1)
    return np.broadcast_to(scale, len(tensor)) if scale.size == 1 else scale


def _is_scale_of_widened(name: str, shapes: Mapping[str, Shape]) -> bool:
    """True of an FP8 weight's scales, its own and its input's, once the weight is of 16 bit."""
    stem = next((name.removesuffix(end) for end in (".weight_scale", ".input_scale") if name.endswith(end)), None)
    weight = shapes.get(f"{stem}.weight")
    return weight is not None and weight.dtype != E4M3


def _rounded(name: str, values: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):
        rounded: Array = values.astype(dtype)
    if not np.isfinite(rounded.astype(np.float32)).all() and np.isfinite(values).all():
        largest = float(np.abs(values).max())
        raise WeightsError(f"{name} holds {largest:g}, and {dtype} ends at 65504: build it with --dtype bfloat16")
    return rounded
