"""sentence-transformers' files -> Modules and TextSpec: old and new spellings, precedence, and refusals by name."""

from pathlib import Path
from typing import Any

import pytest

from openbei.errors import ModelError, UnsupportedModel
from openbei.weights.modules import check_classifier, read_modules
from openbei.weights.text import read_text
from tests.families import write_json

OLD = "sentence_transformers.models"
NEW = "sentence_transformers.sentence_transformer.modules.pooling"


def _folder(folder: Path, kinds: list[str], pooling: dict[str, Any] | None = None, **configs: dict[str, Any]) -> Path:
    entries = [
        {"idx": idx, "name": str(idx), "path": f"{idx}_{kind}" if idx else "", "type": f"{OLD}.{kind}"}
        for idx, kind in enumerate(kinds)
    ]
    write_json(folder / "modules.json", entries)
    write_json(folder / "1_Pooling" / "config.json", pooling if pooling is not None else {"pooling_mode": "mean"})
    for name, config in configs.items():
        write_json(folder / name.lstrip("_") / "config.json", config)
    return folder


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_lasttoken": True, "word_embedding_dimension": 48}, "last_token"),
        ({}, "mean"),
        ({"pooling_mode": "cls", "embedding_dimension": 48}, "cls"),
        ({"pooling_mode": ["lasttoken"]}, "last_token"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "cls", "pooling_mode_mean_tokens": True}, "cls"),
    ],
)
def test_pooling_in_both_spellings(config: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    assert read_modules(_folder(tmp_path, ["Transformer", "Pooling"], config)).pooling == wanted


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len_tokens; supported: one of cls, mean, lasttoken"),
        ({"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, r"pooling cls \+ mean"),
        ({"pooling_mode": ["mean", "max"]}, r"pooling mean \+ max"),
        ({"pooling_mode": "mystery"}, "pooling mystery"),
    ],
)
def test_other_poolings_are_refused_unless_one_is_given(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path, ["Transformer", "Pooling"], config)
    with pytest.raises(UnsupportedModel, match=said):
        read_modules(folder)
    assert read_modules(folder, "cls").pooling == "cls"


def test_leaving_the_prompt_out_of_the_pooling_is_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path, ["Transformer", "Pooling"], {"pooling_mode": "mean", "include_prompt": False})
    with pytest.raises(UnsupportedModel, match="include_prompt false"):
        read_modules(folder)


def test_types_are_told_by_their_last_part_and_run_in_idx_order(tmp_path: Path) -> None:
    entries = [
        {"idx": 2, "path": "2_Normalize", "type": "sentence_transformers.base.modules.normalize.Normalize"},
        {"idx": 1, "path": "1_Pooling", "type": f"{NEW}.Pooling"},
        {"idx": 0, "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"},
    ]
    write_json(tmp_path / "modules.json", entries)
    write_json(tmp_path / "1_Pooling" / "config.json", {"pooling_mode": "cls"})
    modules = read_modules(tmp_path)
    assert (modules.transformer, modules.pooling, modules.dense, modules.normalize) == ("", "cls", (), True)


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (["Transformer", "Pooling", "LayerNorm"], "has a LayerNorm module; supported: Dense, Normalize"),
        (["Transformer", "Pooling", "Dropout"], "Dropout"),
        (["StaticEmbedding"], "StaticEmbedding"),
        (["WordEmbeddings", "Pooling"], "WordEmbeddings"),
        (["Transformer"], "orders Transformer; supported: Transformer, Pooling"),
        (["Transformer", "Dense", "Pooling"], "orders Transformer, Dense, Pooling"),
        (["Transformer", "Pooling", "Normalize", "Dense"], "orders Transformer, Pooling, Normalize, Dense"),
        (["Transformer", "Pooling", "Normalize", "Normalize"], "Normalize, Normalize"),
        ([], "modules.json orders"),
    ],
)
def test_other_modules_and_orders_are_refused(kinds: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        read_modules(_folder(tmp_path, kinds))


DENSE = {"in_features": 48, "out_features": 8}


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("torch.nn.modules.activation.Tanh", "tanh"),
        ("torch.nn.modules.linear.Identity", "identity"),
        ("torch.nn.modules.activation.GELU", "gelu"),
        ("torch.nn.ReLU", "relu"),
        ("torch.nn.modules.activation.SiLU", "silu"),
        ("torch.nn.modules.activation.Sigmoid", "sigmoid"),
        ("my.own.Activation", "tanh"),
        (None, "tanh"),
    ],
)
def test_dense_activations(name: str | None, wanted: str, tmp_path: Path) -> None:
    config = DENSE | ({} if name is None else {"activation_function": name})
    dense = read_modules(_folder(tmp_path, ["Transformer", "Pooling", "Dense"], _2_Dense=config)).dense
    assert [(each.path, each.activation, each.bias, each.out_features) for each in dense] == [
        ("2_Dense", wanted, True, 8)
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"activation_function": "torch.nn.modules.activation.Mish"},
            "2_Dense/config.json has activation_function .*Mish",
        ),
        ({"use_residual": True}, "use_residual"),
        (
            {"module_input_name": "token_embeddings"},
            "module_input_name 'token_embeddings'; supported: sentence_embedding",
        ),
        ({"module_output_name": "other"}, "module_output_name 'other'"),
        ({"in_features": None}, "in_features None; it must be an integer"),
    ],
)
def test_dense_modules_that_do_more_are_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path, ["Transformer", "Pooling", "Dense"], _2_Dense=DENSE | changes)
    with pytest.raises(ModelError, match=said):
        read_modules(folder)


def test_normalising_tokens_is_refused(tmp_path: Path) -> None:
    config = {"module_input_name": "token_embeddings"}
    folder = _folder(tmp_path, ["Transformer", "Pooling", "Normalize"], _2_Normalize=config)
    with pytest.raises(UnsupportedModel, match=r"2_Normalize/config\.json has module_input_name"):
        read_modules(folder)


@pytest.mark.parametrize(
    ("sentence", "tokenizer", "wanted"),
    [
        ({"max_seq_length": 40}, {"model_max_length": 50}, 40),
        ({"max_seq_length": None}, {"model_max_length": 50}, 50),
        ({}, {"model_max_length": 50}, 50),
        ({}, {"model_max_length": 1000000000000000019884624838656}, 64),
        ({}, {"model_max_length": 1e30}, 64),
        ({}, {}, 64),
        ({"max_seq_length": 512}, {}, 64),
        ({}, {"model_max_length": 512}, 64),
    ],
)
def test_the_length_limit_follows_its_precedence_and_the_table(
    sentence: dict[str, Any], tokenizer: dict[str, Any], wanted: int, tmp_path: Path
) -> None:
    write_json(tmp_path / "tokenizer.json", {})
    write_json(tmp_path / "sentence_bert_config.json", sentence)
    write_json(tmp_path / "tokenizer_config.json", tokenizer)
    assert read_text(tmp_path, tmp_path, 64).max_length == wanted


@pytest.mark.parametrize("length", [0, -1, "512"])
def test_a_senseless_limit_is_refused(length: Any, tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer.json", {})
    write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": length})
    with pytest.raises(UnsupportedModel, match=f"limit inputs to {length!r} tokens"):
        read_text(tmp_path, tmp_path, 64)


def test_prompts_and_lower_casing_are_read_and_a_default_prompt_name_is_not(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer.json", {})
    write_json(tmp_path / "sentence_roberta_config.json", {"max_seq_length": 9, "do_lower_case": True})
    config = {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": "query"}
    write_json(tmp_path / "config_sentence_transformers.json", config)
    text = read_text(tmp_path, tmp_path, 64)
    assert (text.max_length, text.lower_case) == (9, True)
    assert text.prompts == {"query": "query: ", "document": ""}
    write_json(tmp_path / "config_sentence_transformers.json", {"prompts": {"query": None}})
    with pytest.raises(UnsupportedModel, match="prompt 'query' that is not text"):
        read_text(tmp_path, tmp_path, 64)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"transformer_task": "fill-mask"}, "transformer_task 'fill-mask'; supported: 'feature-extraction'"),
        ({"module_output_name": "scores"}, "module_output_name 'scores'"),
        ({"query_expansion": {"length": 32}}, "query_expansion"),
        ({"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}}, "pooler_output"),
    ],
)
def test_a_transformer_module_that_gives_something_else_is_refused(
    config: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = _folder(tmp_path, ["Transformer", "Pooling"])
    write_json(folder / "sentence_bert_config.json", config)
    with pytest.raises(UnsupportedModel, match=said):
        read_modules(folder)


SCORES = {"transformer_task": "sequence-classification", "module_output_name": "scores"}


def test_a_classifier_may_be_a_plain_folder_or_a_cross_encoder_and_no_more(tmp_path: Path) -> None:
    check_classifier(tmp_path)
    check_classifier(_folder(tmp_path, ["Transformer"], _0=SCORES))
    write_json(tmp_path / "sentence_bert_config.json", SCORES)
    check_classifier(tmp_path)
    write_json(tmp_path / "sentence_bert_config.json", SCORES | {"module_output_name": "token_embeddings"})
    with pytest.raises(UnsupportedModel, match="module_output_name 'token_embeddings'; supported: 'scores'"):
        check_classifier(tmp_path)
    with pytest.raises(UnsupportedModel, match="orders Transformer, Pooling for a classifier; supported: Transformer"):
        check_classifier(_folder(tmp_path, ["Transformer", "Pooling"]))
