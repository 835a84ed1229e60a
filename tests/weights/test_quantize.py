"""The definition of FP8 weights: against the device's, every value of e4m3, and by its bounds."""

import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from openbei.model.kernels.quantize import quantize_weight
from openbei.model.ops.cuda_weights import from_numpy
from openbei.weights.quantize import quantize

RANDOM = np.random.default_rng(7)
WEIGHT = np.concatenate(
    [
        RANDOM.normal(0, 0.02, (40, 300)),
        RANDOM.normal(0, 1, (8, 300)) * 10.0 ** RANDOM.integers(-6, 4, (8, 300)),  # subnormal beside the largest
        np.zeros((1, 300)),
        np.full((1, 300), 1e-41),  # its scale is subnormal
    ]
).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_it_gives_the_numbers_of_the_device(dtype: type[np.generic]) -> None:
    weight = WEIGHT.astype(dtype)
    ours, devices = quantize(weight), quantize_weight(from_numpy(weight))
    np.testing.assert_array_equal(ours.values.view(np.uint8), devices[0].view(torch.uint8).numpy())
    np.testing.assert_array_equal(ours.scale, devices[1].numpy())


def test_every_value_of_e4m3_is_kept_and_each_between_two_goes_to_the_nearer_or_the_even() -> None:
    values: NDArray[np.float32] = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    grid = np.unique(values[np.isfinite(values)])
    middle = (grid[1:] + grid[:-1]) / 2
    sides = np.nextafter(middle, np.float32(-1e9)), middle, np.nextafter(middle, np.float32(1e9))
    row = np.concatenate([grid, *sides]).astype(np.float32)[None]  # its largest is 448, so the scale is 1
    below, above = grid[:-1], grid[1:]
    even = np.where(below.astype(ml_dtypes.float8_e4m3fn).view(np.uint8) % 2 == 0, below, above)
    quantized = quantize(row)
    np.testing.assert_array_equal(quantized.scale, [1])
    np.testing.assert_array_equal(quantized.values[0].astype(np.float32), np.concatenate([grid, below, even, above]))


def test_channels_have_their_own_scale_and_zeros_have_scale_one() -> None:
    quantized = quantize(WEIGHT)
    largest = np.abs(WEIGHT).max(1)
    np.testing.assert_array_equal(quantized.scale[:48], (largest / np.float32(448))[:48])
    assert quantized.scale[48] == 1
    back = quantized.values.astype(np.float32) * quantized.scale[:, None]
    assert (np.abs(back - WEIGHT).max(1) <= largest * 2**-4)[:49].all()  # half a step of the top binade
