"""The reference's activations against PyTorch's in float64. All else of it is judged at level 1, as every backend."""

import numpy as np
import pytest
import torch

from openbei.model.kernels.activation import ACTIVATIONS as JUDGES  # PyTorch's own functions
from openbei.model.ops.numpy import ACTIVATIONS
from openbei.model.spec import Activation


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_activation_is_that_of_pytorch(activation: Activation) -> None:
    x = np.linspace(-10, 10, 4001, dtype=np.float32)
    wanted = JUDGES[activation](torch.from_numpy(x.astype(np.float64))).numpy()
    got = ACTIVATIONS[activation](x)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, wanted, rtol=2e-7, atol=1e-6)
