"""Try a launch where there is no GPU, and where there is one.

DEVICES are the places where a test can launch: the interpreter, on CPU tensors, and a CUDA device if there is one.
`on` opens such a place with every new tensor full of NaN, so that a value nobody wrote is seen.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import Tensor

from openbei.model.kernels import activation, norm, quantize
from tests.model.kernels.interpret import interpreted

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
ON_CUDA = pytest.param("cuda", marks=[pytest.mark.cuda, NO_GPU])
DEVICES = ["cpu", ON_CUDA]
# The interpreter cuts bfloat16 instead of rounding it, so it gets the other two.
DEVICES_AND_DTYPES = [
    ("cpu", torch.float32),
    ("cpu", torch.float16),
    pytest.param("cuda", torch.float16, marks=[pytest.mark.cuda, NO_GPU]),
    pytest.param("cuda", torch.bfloat16, marks=[pytest.mark.cuda, NO_GPU]),
]


@contextmanager
def on(device: str) -> Iterator[None]:
    """Launches work inside: on a CPU by the interpreter. New tensors are full of NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        # Overflow is no error on a GPU: sigmoid(-100) is 1 / (1 + inf).
        with interpreted() if device == "cpu" else nullcontext(), np.errstate(all="ignore"):
            yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def without_e4m3() -> Iterator[None]:
    """What would be cast to e4m3 stays float32 inside: the interpreter has that cast wrong and all before it right."""
    with (
        patch.object(quantize, "E4M3", torch.float32),
        patch.object(norm, "E4M3", torch.float32),
        patch.object(activation, "E4M3", torch.float32),
    ):
        yield


def spread(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Normal values float32 whose size differs from row to row by up to a factor of 1e4."""
    random = torch.Generator().manual_seed(seed)
    sizes = 10.0 ** torch.linspace(-2, 2, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return torch.randn(shape, generator=random) * sizes


def strided(x: Tensor) -> Tensor:
    """x (T, C) as columns of a wider matrix of NaN, as q is of the joined product."""
    wide = torch.full((len(x), x.shape[1] + 32), torch.nan, dtype=x.dtype, device=x.device)
    wide[:, 16:-16] = x
    return wide[:, 16:-16]


def error(x: Tensor, y: Tensor) -> float:
    """Largest difference, relative to the largest value of each row of y; infinite where only one is NaN."""
    x, y = x.double().cpu(), y.double().cpu()
    assert x.shape == y.shape
    return float(((x - y).abs() / y.abs().amax(-1, keepdim=True).clamp_min(1e-300)).nan_to_num(torch.inf).max())
