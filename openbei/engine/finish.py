"""Rows as the model gave them -> what the request asked for: vectors cut and normalised, logits activated.

Owns the last step of every task, in float64 where rounding would show; never touches queues, time or tokens.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from openbei.engine.request import Options, Rows, Task
from openbei.engine.sparse import NO_TOKENS, Tokens, sparse_by_id, sparse_by_word, which_count
from openbei.errors import InferenceFailed

Floats = NDArray[np.float32]
Activation = Literal["sigmoid", "softmax", "identity", "log1p_relu", "log1p_log1p_relu"]
SMALLEST_NORM = 1e-12


def finished(
    task: Task, rows: Sequence[Floats], options: Options, activation: Activation, tokens: Tokens = NO_TOKENS
) -> Rows:
    """One row an input, float32 -> Result.rows. Raises InferenceFailed on NaN and infinity.

    rows: (C,) to embed, (n, C) of n tokens, logits (L,), or (n, L) of n tokens; of embed_sparse what few_words made, or
    the weights (n, 1) of n tokens. activation: what the model's labels ask for, or SPLADE's words; tokens take softmax
    over the labels, as transformers' pipeline for token classification does. tokens: where rows go by them, for
    embed_sparse and embed_multi.
    """
    if not np.isfinite(np.concatenate(rows)).all():
        raise InferenceFailed("inference failed: the model's output holds NaN or infinity")
    answer: Rows
    match task:
        case "embed":
            vectors = activated(np.stack(rows)[:, : options.dimensions], activation)
            answer = normalized(vectors) if options.normalize else vectors
        case "embed_tokens":
            answer = list(rows)
        case "embed_sparse" if tokens is NO_TOKENS:
            answer = [sparse_by_word(row, lambda logits: activated(logits, activation)) for row in rows]
        case "embed_sparse":
            answer = [sparse_by_id(row[:, 0], ids, tokens.rules) for row, ids in zip(rows, tokens.ids, strict=True)]
        case "embed_multi":
            kept = [row[which_count(ids, options, tokens.rules)] for row, ids in zip(rows, tokens.ids, strict=True)]
            cut = [row[:, : options.dimensions] for row in kept]
            answer = [normalized(row) for row in cut] if options.normalize else cut
        case "classify_tokens":
            answer = [row if options.raw_scores else activated(row, "softmax") for row in rows]
        case "classify" | "rerank":
            scores = np.stack(rows) if options.raw_scores else activated(np.stack(rows), activation)
            answer = scores if task == "classify" else scores[:, 0]
    return answer


def normalized(vectors: Floats) -> Floats:
    """Rows (N, C) -> rows of L2 norm 1, the norm in float64; a zero row stays zero."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, SMALLEST_NORM), np.float32)


def activated(logits: Floats, activation: Activation) -> Floats:
    """Logits (N, L) -> scores: sigmoid of each label by itself, softmax over the labels, or as they are.

    log1p_relu: log(1 + x) of what is over 0 (SPLADE, Formal et al. 2021), or, log1p_log1p_relu, of that once more.
    """
    if activation == "identity":
        return logits
    exact = logits.astype(np.float64)
    if activation in ("log1p_relu", "log1p_log1p_relu"):
        once = np.log1p(np.maximum(exact, 0))
        return np.asarray(once if activation == "log1p_relu" else np.log1p(once), np.float32)
    if activation == "sigmoid":
        powers = np.exp(-np.abs(exact))  # never overflows, on either side
        return np.asarray(np.where(exact >= 0, 1, powers) / (1 + powers), np.float32)
    powers = np.exp(exact - exact.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)
