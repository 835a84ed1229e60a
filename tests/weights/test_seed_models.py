"""The 24 models that openbei is made for, by their published configs: every tensor has its place, every number fits.

Shapes come from transformers' own classes on its meta device (JinaBERT's from our oracle), so nothing is allocated; the
exact parameter counts are those that the models' pages state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from openbei.model.spec import ModelSpec, Rope, num_parameters
from openbei.weights.families import read_config
from openbei.weights.fill import fill
from openbei.weights.labels import HeadFacts, read_labels
from tests.jina_oracle import JinaConfig, JinaOracle

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Seed:
    """A published config.json (what matters of it), the shapes of the published tensors, and their sum."""

    config: dict[str, Any]
    shapes: Callable[[], Shapes]
    parameters: int


def _sizes(width: int, layers: int, heads: int, ffn: int, vocabulary: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "vocab_size": vocabulary,
    }


def _shapes(model: str, config: str, keys: dict[str, Any]) -> Callable[[], Shapes]:
    """Names and shapes of a transformers class, without memory."""

    def make() -> Shapes:
        with torch.device("meta"):
            made = getattr(transformers, model)(getattr(transformers, config)(**keys))
        return {name: tuple(tensor.shape) for name, tensor in made.named_parameters()}

    return make


def _bert(sizes: dict[str, Any], parameters: int, **extra: Any) -> Seed:
    keys = {**sizes, "max_position_embeddings": 512, "type_vocab_size": 2, "layer_norm_eps": 1e-12, **extra}
    model = "BertForSequenceClassification" if "num_labels" in extra else "BertModel"
    return Seed(
        {"model_type": "bert", "architectures": [model], **keys}, _shapes(model, "BertConfig", keys), parameters
    )


def _roberta(kind: str, sizes: dict[str, Any], parameters: int, positions: int = 514, **extra: Any) -> Seed:
    keys = {**sizes, "max_position_embeddings": positions, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    keys |= {"pad_token_id": 1, **extra}
    model = f"{kind}ForSequenceClassification" if "num_labels" in extra else f"{kind}Model"
    model_type = {"Roberta": "roberta", "XLMRoberta": "xlm-roberta"}[kind]
    config = {"model_type": model_type, "architectures": [model], **keys}
    return Seed(config, _shapes(model, f"{kind}Config", keys), parameters)


def _jina(code: bool, vocabulary: int, parameters: int) -> Seed:
    sizes = _sizes(768, 12, 12, 3072, vocabulary)
    repository = "jinaai/jina-bert-v2-qk-post-norm" if code else "jinaai/jina-bert-implementation"
    config = {"model_type": "bert", "architectures": ["JinaBertForMaskedLM"], **sizes, "type_vocab_size": 2}
    config |= {"position_embedding_type": "alibi", "feed_forward_type": "geglu", "model_max_length": 8192}
    config |= {"auto_map": {"AutoModel": f"{repository}--modeling_bert.JinaBertModel"}, "hidden_act": "gelu"}
    oracle = JinaConfig(**sizes, code=code)
    return Seed(config, lambda: {name: tuple(t.shape) for name, t in JinaOracle(oracle).named_parameters()}, parameters)


def _decoder(kind: str, sizes: dict[str, Any], parameters: int, **extra: Any) -> Seed:
    """extra: what config.json adds; with num_labels, a score head."""
    keys = {**sizes, **extra}
    model = f"{kind}ForSequenceClassification" if "num_labels" in extra else f"{kind}Model"
    shaping = {key: value for key, value in keys.items() if key not in ("auto_map", "rope_scaling", "rope_theta")}
    config = {"model_type": kind.lower(), "architectures": [model], **keys}
    return Seed(config, _shapes(model, f"{kind}Config", shaping), parameters)


_NOMIC_KEYS = {**_sizes(768, 12, 12, 3072, 30528), "max_position_embeddings": 2048}
_NOMIC = {
    "model_type": "nomic_bert",
    "architectures": ["NomicBertModel"],
    "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"},
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": 3072,
    "n_positions": 8192,
    "vocab_size": 30528,
    "layer_norm_epsilon": 1e-12,
    "activation_function": "swiglu",
    "prenorm": False,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "max_trained_positions": 2048,
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "type_vocab_size": 2,
}
_GTE_KEYS = {**_sizes(768, 12, 12, 3072, 250048), "type_vocab_size": 1, "max_position_embeddings": 8192}
_GTE = {
    **_GTE_KEYS,
    "model_type": "new",
    "architectures": ["NewForSequenceClassification"],
    "auto_map": {"AutoModelForSequenceClassification": "Alibaba-NLP/new-impl--modeling.NewForSequenceClassification"},
    "rope_theta": 20000,
    "rope_scaling": {"type": "ntk", "factor": 8.0},
    "position_embedding_type": "rope",
    "layer_norm_type": "layer_norm",
    "layer_norm_eps": 1e-12,
    "pack_qkv": True,
    "logn_attention_scale": False,
    "logn_attention_clip1": False,
    "id2label": {"0": "LABEL_0"},
}
_QWEN2 = {
    "num_key_value_heads": 2,
    "max_position_embeddings": 131072,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "use_sliding_window": False,
    "sliding_window": 131072,
    "max_window_layers": 21,
    "auto_map": {
        "AutoModel": "modeling_qwen.Qwen2Model",
        "AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM",
        "AutoModelForSequenceClassification": "modeling_qwen.Qwen2ForSequenceClassification",
    },
}
_MISTRAL = {"num_key_value_heads": 8, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5, "sliding_window": 4096}
_GEMMA2 = {
    "num_key_value_heads": 8,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
_LLAMA = {"num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 5e5}
_LLAMA31 = {
    **_LLAMA,
    "max_position_embeddings": 131072,
    "num_labels": 1,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
_LARGE, _BASE = _sizes(1024, 24, 16, 4096, 250002), _sizes(768, 12, 12, 3072, 50265)
_SEVEN_B = _sizes(4096, 32, 32, 14336, 32000)
_BGE_LARGE = _bert(_sizes(1024, 24, 16, 4096, 30522), 335_141_888)
_MULTI_LABEL = {"num_labels": 28, "problem_type": "multi_label_classification"}

SEEDS = {
    "all-MiniLM-L6-v2": _bert(_sizes(384, 6, 12, 1536, 30522), 22_713_216),
    "bge-large-en-v1.5, UAE-Large-V1, mxbai-embed-large-v1": _BGE_LARGE,
    "bge-m3, snowflake-arctic-embed-l-v2.0": _roberta("XLMRoberta", _LARGE, 567_754_752, 8194),
    "multilingual-e5-large-instruct": _roberta("XLMRoberta", _LARGE, 559_890_432),
    "jina-embeddings-v2-base-en": _jina(False, 30528, 137_368_320),
    "jina-embeddings-v2-base-code": _jina(True, 61056, 160_869_120),
    "nomic-embed-text-v1.5": Seed(_NOMIC, _shapes("NomicBertModel", "NomicBertConfig", _NOMIC_KEYS), 136_731_648),
    "gte-Qwen2-1.5B-instruct": _decoder("Qwen2", _sizes(1536, 28, 12, 8960, 151646), 1_543_268_864, **_QWEN2),
    "e5-mistral-7b-instruct, SFR-Embedding-Mistral": _decoder("Mistral", _SEVEN_B, 7_110_660_096, **_MISTRAL),
    "bge-en-icl": _decoder("Mistral", _SEVEN_B | {"vocab_size": 32003}, 7_110_672_384, **_MISTRAL),
    "bge-multilingual-gemma2": _decoder("Gemma2", _sizes(3584, 42, 16, 14336, 256002), 9_241_713_152, **_GEMMA2),
    "bge-reranker-large": _roberta("XLMRoberta", _LARGE, 559_891_457, num_labels=1),
    "bge-reranker-v2-m3": _roberta("XLMRoberta", _LARGE, 567_755_777, 8194, num_labels=1),
    "MedCPT-Cross-Encoder": _bert(_sizes(768, 12, 12, 3072, 30522), 109_483_009, num_labels=1),
    "gte-multilingual-reranker-base": Seed(
        _GTE, _shapes("GteForSequenceClassification", "GteConfig", {**_GTE_KEYS, "num_labels": 1}), 305_959_681
    ),
    "roberta-base-go_emotions": _roberta("Roberta", _BASE, 124_667_164, **_MULTI_LABEL),
    "xlm-roberta-base-language-detection": _roberta(
        "XLMRoberta", _BASE | {"vocab_size": 250002}, 278_059_028, num_labels=20
    ),
    "Skywork-Reward-Llama-3.1-8B-v0.2": _decoder("Llama", _SEVEN_B | {"vocab_size": 128256}, 7_504_928_768, **_LLAMA31),
    "Llama-3.1-Tulu-3-8B-RM": _decoder("Llama", _SEVEN_B | {"vocab_size": 128264}, 7_504_961_536, **_LLAMA31),
    "Meta-Llama-3-70B-InstructForSequenceClassification": _decoder(
        "Llama",
        _sizes(8192, 80, 64, 28672, 128256),
        69_503_049_728,
        **_LLAMA,
        max_position_embeddings=8192,
        num_labels=2,
    ),
}


def _spec(name: str) -> ModelSpec:
    return read_config(SEEDS[name].config)[0]


@pytest.mark.parametrize("name", SEEDS)
def test_every_published_tensor_has_its_place_and_the_sum_is_exact(name: str) -> None:
    seed, zero = SEEDS[name], np.float32(0)
    tensors = {key: np.broadcast_to(zero, shape) for key, shape in seed.shapes().items()}
    spec, family = read_config(seed.config, tensors)
    weights, head = fill(spec, family, tensors)
    unused = 0 if head else sum(tensor.size for key, tensor in tensors.items() if key.startswith("pooler."))
    assert num_parameters(weights) + num_parameters(head.layers if head else ()) + unused == seed.parameters
    num_labels = seed.config.get("num_labels", 1 if "reranker" in name else 0)
    assert (head.layers[-1].linear.weight.shape[0] if head else 0) == num_labels


@pytest.mark.parametrize(
    ("name", "max_length"),
    [
        ("all-MiniLM-L6-v2", 512),
        ("bge-m3, snowflake-arctic-embed-l-v2.0", 8192),
        ("multilingual-e5-large-instruct", 512),
        ("jina-embeddings-v2-base-code", 8192),
        ("nomic-embed-text-v1.5", 8192),
        ("gte-multilingual-reranker-base", 8192),
        ("e5-mistral-7b-instruct, SFR-Embedding-Mistral", 32768),
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
