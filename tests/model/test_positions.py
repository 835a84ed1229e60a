"""RoPE and ALiBi by themselves: against transformers' rules, published slopes, and what holds without any oracle."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from openbei.model.ops import numpy as reference
from openbei.model.positions import alibi_slopes, cos_sin, frequencies, visible
from openbei.model.spec import Rope, pack
from openbei.weights.load import load
from tests import families, jina_oracle


@pytest.mark.parametrize(
    ("rope", "parameters", "length"),
    [
        (Rope(5e5, "linear", 4.0), {"rope_type": "linear", "factor": 4.0}, 0),
        (
            Rope(5e5, "llama3", 8.0, original_length=64),
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            0,
        ),
        (Rope(5e5, "dynamic", 2.0, original_length=64), {"rope_type": "dynamic", "factor": 2.0}, 100),
        (Rope(5e5, "dynamic", 2.0, original_length=64), {"rope_type": "dynamic", "factor": 2.0}, 64),
    ],
)
def test_frequencies_are_those_of_transformers(rope: Rope, parameters: dict[str, Any], length: int) -> None:
    config = LlamaConfig(
        hidden_size=128,
        num_attention_heads=4,
        max_position_embeddings=64,
        rope_parameters={"rope_theta": 5e5, **parameters},
    )
    wanted, scale = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, seq_len=length or None)
    assert scale == 1.0
    np.testing.assert_allclose(frequencies(rope, 32, length), wanted.numpy(), rtol=2e-6)


def test_ntk_divides_every_frequency_once_more() -> None:
    """GTE multilingual: theta 20000, factor 8, heads of 64: theta becomes 160000, and all are divided by 1.0671404."""
    wanted = 160_000.0 ** (-np.arange(32) / 32) / 1.0671404
    np.testing.assert_allclose(frequencies(Rope(20_000.0, "ntk", 8.0), 64), wanted, rtol=1e-7)


def test_mixed_ntk_ends_at_its_whole_factor() -> None:
    plain = frequencies(Rope(20_000.0), 64)
    mixed = frequencies(Rope(20_000.0, "ntk_mixed", 8.0, mixed_b=0.5), 64)
    strength = np.log(8.0) / 32**0.5
    for index in (0, 5, 31):
        assert plain[index] / mixed[index] == pytest.approx(np.exp(strength * (index + 1) ** 0.5))
    assert plain[-1] / mixed[-1] == pytest.approx(8.0)


def test_dynamic_rope_goes_by_each_sequence_of_a_batch(tmp_path: Path) -> None:
    spec = load(str(families.save(tmp_path, "nomic-dynamic"))).model.spec
    rope = Rope(1000.0, "dynamic", 2.0, original_length=16)
    together = cos_sin(rope, 12, pack(spec, [[5] * 10, [5] * 40, [5] * 17]))
    for part, whole in enumerate(together):
        alone = [cos_sin(rope, 12, pack(spec, [[5] * length]))[part] for length in (10, 40, 17)]
        np.testing.assert_array_equal(whole, np.concatenate(alone))


def test_alibi_slopes_are_those_of_the_paper() -> None:
    twelve = [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625]
    twelve += [0.70710678, 0.35355339, 0.1767767, 0.08838835]
    np.testing.assert_allclose(alibi_slopes(12), twelve, rtol=1e-7)
    for heads in (1, 2, 3, 7, 8, 16, 20):
        np.testing.assert_allclose(alibi_slopes(heads), jina_oracle.alibi_slopes(heads), rtol=1e-12)


@pytest.mark.parametrize("family", ["jina-en", "jina-code"])
def test_alibi_is_the_same_in_both_directions(family: str, tmp_path: Path) -> None:
    model = load(str(families.save(tmp_path, family))).model
    ids = [5, 9, 7, 8, 20, 11]
    states = reference.run(model, pack(model.spec, [ids]), "states")
    backwards = reference.run(model, pack(model.spec, [ids[::-1]]), "states")
    np.testing.assert_allclose(states, backwards[::-1], atol=1e-5)


@pytest.mark.parametrize(
    ("causal", "window", "seen"),
    [
        (True, None, [1, 1, 1, 1, 0, 0, 0]),
        (False, None, [1, 1, 1, 1, 1, 1, 1]),
        (True, 2, [0, 0, 1, 1, 0, 0, 0]),
        (False, 4, [0, 1, 1, 1, 1, 1, 0]),
        (False, 5, [0, 1, 1, 1, 1, 1, 0]),
    ],
)
def test_what_a_token_sees_from_three_before_to_three_after(causal: bool, window: int | None, seen: list[int]) -> None:
    np.testing.assert_array_equal(visible(np.arange(-3, 4), causal, window), np.array(seen, bool))
