"""What the children of program.py run: a model whose batches take until a test lets them go."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openbei.config import EngineConfig
from openbei.engine.executor import Device, Executor
from openbei.errors import ModelNotFound
from openbei.model.spec import Batch, Output
from openbei.weights.checkpoint import Checkpoint
from tests.engine.fakes import WIDTH, checkpoint

DEADLY = 49
LIMIT_S = 60


class GatedExecutor:
    def __init__(self, folder: Path) -> None:
        self.device = Device("fake", "float32", 1, 100)
        self.folder = folder

    def run(self, batch: Batch, output: Output, alone: bool) -> NDArray[np.float32]:
        if DEADLY in batch.input_ids:
            os.kill(os.getpid(), signal.SIGKILL)
        (self.folder / f"begun-{time.monotonic_ns()}").touch()
        wait_for(self.folder / "go")
        rows = np.zeros((len(batch.lengths), WIDTH), np.float32)
        rows[:, 0], rows[:, 1] = batch.input_ids[batch.cu_seqlens[:-1]], batch.lengths
        return rows


def wait_for(file: Path) -> None:
    end_s = time.monotonic() + LIMIT_S
    while not file.exists() and time.monotonic() < end_s:
        time.sleep(0.005)


def configure(folder: Path, model: str, name: str | None, revision: str | None) -> EngineConfig:
    if (folder / model / "far").exists():
        wait_for(folder / model / "read")
    return EngineConfig(model_id=model, served_model_name=name or model, dtype="float32", device="cpu")


def open_model(folder: Path, config: EngineConfig) -> tuple[Checkpoint, Callable[[], Executor]]:
    if config.model_id is not None:
        folder /= config.model_id
        folder.mkdir(exist_ok=True)
    if (folder / "broken").exists():
        raise ModelNotFound("there is nothing to read")
    if (folder / "deadly").exists():
        os._exit(DEADLY)
    if (folder / "slow").exists():
        wait_for(folder / "read")
    if (folder / "stuck").exists():
        (folder / "stuck").unlink()
        signal.pause()
    length = folder / "max_length"  # a test may change the model between two starts of the engine process
    max_length = int(length.read_text()) if length.exists() else 100
    return checkpoint(folder, max_length), lambda: GatedExecutor(folder)


def describe(*_: object) -> dict[str, str]:
    return {"model": "fake"}
