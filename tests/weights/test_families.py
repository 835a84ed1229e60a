"""config.json -> ModelSpec: what each family reads, and what is refused by name."""

from typing import Any

import pytest

from openbei.errors import UnsupportedModel
from openbei.model.spec import Rope
from openbei.weights.families import FAMILIES, read_config

BERT: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 99,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
}
DISTILBERT = {
    "model_type": "distilbert",
    "vocab_size": 99,
    "dim": 48,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 80,
    "max_position_embeddings": 64,
}


def test_a_bert_config_with_nothing_optional_takes_transformers_defaults() -> None:
    spec, family = read_config(BERT)
    assert (family.name, spec.width, spec.num_layers, spec.num_heads, spec.head_dim) == ("bert", 48, 3, 4, 12)
    assert (spec.norm_eps, spec.activation, spec.num_segments, spec.max_length) == (1e-12, "gelu", 2, 64)


@pytest.mark.parametrize("model_type", ["roberta", "camembert", "xlm-roberta"])
def test_roberta_counts_positions_after_its_pad_id(model_type: str) -> None:
    spec, _ = read_config({**BERT, "model_type": model_type, "max_position_embeddings": 514})
    assert (spec.position_offset, spec.max_length) == (2, 512)
    spec, _ = read_config({**BERT, "model_type": model_type, "pad_token_id": 5, "max_position_embeddings": 514})
    assert (spec.position_offset, spec.max_length) == (6, 508)


def test_mpnet_counts_from_two_and_has_relative_buckets_and_no_segments() -> None:
    spec, _ = read_config({**BERT, "model_type": "mpnet", "pad_token_id": 9, "type_vocab_size": 2})
    assert (spec.position_offset, spec.num_relative_buckets, spec.num_segments) == (2, 32, 0)


def test_distilbert_has_its_own_keys_and_a_fixed_eps() -> None:
    spec, _ = read_config({**DISTILBERT, "activation": "relu", "layer_norm_eps": 1e-3, "sinusoidal_pos_embds": True})
    assert (spec.width, spec.ffn_width, spec.norm_eps, spec.activation, spec.num_segments) == (48, 80, 1e-12, "relu", 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "t5"}, "model_type 't5' is not supported; supported: bert, roberta"),
        ({"model_type": None}, "model_type None"),
        ({"model_type": ["bert"]}, "model_type"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        (
            {"position_embedding_type": "alibi", "feed_forward_type": "reglu"},
            "feed_forward_type 'reglu'; a jina-bert model is served with 'geglu'",
        ),
        ({"auto_map": {"AutoModel": "modeling.MyModel"}}, "AutoModel = modeling.MyModel"),
        ({"hidden_act": "mish"}, "hidden_act 'mish'; supported: gelu"),
        ({"is_decoder": True}, "is_decoder True"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
        ({"num_attention_heads": 5}, "5 heads do not divide a width of 48"),
        ({"hidden_size": "48"}, "hidden_size '48'; it must be an integer of at least 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers 0"),
        ({"vocab_size": None}, "lacks vocab_size"),
    ],
)
def test_what_is_not_exact_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        read_config({**BERT, **changes})


def test_a_roberta_without_a_pad_id_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="pad_token_id None"):
        read_config({**BERT, "model_type": "roberta", "pad_token_id": None})


def test_an_auto_map_without_a_model_and_a_masked_head_are_fine() -> None:
    extra = {"auto_map": {"AutoTokenizer": ["tok.T", None]}, "architectures": ["BertForMaskedLM"]}
    assert read_config({**BERT, **extra})[1].name == "bert"


def test_every_row_names_a_whole_network() -> None:
    needed = {"word", "q", "k", "v", "out", "attention_norm", "up", "down", "ffn_norm"}
    for model_type, family in FAMILIES.items():
        assert needed <= set(family.names), model_type
        assert set(family.biases) <= needed | {"gate", "q_norm", "k_norm", "final_norm", "embedding_norm"} | {
            "attention_out_norm",
            "ffn_out_norm",
        }, model_type


# --- JinaBERT calls itself bert

UP_GATED = ("encoder.layer.0.mlp.up_gated_layer.weight",)


@pytest.mark.parametrize(
    ("changes", "tensors", "name"),
    [
        ({"position_embedding_type": "alibi"}, (), "jina-bert"),
        ({"position_embedding_type": "alibi"}, UP_GATED, "jina-bert-qk-norm"),
        ({"_name_or_path": "jinaai/jina-bert-v2-qk-post-norm"}, UP_GATED, "jina-bert-qk-norm"),
        ({"auto_map": {"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"}}, (), "jina-bert"),
        ({}, UP_GATED, "bert"),
    ],
)
def test_jina_bert_is_known_by_its_config_and_its_kind_by_its_tensors(
    changes: dict[str, Any], tensors: tuple[str, ...], name: str
) -> None:
    spec, family = read_config({**BERT, **changes}, tensors)
    assert (family.name, spec.alibi) == (name, name != "bert")


# --- decoders

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 99,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
}
QWEN_OF_GTE = {"AutoModel": "Alibaba-NLP/gte-Qwen2-1.5B-instruct--modeling_qwen.Qwen2Model"}


@pytest.mark.parametrize(
    ("changes", "causal"),
    [
        ({}, True),
        ({"is_causal": True}, True),
        ({"is_causal": False}, False),
        ({"use_bidirectional_attention": True}, False),
        ({"model_type": "llama_bidirec"}, False),
        ({"model_type": "qwen2"}, True),
        ({"model_type": "qwen2", "auto_map": QWEN_OF_GTE}, False),
        ({"model_type": "qwen2", "auto_map": {"AutoModel": "modeling_qwen.Qwen2Model"}}, False),
        ({"model_type": "qwen2", "auto_map": {"AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM"}}, True),
    ],
)
def test_a_decoder_is_causal_unless_its_config_says_otherwise(changes: dict[str, Any], causal: bool) -> None:
    assert read_config({**LLAMA, **changes})[0].causal is causal


@pytest.mark.parametrize(
    ("changes", "window", "local"),
    [
        ({"model_type": "llama", "sliding_window": 9}, None, ()),
        ({"model_type": "mistral", "sliding_window": 9}, 9, (True, True, True, True)),
        ({"model_type": "mistral", "sliding_window": None}, None, ()),
        ({"model_type": "qwen2", "sliding_window": 9, "max_window_layers": 1}, None, ()),
        (
            {"model_type": "qwen2", "sliding_window": 9, "max_window_layers": 1, "use_sliding_window": True},
            9,
            (False, True, True, True),
        ),
        ({"model_type": "gemma2", "sliding_window": 9}, 9, (True, False, True, False)),
        (
            {"model_type": "gemma3_text", "sliding_window": 9, "sliding_window_pattern": 2},
            9,
            (True, False, True, False),
        ),
        ({"model_type": "gemma3_text", "sliding_window": 9}, 9, (True, True, True, True)),
        (
            {
                "model_type": "gemma2",
                "layer_types": ["full_attention"] * 3 + ["sliding_attention"],
                "sliding_window": 9,
            },
            9,
            (False, False, False, True),
        ),
    ],
)
def test_windows_and_the_layers_that_have_them(
    changes: dict[str, Any], window: int | None, local: tuple[bool, ...]
) -> None:
    spec, _ = read_config({**LLAMA, **changes})
    assert (spec.window, spec.local_layers) == (window, local)


def test_gemma_scales_by_its_own_numbers() -> None:
    spec, family = read_config({**LLAMA, "model_type": "gemma2", "query_pre_attn_scalar": 64, "head_dim": 16})
    assert (spec.score_scale, spec.softcap, spec.embed_scale, family.norm_offset) == (1 / 8, 50.0, 48**0.5, 1.0)
    assert read_config({**LLAMA, "model_type": "gemma2", "attn_logit_softcapping": None})[0].softcap is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "swiglu"}, "hidden_act 'swiglu'"),
        ({"num_key_value_heads": 3}, "3 key heads do not divide 4 heads"),
        ({"model_type": "mistral", "is_causal": False}, "sliding_window 4096 and no causal mask"),
        (
            {"model_type": "qwen3", "is_causal": False, "use_sliding_window": True, "max_window_layers": 0},
            "sliding_window 4096 and no causal mask",
        ),
        (
            {"model_type": "qwen2", "auto_map": QWEN_OF_GTE, "use_sliding_window": True, "max_window_layers": 2},
            "sliding_window 4096 and no causal mask",
        ),
        ({"model_type": "gemma2", "is_causal": False}, "sliding_window 4096 and no causal mask"),
        ({"model_type": "llama_bidirec", "is_causal": True}, "is_causal True"),
        ({"model_type": "gemma2", "use_bidirectional_attention": True}, "use_bidirectional_attention True"),
        ({"model_type": "gemma2", "layer_types": ["full_attention"]}, "layer_types .*one a layer"),
        ({"model_type": "gemma2", "layer_types": ["chunked_attention"] * 4}, "layer_types"),
        ({"auto_map": {"AutoModel": "modeling_mine.LlamaModel"}}, "repository's own code"),
        ({"model_type": "llama", "quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    ],
)
def test_what_a_decoder_does_not_compute_is_refused_by_name(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        read_config({**LLAMA, **changes})


NOMIC: dict[str, Any] = {
    "model_type": "nomic_bert",
    "vocab_size": 99,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_inner": 80,
    "n_positions": 64,
    "rotary_emb_base": 1000,
}
GTE = {**BERT, "model_type": "new", "rope_theta": 20_000, "rope_scaling": {"type": "ntk", "factor": 8.0}}
MODERN = {**BERT, "model_type": "modernbert", "global_rope_theta": 5e4, "local_rope_theta": 1e3, "local_attention": 8}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (NOMIC | {"prenorm": True}, "prenorm True"),
        (NOMIC | {"rotary_emb_interleaved": True}, "rotary_emb_interleaved True"),
        (NOMIC | {"rotary_emb_fraction": 0.5}, "rotary_emb_fraction 0.5"),
        (NOMIC | {"moe_every_n_layers": 2}, "moe_every_n_layers 2"),
        (NOMIC | {"activation_function": "gelu"}, "activation_function 'gelu'"),
        (NOMIC | {"rotary_emb_base": None}, "lacks rotary_emb_base"),
        (NOMIC | {"rotary_scaling_factor": 2.0}, "max_trained_positions None"),
        (GTE | {"logn_attention_scale": True}, "logn_attention_scale True"),
        (GTE | {"layer_norm_type": "rms_norm"}, "layer_norm_type 'rms_norm'"),
        (GTE | {"position_embedding_type": "absolute"}, "position_embedding_type 'absolute'"),
        (MODERN | {"local_attention": -1}, "local_attention -1"),
    ],
)
def test_what_an_encoder_does_not_compute_is_refused_by_name(config: dict[str, Any], said: str) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        read_config(config)


def test_modernbert_in_its_older_spelling() -> None:
    spec, family = read_config(MODERN)
    assert (spec.rope, spec.local_rope, spec.window) == (Rope(5e4), Rope(1e3), 8)
    assert (spec.local_layers, spec.norm_placement) == ((False, True, True), "pre")
    assert not any(family.biases.values())
    assert read_config(MODERN | {"norm_bias": True})[1].biases["final_norm"]


@pytest.mark.parametrize(
    ("config", "code"),
    [
        (GTE, "Alibaba-NLP/new-impl--modeling.NewModel"),
        (GTE, "modeling.NewModel"),
        (GTE | {"model_type": "gte"}, "modeling_hf_alibaba_nlp_gte.GteModel"),
        (LLAMA | {"model_type": "llama_bidirec"}, "llama_bidirectional_model.LlamaBidirectionalModel"),
        (NOMIC, "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"),
    ],
)
def test_a_repository_may_bring_the_code_that_a_row_computes_and_no_other(config: dict[str, Any], code: str) -> None:
    assert read_config(config | {"auto_map": {"AutoModel": code}})[0] == read_config(config)[0]
    with pytest.raises(UnsupportedModel, match="repository's own code"):
        read_config(config | {"auto_map": {"AutoModel": "modeling.OtherModel"}})


def test_gte_may_have_no_types() -> None:
    spec, _ = read_config(GTE | {"type_vocab_size": 0})
    assert (spec.num_segments, spec.rope) == (0, Rope(20_000.0, "ntk", 8.0))


# --- heads

CLASSIFIER = ("bert.pooler.dense.weight", "classifier.weight")


def test_a_head_needs_both_its_architecture_and_its_tensors() -> None:
    sequence, token = ({**BERT, "architectures": [f"BertFor{kind}Classification"]} for kind in ("Sequence", "Token"))
    assert read_config(sequence)[1].head is None
    assert read_config(BERT, CLASSIFIER)[1].head is None
    head = read_config(sequence, CLASSIFIER)[1].head
    assert head is not None
    assert [part.linear for part in head.parts] == ["pooler.dense", "classifier"]
    head = read_config(token, CLASSIFIER)[1].head
    assert head is not None
    assert head.per_token


def test_a_head_that_is_not_known_is_refused_by_name() -> None:
    for model_type, name in (
        ("gemma3_text", "Gemma3TextForTokenClassification"),
        ("llama_bidirec", "MyForTokenClassification"),
    ):
        config = {**LLAMA, "model_type": model_type, "architectures": [name]}
        with pytest.raises(UnsupportedModel, match=f"{name} is not supported for"):
            read_config(config, ("score.weight",))
    config = {**MODERN, "architectures": ["ModernBertForSequenceClassification"], "classifier_pooling": "max"}
    with pytest.raises(UnsupportedModel, match="classifier_pooling 'max'; supported: cls, mean"):
        read_config(config, ("classifier.weight",))


def test_a_bidirectional_llama_pools_as_its_config_says() -> None:
    """NVIDIA's head reads the mean of the states, and not the last of them."""
    config = {
        **LLAMA,
        "model_type": "llama_bidirec",
        "architectures": ["LlamaBidirectionalForSequenceClassification"],
        "auto_map": {
            "AutoModelForSequenceClassification": (
                "llama_bidirectional_model.LlamaBidirectionalForSequenceClassification"
            )
        },
    }
    for said, pooling in (({}, "mean"), ({"pooling": "avg"}, "mean"), ({"pooling": "last"}, "last_token")):
        spec, family = read_config(config | said, ("score.weight",))
        assert family.head is not None
        assert (spec.causal, family.head.pooling) == (False, pooling)
    with pytest.raises(UnsupportedModel, match="pooling 'weighted_avg'; supported: avg, cls, last"):
        read_config(config | {"pooling": "weighted_avg"}, ("score.weight",))
    with pytest.raises(UnsupportedModel, match=r"temperature 0\.5"):
        read_config(config | {"temperature": 0.5}, ("score.weight",))


def test_a_jina_reranker_names_no_head_and_has_one() -> None:
    config = {**BERT, "position_embedding_type": "alibi", "architectures": ["JinaBertModel"]}
    head = read_config(config, CLASSIFIER)[1].head
    assert head is not None
    assert [part.linear for part in head.parts] == ["pooler.dense", "classifier"]
    assert read_config(config, ("pooler.dense.weight",))[1].head is None
