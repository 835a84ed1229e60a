"""Where real weights lie: OPENBEI_REAL_MODELS names a folder with one folder a model, org/name or org--name.

all-MiniLM-L6-v2 is always there: its package comes with the development environment.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import openbei
from openbei.engine.engine import Engine
from openbei.weights.repo import locate
from tests.golden.values import MINILM

VARIABLE = "OPENBEI_REAL_MODELS"
# Their repositories have, or have had, no modules.json, which says how to pool.
POOLINGS = {
    "BAAI/bge-en-icl": "last-token",
    "BAAI/bge-multilingual-gemma2": "last-token",
    "answerdotai/ModernBERT-base": "mean",
}


def find(model: str) -> Path:
    """A hub id -> the folder of its weights; skips the test that asks, where there is none."""
    real = os.environ.get(VARIABLE)
    for name in (model, model.replace("/", "--")):
        if real and (Path(real) / name / "config.json").is_file():
            return Path(real) / name
    if model == MINILM:
        return locate(None).folder
    pytest.skip(f"{VARIABLE} has no {model}" if real else f"{VARIABLE} is not set; needs {model}")


@pytest.fixture(scope="module")
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """The model of a row in float32; pytest runs the rows of one model together, so one is loaded at a time."""
    with openbei.load(str(find(request.param)), dtype="float32", pooling=POOLINGS.get(request.param)) as engine:
        yield engine
