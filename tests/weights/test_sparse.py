"""Folders of SPLADE, of bge-m3 and of late interaction: what is read of them, and what is refused by name."""

import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from openbei.errors import ModelError, UnsupportedModel, WeightsError
from openbei.weights.late import Expanding, Late
from openbei.weights.load import LoadOptions, load
from openbei.weights.modules import read_modules, read_outline
from tests import families, late, splade
from tests.families import change_json, write_json

SPLADE = {"MLMTransformer": "", "SpladePooling": "1_SpladePooling"}
LATE = {"Transformer": "", "Dense": "1_Dense", "MultiVectorMask": "2_Mask", "Normalize": "3_Normalize"}
BY_TOKEN = {"module_input_name": "token_embeddings"}


def splade_folder(folder: Path, pooling: dict[str, Any] | None = None, **text: Any) -> Path:
    splade.modules(folder, SPLADE)
    write_json(folder / "1_SpladePooling" / "config.json", pooling or {})
    write_json(folder / "sentence_bert_config.json", text)
    return folder


def late_folder(folder: Path, mask: dict[str, Any] | None = None, **text: Any) -> Path:
    splade.modules(folder, LATE)
    write_json(folder / "1_Dense" / "config.json", {"in_features": 48, "out_features": 8, **BY_TOKEN})
    write_json(folder / "2_Mask" / "config.json", mask or {})
    write_json(folder / "3_Normalize" / "config.json", BY_TOKEN)
    write_json(folder / "sentence_bert_config.json", text)
    return folder


@pytest.mark.parametrize(
    ("pooling", "strategy", "num_logs"),
    [
        ({}, "max", 1),
        ({"pooling_strategy": "max", "activation_function": "relu", "word_embedding_dimension": None}, "max", 1),
        ({"activation_function": "log1p_relu", "embedding_dimension": 99}, "max", 2),
        ({"pooling_strategy": "sum"}, "sum", 1),
    ],
)
def test_splade_pooling(pooling: dict[str, Any], strategy: str, num_logs: int, tmp_path: Path) -> None:
    modules = read_modules(splade_folder(tmp_path, pooling, max_seq_length=40))
    assert (modules.pooling, modules.num_logs, modules.dense, modules.normalize) == (strategy, num_logs, (), False)
    assert read_modules(tmp_path, "splade") == modules


@pytest.mark.parametrize(
    ("pooling", "said"),
    [
        ({"pooling_strategy": "mean"}, "pooling_strategy 'mean'; supported: max, sum"),
        ({"activation_function": "softplus"}, "activation_function 'softplus'; supported: relu, log1p_relu"),
    ],
)
def test_other_splade_poolings_are_refused(pooling: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        read_modules(splade_folder(tmp_path, pooling))


def test_splade_is_not_made_of_another_model_nor_the_other_way(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="MLMTransformer, SpladePooling, which --pooling mean does not fit"):
        read_modules(splade_folder(tmp_path / "a"), "mean")
    splade.modules(tmp_path, {"Transformer": "", "Pooling": "1_Pooling"})
    with pytest.raises(UnsupportedModel, match="Transformer, Pooling, which --pooling splade does not fit"):
        read_modules(tmp_path, "splade")
    with pytest.raises(UnsupportedModel, match=r"has no modules\.json.*give --pooling cls, mean, last-token or splade"):
        read_modules(tmp_path / "none")


def test_a_network_that_gives_states_is_no_splade(tmp_path: Path) -> None:
    splade.modules(splade_folder(tmp_path), {"Transformer": "", "SpladePooling": "1_SpladePooling"})
    with pytest.raises(UnsupportedModel, match="transformer_task None; supported: 'fill-mask'"):
        read_modules(tmp_path)
    write_json(tmp_path / "sentence_bert_config.json", {"transformer_task": "fill-mask"})
    assert read_modules(tmp_path).num_logs == 1


@pytest.mark.parametrize("kinds", [("SparseStaticEmbedding",), ("Transformer", "SparseAutoEncoder")])
def test_other_sparse_models_are_refused(kinds: tuple[str, ...], tmp_path: Path) -> None:
    splade.modules(tmp_path, {kind: str(place or "") for place, kind in enumerate(kinds)})
    with pytest.raises(UnsupportedModel, match=f"has a {kinds[-1]} module"):
        read_modules(tmp_path)


# The head of a masked language model


def test_copies_that_are_tied_must_be_the_same(tmp_path: Path) -> None:
    folder = splade.save(tmp_path, "bert")
    tensors = load_file(folder / "model.safetensors")
    word = tensors["bert.embeddings.word_embeddings.weight"]
    save_file({**tensors, "cls.predictions.decoder.weight": word.clone()}, folder / "model.safetensors")
    assert load(str(folder)).model.num_logs == 1
    save_file({**tensors, "cls.predictions.decoder.weight": word + 1}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=r"decoder\.weight and bert.* are tied by config\.json, but they differ"):
        load(str(folder))


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        ("cls.predictions.bias", "lack cls.predictions.decoder.bias"),
        ("cls.predictions.transform.dense.weight", "1 missing: cls.predictions.transform.dense.weight"),
        ("cls.predictions.transform.LayerNorm.bias", "1 missing: cls.predictions.transform.LayerNorm.bias"),
    ],
)
def test_a_head_without_a_tensor_is_refused(lost: str, said: str, tmp_path: Path) -> None:
    folder = splade.save(tmp_path, "bert")
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, folder / "model.safetensors")
    with pytest.raises(WeightsError, match=said):
        load(str(folder))


def test_a_family_whose_head_is_not_known_is_refused(tmp_path: Path) -> None:
    folder = families.save(tmp_path, "llama", pooling=None)
    with pytest.raises(UnsupportedModel, match="SPLADE is not supported for llama models; supported: bert"):
        load(str(folder), LoadOptions(pooling="splade"))


# bge-m3's files


def test_a_layer_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = families.save(tmp_path, "xlm-roberta", pooling="cls_token")
    torch.save({"weight": torch.zeros(2, 48), "bias": torch.zeros(2)}, folder / "sparse_linear.pt")
    with pytest.raises(WeightsError, match=r"linear.weight is \(2, 48\)"):
        load(str(folder))
    torch.save({"weight": torch.zeros(1, 48), "other": torch.zeros(1)}, folder / "sparse_linear.pt")
    with pytest.raises(WeightsError, match=r"1 missing: linear\.bias; 1 left over: linear\.other"):
        load(str(folder))


def test_a_folder_without_the_files_has_no_such_outputs(tmp_path: Path) -> None:
    model = load(str(families.save(tmp_path, "xlm-roberta", pooling="cls_token"))).model
    assert (model.weigher, model.multi, model.multi_dim, model.embedding_dim) == ((), (), 0, 48)


# Late interaction


def test_a_multi_vector_folder(tmp_path: Path) -> None:
    folder = late_folder(tmp_path, {"skiplist_words": [".", "!"]}, query_length=9, document_length=30)
    modules = read_modules(folder)
    assert (modules.pooling, modules.normalize) == (None, True)
    assert modules.late == Late((".", "!"), 9, 30)
    assert [(one.path, one.out_features) for one in modules.dense] == [("1_Dense", 8)]
    change_json(folder / "1_Dense" / "config.json", module_input_name=...)  # of every token, as its reader takes it
    assert read_modules(folder) == modules


@pytest.mark.parametrize(
    ("mask", "text", "said"),
    [
        (
            {"skiplist_tasks": ["query", "document"]},
            {},
            r"2_Mask/config.json has skiplist_tasks \['query', ",
        ),
        ({"keep_only_token_ids": [5]}, {}, r"keep_only_token_ids \[5\]"),
        ({}, {"query_length": 0}, "query_length 0; it must be an integer of at least 1"),
        ({}, {"document_length": "300"}, "document_length '300'"),
        ({}, {"query_expansion": {"strategy": "fixed"}}, "query_expansion has no length"),
        ({}, {"query_expansion": {"length": 9}}, "query_expansion has strategy None; supported: 'fixed', 'min'"),
        ({}, {"query_expansion": {"strategy": "min", "length": 9, "attend": 2}}, "attend 2; supported: False, True"),
        ({}, {"query_expansion": {"strategy": "min", "length": 0}}, "length 0; it must be an integer"),
        ({}, {"query_expansion": {"strategy": "min", "length": 9, "side": 1}}, "has side, which openbei does not know"),
        ({}, {"transformer_task": "retrieval"}, "transformer_task 'retrieval'"),
    ],
)
def test_multi_vector_folders_that_do_more_are_refused(mask: Any, text: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        read_modules(late_folder(tmp_path, mask, **text))


def test_a_normalize_module_of_the_pooled_vector_is_refused_there(tmp_path: Path) -> None:
    change_json(late_folder(tmp_path) / "3_Normalize" / "config.json", module_input_name=...)
    with pytest.raises(UnsupportedModel, match=r"3_Normalize/config\.json has module_input_name 'sentence_embedding'"):
        read_modules(tmp_path)


PYLATE = {"query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 24, "document_length": 40}


@pytest.mark.parametrize(
    ("said", "expanding", "max_query_tokens"),
    [
        ({}, Expanding(24, False), 24),
        ({"attend_to_expansion_tokens": True, "query_length": None}, Expanding(32, True), 32),
        ({"do_query_expansion": False}, None, 24),
    ],
)
def test_a_folder_of_pylate(said: Any, expanding: Expanding | None, max_query_tokens: int, tmp_path: Path) -> None:
    modules = read_modules(late.pylate(tmp_path, "bert", **(PYLATE | said)))
    markers = {"query": "[Q] ", "document": "[D] "}
    assert modules.late == Late(tuple(string.punctuation), max_query_tokens, 40, expanding, markers)
    assert (modules.pooling, modules.normalize, len(modules.dense)) == (None, True, 1)
    assert read_outline(tmp_path).pools


def test_its_modules_without_its_keys_are_no_such_model(tmp_path: Path) -> None:
    write_json(late.pylate(tmp_path, "bert") / "config_sentence_transformers.json", {"prompts": {}})
    with pytest.raises(UnsupportedModel, match="orders Transformer, Dense; supported"):
        read_modules(tmp_path)


def test_a_folder_of_stanford(tmp_path: Path) -> None:
    modules = read_modules(late.stanford(tmp_path, query_maxlen=24, doc_maxlen=180))
    markers = {"query": "[unused0] ", "document": "[unused1] "}
    wanted = Late(tuple(string.punctuation), 24, 180, Expanding(24, False), markers, inline=True)
    assert (modules.late, modules.pooling, read_outline(tmp_path).pools) == (wanted, None, True)
    checkpoint = load(str(tmp_path))
    assert (checkpoint.model.multi_dim, checkpoint.text.max_query_length, checkpoint.text.max_length) == (12, 24, 64)
    assert checkpoint.text.prompts == markers
    (tmp_path / "artifact.metadata").unlink()
    assert read_modules(tmp_path).late == replace(
        wanted, max_query_tokens=32, max_document_tokens=None, expanding=Expanding(32, False)
    )


def test_a_stanford_folder_without_its_projection_is_refused(tmp_path: Path) -> None:
    tensors = load_file(late.stanford(tmp_path) / "model.safetensors")
    del tensors["linear.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"lack linear\.weight of 48 columns"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("family", "said", "reason"),
    [
        (
            "modernbert",
            {"query_length": 6},
            "with the model's window at most 5 see",
        ),
        ("bert", {"query_length": 65}, "filled up to 65 tokens, the model has 64"),
        ("bert", {"query_expansion": {"strategy": "fixed", "length": 9, "token": "[MISS]"}}, r"no token '\[MISS\]'"),
    ],
)
def test_expansions_that_cannot_be_are_refused(family: str, said: Any, reason: str, tmp_path: Path) -> None:
    folder = late.pylate(tmp_path, family, **said)
    with pytest.raises(ModelError, match=reason):
        load(str(folder))


def test_a_tokenizer_without_a_token_to_fill_up_with(tmp_path: Path) -> None:
    change_json(late.pylate(tmp_path, "bert") / "tokenizer_config.json", mask_token=...)
    with pytest.raises(UnsupportedModel, match="neither mask_token nor eos_token"):
        load(str(tmp_path))


@pytest.mark.parametrize("kinds", [("Transformer", "MultiVectorMask"), ("Transformer", "MultiVectorMask", "Dense")])
def test_other_orders_are_refused(kinds: tuple[str, ...], tmp_path: Path) -> None:
    splade.modules(tmp_path, {kind: str(place or "") for place, kind in enumerate(kinds)})
    with pytest.raises(ModelError, match=f"orders {', '.join(kinds)}; supported: Transformer, Dense, MultiVectorMask"):
        read_modules(tmp_path)
