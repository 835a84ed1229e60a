"""What kernel tests ask for."""

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    """The GPU; a test that asks for it is skipped without one, and is marked cuda."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")
