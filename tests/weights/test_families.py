"""config.json -> ModelSpec: what each family reads, and what is refused by name."""

from typing import Any

import pytest

from openbei.errors import UnsupportedModel
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
        ({"position_embedding_type": "alibi"}, "JinaBERT"),
        ({"_name_or_path": "jinaai/jina-bert-v2-qk-post-norm"}, "JinaBERT"),
        ({"auto_map": {"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"}}, "JinaBERT"),
        ({"auto_map": {"AutoModel": "modeling.MyModel"}}, "AutoModel = modeling.MyModel"),
        ({"hidden_act": "mish"}, "hidden_act 'mish'; supported: gelu"),
        ({"is_decoder": True}, "is_decoder True"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
        ({"architectures": ["BertForSequenceClassification"]}, "BertForSequenceClassification.*not supported yet"),
        ({"architectures": ["BertForTokenClassification"]}, "BertForTokenClassification.*not supported yet"),
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


def test_every_row_names_the_same_parameters() -> None:
    optional = {"segment", "relative_bias"}
    assert len({frozenset(set(family.names) - optional) for family in FAMILIES.values()}) == 1
