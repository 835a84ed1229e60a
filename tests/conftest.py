"""What every test may ask for: the tiny folders of tests/families.py, made once a session."""

import gc
import os

# Before any third party is imported: no test may reach a network, and none needs a progress bar.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Tiny models run fastest on one thread of PyTorch: with more they wait longer than they work. OpenVINO has its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest


def pytest_collection_finish() -> None:
    """What the imports of all tests made stays; no collection of garbage need look through it, in 0.5 s each."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's name -> the folder of its tiny model; shared, so copy it before changing it."""
    from tests import families

    return cache(lambda family: families.save(tmp_path_factory.mktemp(family), family))
