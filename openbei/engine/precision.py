"""Which precision to compute in on a GPU: what was asked for, what the chip multiplies, what fits in its memory.

Owns that choice; never touches a device: its facts are given.
"""

from typing import Literal

from openbei.config import DType
from openbei.errors import ConfigError
from openbei.model.spec import Model, num_parameters
from openbei.model.stored import stored_as

Precision = Literal["float32", "bfloat16", "float16", "fp8"]

CHIPS: dict[Precision, tuple[int, int]] = {"bfloat16": (8, 0), "fp8": (8, 9)}  # the first that multiplies it
SPARE_BYTES = 3 << 30  # activations, graphs and workspaces beside the weights
BYTES: dict[Precision, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1}


def choose_precision(dtype: DType, model: Model, capability: tuple[int, int], free_bytes: int) -> Precision:
    """A --dtype -> the precision. Raises ConfigError.

    auto: 16 bit; fp8 where the chip multiplies it and the weights are stored so, or the model does not fit otherwise.

    capability: the chip's, such as (9, 0). free_bytes: of its memory.
    """
    if dtype == "auto":
        half: Precision = "bfloat16" if capability >= CHIPS["bfloat16"] else "float16"
        wants_fp8 = stored_as(model) == "fp8" or needed_bytes(model, half) > free_bytes
        chosen: Precision = "fp8" if wants_fp8 and capability >= CHIPS["fp8"] else half
    else:
        chosen = full_name(dtype)
    if capability < CHIPS.get(chosen, (0, 0)):
        raise ConfigError(f"dtype {dtype} needs compute capability {CHIPS[chosen]} or later; this GPU has {capability}")
    needed = needed_bytes(model, chosen)
    if needed > free_bytes:
        raise ConfigError(
            f"the model needs {needed / 1e9:.1f} GB in {chosen}; the GPU has {free_bytes / 1e9:.1f} GB free"
        )
    return chosen


def full_name(dtype: DType) -> Precision:
    """A --dtype other than auto, long or short -> the precision."""
    return {"bf16": "bfloat16", "fp16": "float16"}.get(dtype, dtype)  # type: ignore[return-value]


def needed_bytes(model: Model, precision: Precision) -> int:
    """Memory of a model in bytes: its weights, embeddings never below 16 bit, and some room to work in."""
    embedding = num_parameters(model.weights.embedding)
    blocks = num_parameters(model) - embedding
    return blocks * BYTES[precision] + embedding * max(BYTES[precision], 2) + SPARE_BYTES
