"""An executor owns one device and one model, and runs a Batch: what the engine asks of one.

cpu.py and cuda.py have one each. Names no library of tensors but NumPy.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from openbei.model.spec import Batch, Output

RESTART_PAUSES_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)  # before each attempt to start again what died; then the last


@dataclass(frozen=True, slots=True)
class Device:
    """What an executor runs on. dtype: float32 or bfloat16, as computed.

    num_lanes: batches that run well at once. max_batch_tokens: the size of batch that fills one lane.
    divided: each lane has a part of the device, such as one core of a CPU, so a batch alone may be given all of it. If
    not, every batch gets the whole device anyhow, one lane launches while another's batch computes, and none is alone.
    patience_s: a batch that takes longer means that the device hangs; None where long texts may take any time.
    """

    name: str
    dtype: str
    num_lanes: int
    max_batch_tokens: int
    divided: bool = True
    patience_s: float | None = None

    def batch_tokens(self, limit: int | None) -> int:
        """The most tokens of a batch: what fills a lane, or a limit below that; more would only run slower."""
        return self.max_batch_tokens if limit is None else min(limit, self.max_batch_tokens)


class Executor(Protocol):
    """What the engine asks of a device and its model."""

    device: Device

    def run(self, batch: Batch, output: Output, alone: bool) -> NDArray[np.float32]:
        """Batch -> rows, as Model.is_by_token says: vectors (B, embedding_dim), labels (B, L) or (T, L), states (T, C),
        weights (T, 1), multi (T, embedding_dim); none normalised, and of SPLADE before any logarithm.

        alone: nothing else runs or will until this returns, so the whole device may work on it; never if not divided.
        """
        ...
