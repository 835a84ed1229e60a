"""Rows that go by tokens -> sparse vectors, and which tokens have a vector of their own.

Owns what is kept and what is left out, and the form in which rows of words travel; never touches scores past the
largest of several. Sources: sentence-transformers
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
MAX_VALUES = 1 << 24  # of a batch's rows of words: 64 MiB


@dataclass(frozen=True, slots=True)
class Tokens:
    """The ids of every input, and the rules by which they count."""

    ids: Sequence[Sequence[int]]
    rules: ByToken


NO_TOKENS = Tokens((), ByToken())


def few_words(row: Floats) -> Floats:
    """A logit of every word of the vocabulary (V,) -> the ids over 0, which float32 holds exactly, with theirs (K, 2).

    NaN is kept, so that it is seen.
    """
    words = np.flatnonzero(~(row <= 0))
    return np.stack((words, row[words]), axis=1, dtype=np.float32, casting="same_kind")


def all_words(few: Floats, num_words: int) -> Floats:
    """What few_words made (K, 2) -> (V,), 0 where it has none."""
    row = np.zeros(num_words, np.float32)
    row[few[:, 0].astype(np.int64)] = few[:, 1]
    return row


def looked_up(ids: Sequence[int], weights: Floats) -> Floats:
    """The ids of a query, and a weight of every word (V,) -> each id once with its weight, as few_words (K, 2)."""
    words = np.unique(np.array(ids, np.int64))
    words = words[weights[words] != 0]
    return np.stack((words, weights[words]), axis=1, dtype=np.float32, casting="same_kind")


def at_most(max_requests: int | None, num_words: int) -> int:
    """The most inputs of a batch, and the words that each has a row of -> so many that MAX_VALUES hold them."""
    fitting = max(1, MAX_VALUES // num_words)
    return fitting if max_requests is None else min(max_requests, fitting)


def sparse_by_word(few: Floats, weigh: Callable[[Floats], Floats]) -> SparseVector:
    """What few_words made (K, 2) -> these words with their weights."""
    return SparseVector(few[:, 0].astype(np.int32), weigh(few[:, 1]))


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
