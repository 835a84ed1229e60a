"""The last step of every task: norms and activations, also where a careless one overflows."""

import numpy as np
import pytest
import torch

from openbei.engine.finish import activated, normalized
from openbei.engine.request import Options
from openbei.engine.sparse import all_words, at_most, few_words, sparse_by_id, sparse_by_word, which_count
from openbei.weights.checkpoint import ByToken

EXTREME = np.float32([[0, -100], [100, 0], [3e38, -3e38], [-3e38, 3e38], [1e-30, 0], [88.8, 88.9], [-745, -746]])


@pytest.mark.parametrize(
    ("activation", "judge"), [("softmax", lambda x: torch.softmax(x, -1)), ("sigmoid", torch.sigmoid)]
)
def test_activations_equal_torch_and_never_overflow(activation, judge) -> None:
    rng = np.random.default_rng(3)
    for logits in (EXTREME, rng.normal(0, 5, (20, 7)).astype(np.float32)):
        want = judge(torch.from_numpy(logits.astype(np.float64))).numpy()
        scores = activated(logits, activation)
        assert np.allclose(scores, want, rtol=1e-6, atol=1e-12)
        assert scores.dtype == np.float32


def test_softmax_of_one_overwhelming_label_is_one() -> None:
    assert activated(np.float32([[0, -100]]), "softmax").tolist() == [[1.0, pytest.approx(3.8e-44, abs=2e-45)]]


def test_identity_gives_the_logits() -> None:
    assert activated(EXTREME, "identity") is EXTREME


def test_a_zero_vector_stays_zero() -> None:
    assert normalized(np.float32([[0, 0], [3, 4]])).tolist() == [[0, 0], [pytest.approx(0.6), pytest.approx(0.8)]]


def test_a_norm_is_taken_in_float64_and_is_at_least_1e_12() -> None:
    """In float32 the squares of the first overflow; the second stays as short beside 1 as it is beside 1e-12."""
    rows = normalized(np.float32([[3e20, 4e20], [1e-13, 0]]))
    assert np.allclose(rows, [[0.6, 0.8], [0.1, 0]], rtol=1e-6)


def test_words_are_weighed_as_splade_says() -> None:
    logits = np.float32([[-3e38, -1, 0, 1e-30, 1, 3e38]])
    once = torch.log1p(torch.relu(torch.from_numpy(logits.astype(np.float64))))
    assert np.allclose(activated(logits, "log1p_relu"), once.numpy(), rtol=1e-6, atol=0)
    assert np.allclose(activated(logits, "log1p_log1p_relu"), torch.log1p(once).numpy(), rtol=1e-6, atol=0)


def test_a_sparse_vector_holds_the_largest_weight_of_each_id_that_counts() -> None:
    weights = np.float32([9, 0.5, 0, 0.25, 2, 1, 9])
    row = sparse_by_id(weights, [0, 7, 8, 7, 5, 5, 2], ByToken(unweighed=frozenset({0, 2})))
    assert (row.indices.tolist(), row.values.tolist()) == ([5, 7], [2, 0.5])
    assert (row.indices.dtype, row.values.dtype) == (np.int32, np.float32)
    nothing = sparse_by_id(np.zeros(2, np.float32), [5, 6], ByToken())
    assert (len(nothing.indices), len(nothing.values)) == (0, 0)


def test_which_tokens_have_a_vector() -> None:
    rules = ByToken(num_dropped=1, skipped=frozenset({4}))
    assert which_count([4, 4, 5], Options(), rules).tolist() == [False, False, True]
    assert which_count([4, 4, 5], Options(is_query=True), rules).tolist() == [False, True, True]
    assert which_count([4, 5], Options(), ByToken()).tolist() == [True, True]


def test_a_row_of_words_is_its_words_over_zero() -> None:
    row = np.zeros(300_000, np.float32)
    row[[0, 7, 262_143, 299_999]] = 0.5, -1, 2, 3e-30
    few = few_words(row)
    assert few.tolist() == [[0, 0.5], [262_143, 2], [299_999, np.float32(3e-30)]]
    assert few.dtype == np.float32
    words, values = sparse_by_word(few, lambda logits: logits)
    assert (words.tolist(), words.dtype, values.tolist()) == ([0, 262_143, 299_999], np.int32, few[:, 1].tolist())
    assert np.array_equal(all_words(few, 300_000), np.maximum(row, 0))
    assert few_words(np.zeros(9, np.float32)).shape == (0, 2)
    assert np.isnan(few_words(np.float32([0, np.nan]))[0, 1])  # so that it fails the request, and is not left out


@pytest.mark.parametrize(("asked", "num_words", "most"), [(None, 30_522, 549), (8, 30_522, 8), (None, 1 << 25, 1)])
def test_a_batch_has_only_so_many_rows_of_words(asked: int | None, num_words: int, most: int) -> None:
    assert at_most(asked, num_words) == most
