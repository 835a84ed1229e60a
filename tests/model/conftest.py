"""What the tests of models may ask for."""

from collections.abc import Callable
from pathlib import Path

import pytest

from openbei.model.spec import Model
from openbei.weights.load import load


@pytest.fixture
def model(family: str, tiny_folder: Callable[[str], Path]) -> Model:
    """The tiny model of `family`, which the test has as a parameter."""
    return load(str(tiny_folder(family))).model
