"""Rows as the model gave them -> what the request asked for: vectors cut and normalised, logits activated.

Owns the last step of every task, in float64 where rounding would show; never touches queues, time or tokens.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from openbei.engine.request import Options, Rows, Task
from openbei.errors import InferenceFailed

Floats = NDArray[np.float32]
Activation = Literal["sigmoid", "softmax", "identity"]
SMALLEST_NORM = 1e-12


def finished(task: Task, rows: Sequence[Floats], options: Options, activation: Activation) -> Rows:
    """One row an input, float32 -> Result.rows. Raises InferenceFailed on NaN and infinity.

    rows: (C,) to embed, (n, C) of n tokens, logits (L,), or (n, L) of n tokens. activation: what the model's labels
    ask for; tokens take softmax over the labels, as transformers' pipeline for token classification does.
    """
    if not np.isfinite(np.concatenate(rows)).all():
        raise InferenceFailed("inference failed: the model's output holds NaN or infinity")
    match task:
        case "embed":
            vectors = np.stack(rows)[:, : options.dimensions]
            return normalized(vectors) if options.normalize else vectors
        case "embed_tokens":
            return list(rows)
        case "classify_tokens":
            return [row if options.raw_scores else activated(row, "softmax") for row in rows]
        case "classify" | "rerank":
            scores = np.stack(rows) if options.raw_scores else activated(np.stack(rows), activation)
            return scores if task == "classify" else scores[:, 0]


def normalized(vectors: Floats) -> Floats:
    """Rows (N, C) -> rows of L2 norm 1, the norm in float64; a zero row stays zero."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, SMALLEST_NORM), np.float32)


def activated(logits: Floats, activation: Activation) -> Floats:
    """Logits (N, L) -> scores: sigmoid of each label by itself, softmax over the labels, or as they are."""
    if activation == "identity":
        return logits
    exact = logits.astype(np.float64)
    if activation == "sigmoid":
        powers = np.exp(-np.abs(exact))  # never overflows, on either side
        return np.asarray(np.where(exact >= 0, 1, powers) / (1 + powers), np.float32)
    powers = np.exp(exact - exact.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)
