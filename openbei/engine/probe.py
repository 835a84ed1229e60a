"""An artifact's self-check: a few inputs with the outputs that the model gave when it was built.

Owns the inputs, the comparison and its tolerances; never touches files.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from openbei.engine.request import Input, Pair
from openbei.engine.tokenizer import Tokenizer
from openbei.engine.truncation import Truncation
from openbei.errors import ModelError, WeightsError
from openbei.model.ops import numpy as plain
from openbei.model.spec import Batch, Model, Output, pack
from openbei.weights.checkpoint import Checkpoint, TextSpec
from openbei.weights.manifest import Probe

if TYPE_CHECKING:
    from openbei.engine.executor import Executor

Floats = NDArray[np.float32]

# Short, so that a start is not slowed; of three scripts and of two lengths in one batch, so that a tokenizer's
# normalizer and the packing are tried too.
TEXTS = (
    "The sky is blue because air scatters short waves more.",
    "Größe: 3½ café, naïve - 東京の天気は晴れです 🙂",
)
PAIRS = (("colour of the sky", TEXTS[0]), ("Wetter in Tokio", TEXTS[1]))
KEPT_VALUES = 1024  # of an output with a row a token: so many rows as have so many values, two at least

# How far the rows of a text may be from those in float32, as a share of their length. At most measured, on MiniLM and
# tiny random models of every family and every output: float32 4e-6, float16 0.016, bfloat16 0.095, fp8 0.67, each of a
# lone logit; of vectors 1e-6, 0.002, 0.02 and 0.25. Zeros are 1 away, another text's vectors about 1.4.
TOLERANCE = {"float32": 1e-4, "float16": 5e-2, "bfloat16": 3e-1, "fp8": 9e-1}
LEAST: dict[Output, float] = {"labels": 1.0}  # the shortest length of which it is a share: a logit may be near 0


def make_probes(checkpoint: Checkpoint) -> tuple[Probe, ...]:
    """A model -> its self-check: every output that it has, computed plainly in float32 from the weights as stored.

    Raises WeightsError where an output is no number.
    """
    labels, model = checkpoint.labels, checkpoint.model
    inputs = PAIRS if labels is not None and labels.reranker else tuple((text,) for text in TEXTS)
    encoded = Tokenizer(checkpoint.text).encode([_input(texts) for texts in inputs], Truncation(True))
    probes = [
        Probe(texts, tuple(one.ids), tuple(one.type_ids or [0] * len(one.ids)), {})
        for texts, one in zip(inputs, encoded, strict=True)
    ]
    batch = _batch(model, probes)
    for output in outputs_of(model):
        found = plain.run(model, batch, output)
        if not np.isfinite(found).all():
            raise WeightsError(
                f"the model's {output} are no numbers: its weights are damaged, or too large for float32"
            )
        for probe, rows in zip(probes, _kept(model, batch, output, found), strict=True):
            probe.rows[output] = tuple(tuple(map(_short, row)) for row in rows)
    return tuple(probes)


def outputs_of(model: Model) -> tuple[Output, ...]:
    """What the model is for, and what else it can be asked for."""
    others: tuple[tuple[Output, object], ...] = (
        ("states", model.head is None and model.pooling is not None and not model.num_logs),
        ("weights", model.weigher),
        ("multi", model.multi),
    )
    return tuple(dict.fromkeys((model.main_output, *(output for output, there in others if there))))


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


def check_outputs(checkpoint: Checkpoint, executor: "Executor", every: bool = False) -> None:
    """Raise WeightsError unless the executor gives the rows of every probe, within the tolerance of its precision.

    every: of all outputs, also those that the executor has to compile for it; else of what the model is for.
    """
    outputs = outputs_of(checkpoint.model) if every else (checkpoint.model.main_output,)
    device = executor.device
    _check(checkpoint, outputs, device.dtype, lambda batch, output: executor.run(batch, output, device.divided))


def check_weights(checkpoint: Checkpoint) -> None:
    """Raise WeightsError unless every output is what it was when the artifact was built, computed in the same way."""
    model = checkpoint.model
    _check(checkpoint, outputs_of(model), "float32", lambda batch, output: plain.run(model, batch, output))


def _check(
    checkpoint: Checkpoint, outputs: Sequence[Output], dtype: str, run: Callable[[Batch, Output], Floats]
) -> None:
    model, limit = checkpoint.model, TOLERANCE[dtype]
    probes = checkpoint.artifact.probes if checkpoint.artifact else ()
    if not probes:
        return
    batch = _batch(model, probes)
    for output in outputs:
        for probe, rows in zip(probes, _kept(model, batch, output, run(batch, output)), strict=True):
            error = difference(rows, np.array(probe.rows.get(output, ()), np.float32), LEAST.get(output, 0.0))
            if not error <= limit:  # NaN too
                raise WeightsError(
                    f"the artifact's self-check failed: in {dtype} its {output} are off by {error:.2g} of their "
                    f"length, the limit is {limit:g}; run bei verify on it, and build it again"
                )


def difference(rows: Floats, expected: Floats, least: float = 0.0) -> float:
    """Two arrays (n, C) -> their distance as a share of the length of the second, or of least if that is longer."""
    if rows.shape != expected.shape:
        return float("inf")
    return float(np.linalg.norm(rows - expected)) / max(float(np.linalg.norm(expected)), least, 1e-30)


def _batch(model: Model, probes: Sequence[Probe]) -> Batch:
    """All probes in one batch."""
    return pack(model.spec, [probe.ids for probe in probes], [probe.type_ids for probe in probes])


def _kept(model: Model, batch: Batch, output: Output, rows: Floats) -> Iterator[Floats]:
    """The rows of all probes -> those of each that are kept: all, or where there are many some, evenly spread."""
    if not model.is_by_token(output):
        yield from np.split(rows, len(batch.lengths))
        return
    most = max(2, KEPT_VALUES // rows.shape[1])
    for part in np.split(rows, batch.cu_seqlens[1:-1]):
        yield part[np.unique(np.linspace(0, len(part) - 1, most).astype(int))] if len(part) > most else part


def _short(value: np.float32) -> float:
    """The number of fewest digits that is this one in float32."""
    return float(str(value))


def _input(texts: tuple[str, ...]) -> Input:
    return texts[0] if len(texts) == 1 else Pair(*texts)


def _some(ids: Iterable[int]) -> str:
    return " ".join(map(str, list(ids)[:8])) + " ..."
