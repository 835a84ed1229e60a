"""Weights in FP8: each output channel divided by its own scale and rounded to e4m3, ahead of time.

Owns the definition, in NumPy; model/kernels/quantize.py gives the same numbers on a device, bit for bit.
"""

from typing import NamedTuple

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from openbei.model.spec import Array

E4M3_MAX = np.float32(448)


class QuantizedWeight(NamedTuple):
    """values: e4m3 (N, C), scale: float32 (N,); the weight is about values * scale[:, None]."""

    values: Array
    scale: NDArray[np.float32]


def quantize(weight: Array) -> QuantizedWeight:
    """A weight (N, C) of any float type -> e4m3 with a scale for each output channel: its largest magnitude / 448.

    Rounded to nearest even (OCP 8-bit floating point, section 5). A channel of zeros has scale 1.
    """
    wide = weight.astype(np.float32)
    scale = np.abs(wide).max(axis=1) / E4M3_MAX
    scale[scale == 0] = 1
    wide /= scale[:, None]
    return QuantizedWeight(np.clip(wide, -E4M3_MAX, E4M3_MAX).astype(ml_dtypes.float8_e4m3fn), scale)
