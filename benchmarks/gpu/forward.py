"""Whole models at their real sizes, with random weights: one forward on the device, without HTTP.

One request of 32, 128 and 512 tokens, and full batches of sequences of those lengths; in bfloat16, and with FP8
weights and activations; by cuBLASLt's products, and (`own`) with ours where they might be faster. `floor` is the share
of the least time that the datasheet allows (shapes.py). `cosine` is the least of a way's answers with bfloat16's on
the same random weights, which says little of quality.
"""

from collections.abc import Iterator
from typing import Any

import harness
import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu import shapes
from benchmarks.gpu.clock import seconds, why
from openbei.engine.cuda import example
from openbei.engine.machine import Machine
from openbei.model.ops.cuda import CudaModel, Placement
from openbei.model.ops.cuda_weights import Ways
from openbei.model.spec import Batch, Model, Output, Size

LENGTHS = (32, 128, 512)
FULL_TOKENS = 8192
COMPARED = Size(2048, 16)
OWN = Ways(few_rows=64, fused_gate=True)
WAYS = {"bf16": (False, Ways()), "bf16 own": (False, OWN), "fp8": (True, Ways()), "fp8 own": (True, OWN)}
Row = dict[str, Any]


def forwards(machine: Machine, tiny: bool) -> Iterator[Row]:
    """A row a model, precision and shape of batch; the ways of a model that fail say why. Our products come last."""
    answers: dict[tuple[str, str], np.ndarray] = {}
    for ways in (("bf16", "fp8"), ("bf16 own", "fp8 own")):
        for name in shapes.SPECS:
            for way in ways:
                row: Row = {"model": name, "way": way}
                try:
                    for timed in _way(machine, name, way, answers, tiny):
                        yield row | timed
                except Exception:
                    yield row | {"error": why()}
                machine.free_bytes()


def _way(
    machine: Machine, name: str, way: str, answers: dict[tuple[str, str], np.ndarray], tiny: bool
) -> Iterator[Row]:
    model = shapes.model(name, tiny)
    placed = place(machine, model, *WAYS[way])
    for size in sizes(tiny):
        yield _timed(machine, placed, model, size)
    answers[name, way] = _answer(machine, placed, model)
    if way != "bf16" and (name, "bf16") in answers:
        yield {"what": "against bf16", "cosine": harness.least_cosine(answers[name, "bf16"], answers[name, way])}


def place(machine: Machine, model: Model, eight_bit: bool, ways: Ways) -> CudaModel:
    """A model of random weights on the device."""
    placement = Placement(machine.location, "bfloat16", eight_bit, ways)
    return CudaModel(model, placement, shapes.random_upload(machine.location, torch.bfloat16))


def sizes(tiny: bool) -> list[Size]:
    """One request of each length, and full batches of them."""
    lengths, full = (LENGTHS[:1], 64) if tiny else (LENGTHS, FULL_TOKENS)
    return [Size(length, 1) for length in lengths] + [Size(full, full // length) for length in lengths]


def _timed(machine: Machine, placed: CudaModel, model: Model, size: Size) -> Row:
    batch = example(model.spec, size)
    words = words_of(machine, placed, batch, size)
    taken_s = seconds(machine, lambda: placed.forward(words, size, output_of(model)))
    row = {"what": f"{size.num_sequences} x {int(batch.lengths[0])}", "ms": taken_s * 1e3}
    row["tokens/s"] = batch.num_tokens / taken_s
    if (chip := shapes.chip_of(machine.name)) is not None:
        eight_bit = placed.placement.fp8
        row["% of floor"] = 100 * shapes.floor_s(model, batch.lengths.tolist(), chip, eight_bit) / taken_s
    return row


def _answer(machine: Machine, placed: CudaModel, model: Model) -> np.ndarray:
    batch = example(model.spec, COMPARED)
    with machine.stream().use():
        return placed.forward(words_of(machine, placed, batch, COMPARED), COMPARED, "vectors").float().cpu().numpy()


def words_of(machine: Machine, placed: CudaModel, batch: Batch, size: Size) -> Tensor:
    """A batch on the device, padded to a size."""
    words = torch.empty(placed.num_words(size), dtype=torch.int32)
    placed.write(batch, size, words.numpy())
    return words.to(machine.location)


def output_of(model: Model) -> Output:
    """What the model is for."""
    return "labels" if model.head else "vectors"
