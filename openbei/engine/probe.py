"""An artifact's self-check: a few inputs with the outputs that the model gave when it was built.

Owns the inputs, the comparison and its tolerances; never touches files.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from openbei.engine.request import Input, Pair
from openbei.engine.tokenizer import Tokenizer, Truncation
from openbei.errors import ModelError, WeightsError
from openbei.model.spec import pack
from openbei.weights.checkpoint import Checkpoint, TextSpec
from openbei.weights.manifest import Probe

if TYPE_CHECKING:
    from openbei.engine.executor import Executor

# Short, so that a start is not slowed; of three scripts and of two lengths in one batch, so that a tokenizer's
# normalizer and the packing are tried too.
TEXTS = (
    "The sky is blue because air scatters short waves more.",
    "Größe: 3½ café, naïve - 東京の天気は晴れです 🙂",
)
PAIRS = (("colour of the sky", TEXTS[0]), ("Wetter in Tokio", TEXTS[1]))

# How far the rows may be from those in float32, as a share of their length (of 1 where they are shorter than that).
# About ten times what was measured; a damaged weight or a wrong kernel is off by all of it.
TOLERANCE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}
COARSEST = 3e-1  # 8 bit


def make_probes(checkpoint: Checkpoint, executor: "Executor") -> tuple[Probe, ...]:
    """A model and an executor that computes it in float32 -> its self-check."""
    labels = checkpoint.labels
    of_pairs = labels is not None and labels.reranker
    inputs = PAIRS if of_pairs else tuple((text,) for text in TEXTS)
    output = checkpoint.model.main_output
    encoded = Tokenizer(checkpoint.text).encode([_input(texts) for texts in inputs], Truncation(True))
    asked = [
        Probe(texts, tuple(one.ids), tuple(one.type_ids or [0] * len(one.ids)), output, ())
        for texts, one in zip(inputs, encoded, strict=True)
    ]
    answers = _run(checkpoint, executor, asked)
    return tuple(
        Probe(one.texts, one.ids, one.type_ids, output, tuple(tuple(map(float, row)) for row in rows))
        for one, rows in zip(asked, answers, strict=True)
    )


def check_tokens(tokenizer: Tokenizer, text: TextSpec) -> None:
    """Raise ModelError unless the tokenizer makes the ids of every probe, those aside that are now cut shorter."""
    for texts, ids in text.probes:
        if len(ids) > text.max_length:
            continue
        found = tokenizer.encode([_input(texts)], Truncation(True))[0].ids
        if tuple(found) != ids:
            raise ModelError(
                f"the artifact's self-check failed: a text of it becomes {len(found)} tokens {_some(found)}, and when "
                f"it was built {len(ids)} tokens {_some(ids)}; install the same tokenizers library, or build it again"
            )


def check_outputs(checkpoint: Checkpoint, executor: "Executor") -> None:
    """Raise WeightsError unless the executor gives the rows of every probe, within the tolerance of its precision."""
    probes = checkpoint.artifact.probes if checkpoint.artifact else ()
    if not probes:
        return
    dtype = executor.device.dtype
    limit = TOLERANCE.get(dtype, COARSEST)
    for probe, rows in zip(probes, _run(checkpoint, executor, probes), strict=True):
        error = difference(rows, np.array(probe.rows, np.float32))
        if not error <= limit:  # NaN too
            raise WeightsError(
                f"the artifact's self-check failed: in {dtype} its outputs are off by {error:.2g} of their length, the "
                f"limit is {limit:g}; run bei verify on it, and build it again"
            )


def difference(rows: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Two arrays (n, C) -> the largest distance of their rows, each divided by its expected length, at least 1."""
    if rows.shape != expected.shape:
        return float("inf")
    lengths = np.maximum(np.linalg.norm(expected, axis=1), 1)
    return float(np.max(np.linalg.norm(rows - expected, axis=1) / lengths))


def _run(checkpoint: Checkpoint, executor: "Executor", probes: Iterable[Probe]) -> list[NDArray[np.float32]]:
    """All probes in one batch -> the rows of each."""
    probes = list(probes)
    batch = pack(checkpoint.model.spec, [one.ids for one in probes], [one.type_ids for one in probes])
    rows = executor.run(batch, probes[0].output, executor.device.divided)
    cuts = batch.cu_seqlens[1:-1] if len(rows) == batch.num_tokens else range(1, len(probes))
    return np.split(rows, cuts)


def _input(texts: tuple[str, ...]) -> Input:
    return texts[0] if len(texts) == 1 else Pair(*texts)


def _some(ids: Iterable[int]) -> str:
    return " ".join(map(str, list(ids)[:8])) + " ..."
