"""Which of a flag and a model's file wins, where queries have a limit of their own."""

from pathlib import Path

import pytest

from openbei.config import EngineConfig
from openbei.engine.settle import limited
from openbei.errors import ConfigError
from openbei.weights.checkpoint import TextSpec


@pytest.mark.parametrize(
    ("config", "want"),
    [
        ({}, (32, 64)),
        ({"max_input_length": 40}, (32, 40)),
        ({"max_batch_tokens": 40}, (32, 40)),
        ({"max_input_length": 99, "max_batch_tokens": 30}, (30, 30)),
    ],
)
def test_a_limit_lowers_both_lengths_and_raises_neither(config: dict[str, int], want: tuple[int, int]) -> None:
    text = limited(TextSpec(Path("tokenizer.json"), 32, max_query_length=64), EngineConfig(**config))
    assert (text.max_length, text.max_query_length) == want


def test_the_longer_of_both_needs_auto_truncate() -> None:
    text = TextSpec(Path("tokenizer.json"), 32, max_query_length=64)
    with pytest.raises(ConfigError, match="max_batch_tokens 63 < max_input_length 64 needs auto_truncate"):
        limited(text, EngineConfig(max_batch_tokens=63, auto_truncate=False))
    assert limited(text, EngineConfig(max_batch_tokens=64, auto_truncate=False)) == text
