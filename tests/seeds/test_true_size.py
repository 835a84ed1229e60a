"""The 24 models at their published sizes: every tensor has its place, every number fits. Nothing is allocated.

Names and shapes are those of the judges on torch's meta device; the parameter counts are those that the pages state.
"""

import numpy as np
import pytest
import torch

from openbei.model.spec import ModelSpec, Rope, num_parameters
from openbei.weights.families import read_config
from openbei.weights.fill import fill
from openbei.weights.labels import HeadFacts, read_labels
from openbei.weights.tensors import Tensor
from tests.seeds.rows import SEEDS


def _spec(name: str) -> ModelSpec:
    return read_config(SEEDS[name].config)[0]


@pytest.mark.parametrize("name", SEEDS)
def test_every_published_tensor_has_its_place_and_the_sum_is_exact(name: str) -> None:
    seed, zero = SEEDS[name], np.float32(0)
    with torch.device("meta"):
        parameters = dict(seed.judge(seed.config).named_parameters())
    tensors = {key: Tensor(np.broadcast_to(zero, tuple(each.shape)), "F32") for key, each in parameters.items()}
    spec, family = read_config(seed.config, tensors)
    weights, head = fill(spec, family, tensors)
    unused = 0 if head else sum(tensor.data.size for key, tensor in tensors.items() if key.startswith("pooler."))
    assert num_parameters(weights) + num_parameters(head.layers if head else ()) + unused == seed.parameters
    assert (head.layers[-1].linear.weight.shape[0] if head else 0) == len(seed.config.get("id2label", ()))
    assert bool(head) is (seed.task != "embed")


@pytest.mark.parametrize(
    ("name", "max_length"),
    [
        ("all-MiniLM-L6-v2", 512),
        ("bge-m3", 8192),
        ("multilingual-e5-large-instruct", 512),
        ("jina-embeddings-v2-base-code", 8192),
        ("nomic-embed-text-v1.5", 8192),
        ("gte-multilingual-reranker-base", 8192),
        ("e5-mistral-7b-instruct", 32768),
        ("Skywork-Reward-Llama-3.1-8B-v0.2", 131072),
    ],
)
def test_how_long_a_text_may_be(name: str, max_length: int) -> None:
    assert _spec(name).max_length == max_length


def test_the_switches_that_are_easily_missed() -> None:
    qwen, mistral = _spec("gte-Qwen2-1.5B-instruct"), _spec("bge-en-icl")
    assert (qwen.causal, qwen.window, qwen.rope) == (False, None, Rope(1e6))
    assert (mistral.causal, mistral.window, mistral.rope) == (True, 4096, Rope(1e4))
    gemma = _spec("bge-multilingual-gemma2")
    assert (gemma.softcap, gemma.score_scale, gemma.window) == (50.0, 1 / 16, 4096)
    assert gemma.local_layers[:3] == (True, False, True)
    assert _spec("nomic-embed-text-v1.5").rope == Rope(1000.0)
    assert _spec("gte-multilingual-reranker-base").rope == Rope(20000.0, "ntk", 8.0)
    assert _spec("Llama-3.1-Tulu-3-8B-RM").rope == Rope(5e5, "llama3", 8.0, original_length=8192)
    assert _spec("Meta-Llama-3-70B-InstructForSequenceClassification").rope == Rope(5e5)


@pytest.mark.parametrize(
    ("name", "num_labels", "decoder", "activation"),
    [
        ("bge-reranker-large", 1, False, "sigmoid"),
        ("gte-multilingual-reranker-base", 1, False, "sigmoid"),
        ("roberta-base-go_emotions", 28, False, "sigmoid"),
        ("xlm-roberta-base-language-detection", 20, False, "softmax"),
        ("Skywork-Reward-Llama-3.1-8B-v0.2", 1, True, "identity"),
        ("Meta-Llama-3-70B-InstructForSequenceClassification", 2, True, "softmax"),
    ],
)
def test_how_scores_are_made(name: str, num_labels: int, decoder: bool, activation: str) -> None:
    family = read_config(SEEDS[name].config)[1]
    assert family.decoder is decoder
    assert read_labels(SEEDS[name].config, num_labels, HeadFacts(False, decoder)).activation == activation
