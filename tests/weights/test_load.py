"""A folder -> a Checkpoint, strictly: prefixes and old names accepted; anything missing, odd or left over refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from openbei.errors import ModelError, ModelNotFound, UnsupportedModel, WeightsError
from openbei.weights.load import LoadOptions, load
from tests import families

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of tiny BERT that a test may spoil."""
    return shutil.copytree(tiny_folder("bert"), tmp_path / "bert")


def _rewrite(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    save_file(change(tensors), path)


def _words(folder: Path) -> Any:
    return load(str(folder)).model.weights.embedding.word


def test_the_embedded_default_needs_no_name() -> None:
    checkpoint = load()
    assert checkpoint.model_id == "sentence-transformers/all-MiniLM-L6-v2"
    assert (checkpoint.model.pooling, checkpoint.model.normalize, checkpoint.model.embedding_dim) == ("mean", True, 384)
    assert checkpoint.text.max_length == 256
    assert sum(array.size for array in _arrays(checkpoint.model.weights)) == 22_713_216 - 384 * 385  # less the pooler


def _arrays(value: Any) -> list[Any]:
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, tuple):
        return [array for each in value for array in _arrays(each)]
    return [array for name in getattr(value, "__slots__", ()) for array in _arrays(getattr(value, name))]


@pytest.mark.parametrize("family", families.ALL)
def test_every_family_fills_every_parameter(family: str, tiny_folder: Callable[[str], Path]) -> None:
    checkpoint = load(str(tiny_folder(family)))
    judge = families.network(family)
    unused = sum(parameter.numel() for name, parameter in judge.named_parameters() if name.startswith("pooler."))
    held = sum(array.size for array in _arrays(checkpoint.model.weights))
    assert held == sum(parameter.numel() for _, parameter in judge.named_parameters()) - unused
    assert checkpoint.folder == tiny_folder(family)
    assert checkpoint.revision is None


@pytest.mark.parametrize(
    ("family", "prefix", "extras"),
    [
        ("bert", "bert.", ("cls.predictions.bias", "cls.seq_relationship.weight", "embeddings.position_ids")),
        ("roberta", "roberta.", ("lm_head.dense.weight", "roberta.embeddings.token_type_ids")),
        ("xlm-roberta", "roberta.", ("lm_head.bias",)),
        ("xlm-roberta", "xlm-roberta.", ()),
        ("distilbert", "distilbert.", ("vocab_transform.weight", "vocab_projector.bias", "vocab_layer_norm.bias")),
        ("modernbert", "model.", ("head.dense.weight", "decoder.bias")),
        ("llama", "model.", ("lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq")),
        ("gemma2", "model.", ()),
        ("jina-en", "bert.", ("cls.predictions.bias",)),
        ("gte-native", "", ("lm_head.dense.weight",)),
        ("nomic", "bert.", ("cls.predictions.decoder.weight",)),
        ("mpnet", "mpnet.", ("lm_head.decoder.weight", "mpnet.embeddings.position_ids")),
    ],
)
def test_prefixes_are_stripped_and_known_heads_ignored(
    family: str, prefix: str, extras: tuple[str, ...], tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder(family), tmp_path / "copy")
    before = _words(folder).copy()
    unused = {name: torch.zeros(2) for name in extras}
    _rewrite(folder, lambda tensors: {f"{prefix}{name}": value for name, value in tensors.items()} | unused)
    np.testing.assert_array_equal(_words(folder), before)


def test_layer_norms_of_tensorflow_times_are_read(folder: Path) -> None:
    def old(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    wanted = load(str(folder)).model.weights.layers[1].ffn_norm
    _rewrite(folder, lambda tensors: {old(name): value for name, value in tensors.items()})
    norm = load(str(folder)).model.weights.layers[1].ffn_norm
    np.testing.assert_array_equal(norm.weight, wanted.weight)
    np.testing.assert_array_equal(norm.bias, wanted.bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_16_bit_weights_become_float32_exactly(dtype: torch.dtype, folder: Path) -> None:
    _rewrite(folder, lambda tensors: {name: value.to(dtype) for name, value in tensors.items()})
    stored = load_file(folder / "model.safetensors")["embeddings.word_embeddings.weight"]
    np.testing.assert_array_equal(_words(folder), stored.float().numpy())


def test_torch_weights_give_the_same_model(folder: Path) -> None:
    before = _words(folder).copy()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    np.testing.assert_array_equal(_words(folder), before)


WORD, QUERY = "embeddings.word_embeddings.weight", "encoder.layer.1.attention.self.query.bias"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: {n: v for n, v in t.items() if n != QUERY}, f"1 missing: {QUERY}"),
        (lambda t: {n: v for n, v in t.items() if "layer.2." not in n}, r"16 missing: .*, \.\.\."),
        (
            lambda t: t | {WORD: t[WORD][1:].clone()},
            r"1 wrong: embeddings.word_embeddings.weight is \(\d+, 48\), config",
        ),
        (lambda t: t | {QUERY: t[QUERY].long()}, f"1 wrong: {QUERY} is stored as int64"),
        (lambda t: t | {"encoder.layer.3.output.dense.bias": torch.zeros(48)}, "1 left over: encoder.layer.3"),
        (lambda t: t | {"encoder.layer.0.mlp.gated_layers.weight": torch.zeros(2)}, "left over: .*gated_layers"),
        (lambda t: t | {f"bert.{QUERY}": torch.zeros(48)}, "is in the file twice"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(change: Any, said: str, folder: Path) -> None:
    _rewrite(folder, change)
    with pytest.raises(WeightsError, match=said):
        load(str(folder))


@pytest.mark.parametrize(
    ("file", "content", "error", "said"),
    [
        ("config.json", None, ModelNotFound, "has no config.json"),
        ("config.json", "{", ModelError, "config.json is not JSON"),
        ("config.json", "[]", ModelError, "must hold a JSON object, got list"),
        ("tokenizer.json", None, ModelNotFound, "has no tokenizer.json: make one with transformers"),
        ("model.safetensors", None, ModelNotFound, "has no weights"),
        ("modules.json", "{}", UnsupportedModel, "modules.json orders"),
        ("modules.json", '[{"idx": 0}]', ModelError, "modules.json must be a list of objects with idx, path and type"),
        ("modules.json", None, UnsupportedModel, "give --pooling cls, mean, last-token or splade"),
        ("1_Pooling/config.json", None, ModelNotFound, "1_Pooling has no config.json"),
        ("adapter_config.json", "{}", UnsupportedModel, "holds an adapter"),
    ],
)
def test_a_missing_or_broken_file_is_named(
    file: str, content: str | None, error: type[ModelError], said: str, folder: Path
) -> None:
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(content)
    with pytest.raises(error, match=said):
        load(str(folder))


def test_a_plain_transformers_folder_is_served_if_pooling_is_given(folder: Path) -> None:
    (folder / "modules.json").unlink()
    model = load(str(folder), LoadOptions(pooling="last_token")).model
    assert (model.pooling, model.normalize, model.dense) == ("last_token", True, ())


def test_the_network_may_lie_in_its_own_folder(folder: Path) -> None:
    body = folder / "0_Transformer"
    body.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).rename(body / name)
    kinds = {"Transformer": "0_Transformer", "Pooling": "1_Pooling"}
    entries = [
        {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for idx, (kind, path) in enumerate(kinds.items())
    ]
    families.write_json(folder / "modules.json", entries[::-1])
    checkpoint = load(str(folder))
    assert checkpoint.text.tokenizer_file == body / "tokenizer.json"
    assert not checkpoint.model.normalize


def test_dense_weights_are_checked_as_strictly(folder: Path) -> None:
    path = folder / "2_Dense"
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Dense": "2_Dense"}
    families.write_json(
        folder / "modules.json",
        [{"idx": idx, "path": path, "type": f"models.{kind}"} for idx, (kind, path) in enumerate(kinds.items())],
    )
    families.write_json(path / "config.json", {"in_features": 48, "out_features": 8, "bias": False})
    save_file({"linear.weight": torch.ones(8, 48)}, path / "model.safetensors")
    dense = load(str(folder)).model.dense[0]
    assert (dense.activation, dense.linear.bias) == ("tanh", None)
    families.change_json(path / "config.json", bias=True)
    with pytest.raises(WeightsError, match=r"1 missing: linear\.bias"):
        load(str(folder))
    families.change_json(path / "config.json", bias=False, in_features=47)
    with pytest.raises(WeightsError, match="2_Dense takes vectors 47 wide, it is given 48"):
        load(str(folder))


FUSED = "encoder.layer.1.attention.qkv_proj.weight"
Q_BIAS = "layers.2.self_attn.q_proj.bias"


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        (
            "gte-new",
            lambda t: {n: v for n, v in t.items() if n != f"new.{FUSED}"},
            f"^the weights do not fit config.json; 1 missing: {FUSED}$",
        ),
        ("gte-new", lambda t: t | {f"new.{FUSED}": t[f"new.{FUSED}"][1:].clone()}, r"is \(143, 48\), .* \(144, 48\)"),
        ("llama", lambda t: t | {Q_BIAS: torch.zeros(48)}, f"1 left over: {Q_BIAS}"),
        ("qwen2", lambda t: {n: v for n, v in t.items() if n != Q_BIAS}, f"1 missing: {Q_BIAS}"),
        ("qwen3", lambda t: {n: v for n, v in t.items() if "q_norm" not in n}, "4 missing: layers.0.self_attn.q_norm"),
        ("gemma2", lambda t: {n: v for n, v in t.items() if n != "norm.weight"}, "1 missing: norm.weight"),
        (
            "modernbert",
            lambda t: t | {"layers.0.attn_norm.weight": torch.zeros(48)},
            "1 left over: layers.0.attn_norm.weight",
        ),
    ],
)
def test_past_bert_the_weights_are_checked_as_strictly(
    family: str, change: Any, said: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder(family), tmp_path / "copy")
    _rewrite(folder, change)
    with pytest.raises(WeightsError, match=said):
        load(str(folder))


def test_a_head_without_its_bias_is_refused(tmp_path: Path) -> None:
    folder = families.save(tmp_path, "bert", families.network("bert", "Sequence"), pooling=None)
    _rewrite(folder, lambda t: {n: v for n, v in t.items() if n != "classifier.bias"})
    with pytest.raises(WeightsError, match=r"1 missing: classifier\.bias"):
        load(str(folder))


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_gemma_norms_hold_their_one(family: str, tiny_folder: Callable[[str], Path]) -> None:
    stored = load_file(tiny_folder(family) / "model.safetensors")["norm.weight"]
    norm = load(str(tiny_folder(family))).model.weights.final_norm
    assert norm is not None
    np.testing.assert_array_equal(norm.weight, 1 + stored.numpy())
