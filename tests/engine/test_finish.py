"""The last step of every task: norms and activations, also where a careless one overflows."""

import numpy as np
import pytest
import torch

from openbei.engine.finish import activated, normalized

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
