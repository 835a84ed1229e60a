"""Tiny models run fastest on one thread: with more, PyTorch waits longer for its threads than they work."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from openbei.model.spec import Model
from openbei.weights.load import load

torch.set_num_threads(1)


@pytest.fixture
def model(family: str, tiny_folder: Callable[[str], Path]) -> Model:
    """The tiny model of `family`, which the test has as a parameter."""
    return load(str(tiny_folder(family))).model
