"""A tiny model of each family with a packed batch and transformers' answer to it; the backends as functions."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openbei.model.ops import numpy as plain
from openbei.model.ops.cuda import CudaModel, Placement
from openbei.model.ops.cuda_weights import from_numpy
from openbei.model.spec import Batch, Model, Output, Pooling, Size, pack
from openbei.weights.load import load
from tests import families

Floats = NDArray[np.float32]
Ids = list[list[int]]
BACKENDS = ("numpy", "openvino", "cuda")  # cuda: on CPU tensors, in float32


@dataclass(frozen=True)
class Case:
    """A loaded model, sequences for it with their types, and the states that transformers gives (T, C)."""

    model: Model
    ids: Ids
    types: Ids
    states: Floats

    @property
    def batch(self) -> Batch:
        return pack(self.model.spec, self.ids, self.types)


def case(family: str, folder: Path, lengths: Sequence[int]) -> Case:
    """A folder -> its Case with random sequences of these lengths."""
    model = load(str(folder)).model
    ids, types = sequences(model, lengths)
    return Case(model, ids, types, families.transformers_states(families.network(family), ids, types))


def sequences(model: Model, lengths: Sequence[int]) -> tuple[Ids, Ids]:
    """Random ids (never 0 or 1, which may be the pad) and types whose second part is 1, as a pair's are."""
    random = np.random.default_rng(4)
    ids = [random.integers(2, model.spec.vocab_size, length).tolist() for length in lengths]
    types = [[0] * (length - length // 3) + [1] * (length // 3) for length in lengths]
    return ids, types


def pooled(states: Floats, batch: Batch, kind: Pooling) -> Floats:
    """The oracle's pooling: a plain loop."""
    rows = np.split(states, batch.cu_seqlens[1:-1])
    pick: dict[Pooling, Callable[[Floats], Floats]] = {
        "cls": lambda row: row[0],
        "mean": lambda row: row.mean(0),
        "last_token": lambda row: row[-1],
    }
    return np.stack([pick[kind](row) for row in rows])


def states_of(backend: str, model: Model) -> Callable[[Batch], Floats]:
    """A backend's name and a model -> batch to token states (T, C)."""
    return run_of(backend, model, "states")


def vectors_of(backend: str, model: Model) -> Callable[[Batch], Floats]:
    """A backend's name and a model -> batch to pooled vectors (B, C)."""
    return run_of(backend, model, "vectors")


def labels_of(backend: str, model: Model) -> Callable[[Batch], Floats]:
    """A backend's name and a model -> batch to logits (B, L), or (T, L)."""
    return run_of(backend, model, "labels")


def run_of(backend: str, model: Model, output: Output) -> Callable[[Batch], Floats]:
    """A backend's name, a model and one of its outputs -> batch to rows."""
    if backend == "numpy":
        return lambda batch: plain.run(model, batch, output)
    if backend == "openvino":
        from openbei.model.ops import openvino_model as openvino  # a machine with a GPU may be without it

        return openvino.compile_model(model, openvino.CompileOptions("float32", 1, 1), output).run
    return CudaRun(model, Placement("cpu", "float32"), output)


class CudaRun:
    """The fused backend as a function of a Batch: padded to a larger size, and cut again.

    num_spare: tokens and sequences of padding.
    """

    def __init__(self, model: Model, placement: Placement, output: Output, num_spare: int = 3) -> None:
        self.model = CudaModel(model, placement)
        self.output: Output = output
        self.per_token = model.is_by_token(output)
        self.num_spare = num_spare

    def __call__(self, batch: Batch) -> Floats:
        size = Size(batch.num_tokens + self.num_spare, len(batch.lengths) + self.num_spare)
        words = np.full(self.model.num_words(size), -1, np.int32)
        self.model.write(batch, size, words)
        device = self.model.placement.device
        rows = self.model.forward(from_numpy(words).to(device), size, self.output).cpu().numpy()
        return rows[: batch.num_tokens if self.per_token else len(batch.lengths)]


def error(one: Floats, other: Floats) -> float:
    """Largest absolute difference; infinite if the shapes differ or a value is not a number."""
    if one.shape != other.shape or not np.isfinite(one).all():
        return float("inf")
    return float(np.abs(one - other).max())
