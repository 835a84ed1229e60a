"""Folders of SPLADE, of bge-m3 and of late interaction: what is read of them, and what is refused by name."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from openbei.errors import ModelError, UnsupportedModel, WeightsError
from openbei.weights.load import LoadOptions, load
from openbei.weights.modules import read_modules
from tests import families, splade
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
    ("pooling", "num_logs"),
    [
        ({}, 1),
        ({"pooling_strategy": "max", "activation_function": "relu", "word_embedding_dimension": None}, 1),
        ({"activation_function": "log1p_relu", "embedding_dimension": 99}, 2),
    ],
)
def test_splade_pooling(pooling: dict[str, Any], num_logs: int, tmp_path: Path) -> None:
    modules = read_modules(splade_folder(tmp_path, pooling, max_seq_length=40))
    assert (modules.pooling, modules.num_logs, modules.dense, modules.normalize) == ("max", num_logs, (), False)
    assert read_modules(tmp_path, "splade") == modules


@pytest.mark.parametrize(
    ("pooling", "said"),
    [
        ({"pooling_strategy": "sum"}, "pooling_strategy 'sum'; supported: 'max'"),
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


@pytest.mark.parametrize("kinds", [("Router",), ("SparseStaticEmbedding",), ("Transformer", "SparseAutoEncoder")])
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
    folder = families.save(tmp_path, "nomic-native", pooling=None)
    with pytest.raises(UnsupportedModel, match="SPLADE is not supported for nomic_bert models; supported: bert"):
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
    assert (modules.pooling, modules.normalize, modules.skiplist) == (None, True, (".", "!"))
    assert (modules.max_query_tokens, modules.max_document_tokens) == (9, 30)
    assert [(one.path, one.out_features) for one in modules.dense] == [("1_Dense", 8)]


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
        ({}, {"query_expansion": {"strategy": "fixed"}}, "query_expansion"),
        ({}, {"transformer_task": "retrieval"}, "transformer_task 'retrieval'"),
    ],
)
def test_multi_vector_folders_that_do_more_are_refused(mask: Any, text: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        read_modules(late_folder(tmp_path, mask, **text))


@pytest.mark.parametrize("name", ["1_Dense", "3_Normalize"])
def test_modules_of_the_pooled_vector_are_refused_there(name: str, tmp_path: Path) -> None:
    change_json(late_folder(tmp_path) / name / "config.json", module_input_name=...)
    with pytest.raises(UnsupportedModel, match=f"{name}/config.json has module_input_name 'sentence_embedding'"):
        read_modules(tmp_path)


@pytest.mark.parametrize("kinds", [("Transformer", "MultiVectorMask"), ("Transformer", "MultiVectorMask", "Dense")])
def test_other_orders_are_refused(kinds: tuple[str, ...], tmp_path: Path) -> None:
    splade.modules(tmp_path, {kind: str(place or "") for place, kind in enumerate(kinds)})
    with pytest.raises(ModelError, match=f"orders {', '.join(kinds)}; supported: Transformer, Dense, MultiVectorMask"):
        read_modules(tmp_path)
