"""Rows that go by tokens -> sparse vectors, and which tokens have a vector of their own.

Owns what is kept and what is left out; never touches scores past the largest of several. Sources: sentence-transformers
(sparse_encoder, multi_vector_encoder/modules/multi_vector_mask.py) and, of bge-m3, FlagOpen/FlagEmbedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openbei.engine.request import Options, SparseVector
from openbei.engine.tokenizer import Encoded
from openbei.model.spec import HIDDEN
from openbei.weights.checkpoint import ByToken, Expansion

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The ids of every input, and the rules by which they count."""

    ids: Sequence[Sequence[int]]
    rules: ByToken


NO_TOKENS = Tokens((), ByToken())


def sparse_by_word(logits: Floats, weigh: Callable[[Floats], Floats]) -> SparseVector:
    """A logit of every word of the vocabulary (V,) -> the words over 0 with their weights."""
    words = np.flatnonzero(logits > 0).astype(np.int32)
    return SparseVector(words, weigh(logits[words]))


def sparse_by_id(weights: Floats, ids: Sequence[int], rules: ByToken) -> SparseVector:
    """A weight of every token (n,), and its id -> the largest weight of each id, where it is over 0."""
    of_token = np.array(ids, np.int32)
    counts = (weights > 0) & ~np.isin(of_token, list(rules.unweighed))
    words, places = np.unique(of_token[counts], return_inverse=True)
    values = np.zeros(len(words), np.float32)
    np.maximum.at(values, places, weights[counts])
    return SparseVector(words, values)


def which_count(ids: Sequence[int], options: Options, rules: ByToken) -> NDArray[np.bool_]:
    """The ids of an input (n,) -> True for the tokens that have a vector."""
    counts = np.arange(len(ids)) >= rules.num_dropped
    return counts if options.is_query else counts & ~np.isin(np.array(ids, np.int32), list(rules.skipped))


def expanded(query: Encoded, expansion: Expansion | None) -> Encoded:
    """The tokens of a query, filled up to the expansion's length, unless there is none."""
    missing = 0 if expansion is None else expansion.length - len(query.ids)
    if expansion is None or missing <= 0:
        return query
    types = query.type_ids or [0] * len(query.ids)
    return Encoded(query.ids + [expansion.token_id] * missing, types + [0 if expansion.attended else HIDDEN] * missing)
