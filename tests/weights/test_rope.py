"""Rotary positions in config.json, in both spellings, and what is refused by name."""

from typing import Any

import pytest

from openbei.errors import UnsupportedModel
from openbei.model.spec import Rope
from openbei.weights.families import read_config

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 99,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


@pytest.mark.parametrize(
    ("changes", "rope"),
    [
        ({}, Rope(10_000.0)),
        ({"rope_theta": 5e5}, Rope(5e5)),
        ({"rope_theta": 5e5, "rope_scaling": None}, Rope(5e5)),
        ({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2}}, Rope(5e5, "linear", 2.0)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, Rope(1e6)),
        ({"rope_theta": 1e6, "rope_parameters": {"rope_type": "default"}}, Rope(1e6)),
        ({"rope_theta": 9.0, "rope_scaling": {"type": "ntk", "factor": 8.0}}, Rope(9.0, "ntk", 8.0)),
        (
            {"rope_theta": 9.0, "rope_scaling": {"type": "ntk", "factor": 8.0, "mixed_b": 0.5}},
            Rope(9.0, "ntk_mixed", 8.0, 0.5),
        ),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            Rope(10_000.0, "dynamic", 2.0, original_length=64),
        ),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}}, Rope(10_000.0, "llama3", 8.0, original_length=64)),
    ],
)
def test_rope_in_both_spellings(changes: dict[str, Any], rope: Rope) -> None:
    assert read_config({**LLAMA, **changes})[0].rope == rope


def test_gemma3_has_two_thetas_and_scales_only_the_full_layers() -> None:
    older = {"rope_theta": 5e4, "rope_local_base_freq": 1e3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    newer = {
        "full_attention": {"rope_type": "linear", "rope_theta": 5e4, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
    }
    for changes in (older, {"rope_parameters": newer}):
        spec, _ = read_config({**LLAMA, "model_type": "gemma3_text", **changes})
        assert (spec.rope, spec.local_rope) == (Rope(5e4, "linear", 8.0), Rope(1e3))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "RoPE of type 'yarn'; supported: default, linear, ntk"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'llama3' without low_freq_factor"),
        ({"rope_scaling": {"rope_type": "linear"}}, "'linear' without factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 32}}, "scales RoPE with beta_fast 32"),
        ({"rope_parameters": {"rope_theta": 1.0, "partial_rotary_factor": 0.5}}, "partial_rotary_factor 0.5"),
        ({"rope_theta": "big"}, "rope_theta 'big'; it must be a number"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        read_config({**LLAMA, **changes})
