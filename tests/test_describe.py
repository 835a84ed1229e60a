"""What openbei says of a model: attention, positions, labels, for networks past BERT."""

from pathlib import Path

import pytest

from openbei.describe import checkpoint_facts, precision_reason, table
from openbei.weights.load import load
from tests import families, splade


@pytest.mark.parametrize(
    ("family", "position_kind", "attention"),
    [
        ("bert", "learned", "to both sides"),
        ("jina-en", "ALiBi", "to both sides"),
        ("gte-new", "rotary, theta 20000, ntk scaling by 8", "to both sides"),
        ("modernbert", "rotary, theta 50000", "to both sides, 8 tokens wide in 2 of 4 layers"),
        ("mistral", "rotary, theta 10000", "causal, 7 tokens wide in 4 of 4 layers"),
        ("qwen2-both-sides", "rotary, theta 1e+06", "to both sides"),
    ],
)
def test_positions_and_attention(family: str, position_kind: str, attention: str, tmp_path: Path) -> None:
    facts = checkpoint_facts(load(str(families.save(tmp_path, family))))
    assert (facts["position_kind"], facts["attention"]) == (position_kind, attention)
    assert (facts["task"], facts["labels"]) == ("embed", [])
    assert facts["gated"] is (family != "bert")


def test_what_embeds_in_other_ways(tmp_path: Path) -> None:
    facts = checkpoint_facts(load(str(splade.save(tmp_path, "distilbert"))))
    assert (facts["task"], facts["pooling"], facts["embedding_dim"]) == ("embed sparse", "splade", facts["vocab_size"])


@pytest.mark.parametrize(
    ("family", "kind", "num_labels", "task", "scores"),
    [
        ("bert", "Sequence", 1, "rerank", "sigmoid"),
        ("roberta", "Sequence", 3, "classify", "softmax"),
        ("distilbert", "Token", 3, "classify tokens", "softmax"),
        ("llama", "Sequence", 1, "classify", "sigmoid"),
    ],
)
def test_labels(family: str, kind: str, num_labels: int, task: str, scores: str, tmp_path: Path) -> None:
    judge = families.network(family, kind, num_labels=num_labels)
    facts = checkpoint_facts(load(str(families.save(tmp_path, family, judge, pooling=None))))
    assert (facts["task"], facts["scores"], facts["embedding_dim"]) == (task, scores, None)
    assert facts["labels"] == [f"LABEL_{number}" for number in range(num_labels)]
    assert "LABEL_0" in table(facts)


@pytest.mark.parametrize(
    ("asked", "dtype", "device", "reason"),
    [
        ("auto", "bfloat16", "cpu, 2 streams", "native on this CPU"),
        ("auto", "float32", "cpu, 2 streams", "this CPU has no native bfloat16"),
        ("fp16", "float32", "cpu, 2 streams", "float16 is computed in float32 on a CPU"),
        ("auto", "bfloat16", "NVIDIA H100", "native on this GPU"),
        ("auto", "fp8", "NVIDIA H100", "its weights are, or in 16 bit it does not fit"),
        ("fp16", "float16", "NVIDIA H100", "asked for with --dtype"),
    ],
)
def test_why_a_precision_was_chosen(asked: str, dtype: str, device: str, reason: str) -> None:
    assert precision_reason(asked, dtype, device) == reason
