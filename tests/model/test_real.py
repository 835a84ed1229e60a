"""Level 5: real weights and sentence-transformers' own modules, whole vectors against sentence-transformers."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from tokenizers import Tokenizer

from openbei.model.ops import numpy as plain
from openbei.model.ops import openvino_model as openvino
from openbei.model.spec import Batch, Model, pack
from openbei.weights.checkpoint import Checkpoint
from openbei.weights.load import load
from tests import families

Floats = NDArray[np.float32]

TEXTS = (
    "What is Deep Learning?",
    "hello world",
    "a",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Größe, 東京 and emoji 🐝 in one line",
    "The bank of the river. " * 20,
    "Longer than the limit of 256 tokens: " + "bees make honey, two plus two is four. " * 60,
    *(f"Text number {number}" + ", and some more of it" * number for number in range(25)),
)


@pytest.fixture(scope="module")
def minilm() -> Checkpoint:
    return load()


@pytest.fixture(scope="module")
def wanted(minilm: Checkpoint) -> Floats:
    return _judge(minilm.folder, TEXTS)


@cache
def _tokenizer(file: Path, max_length: int) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return tokenizer


def _batches(checkpoint: Checkpoint, texts: Sequence[str], size: int = 8) -> Iterator[Batch]:
    encodings = _tokenizer(checkpoint.text.tokenizer_file, checkpoint.text.max_length).encode_batch(list(texts))
    for start in range(0, len(texts), size):
        part = encodings[start : start + size]
        yield pack(checkpoint.model.spec, [each.ids for each in part], [each.type_ids for each in part])


def _unit(vectors: Floats) -> Floats:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _judge(folder: Path, texts: Sequence[str]) -> Floats:
    judge = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    return np.asarray(judge.encode(list(texts), batch_size=1, show_progress_bar=False), np.float32)


def _openvino(model: Model, dtype: Any) -> openvino.CompiledModel:
    return openvino.compile_model(model, openvino.CompileOptions(dtype=dtype, num_streams=1, num_threads=2))


def test_minilm_in_float32_is_sentence_transformers_to_1e_5(minilm: Checkpoint, wanted: Floats) -> None:
    compiled = _openvino(minilm.model, "float32")
    vectors = np.concatenate([compiled.run(batch) for batch in _batches(minilm, TEXTS)])
    np.testing.assert_allclose(_unit(vectors), wanted, rtol=0, atol=1e-5)


def test_minilm_on_the_plain_backend_is_sentence_transformers_to_1e_5(minilm: Checkpoint, wanted: Floats) -> None:
    vectors = np.concatenate([plain.run(minilm.model, batch, "vectors") for batch in _batches(minilm, TEXTS[:8])])
    np.testing.assert_allclose(_unit(vectors), wanted[:8], rtol=0, atol=1e-5)


@pytest.mark.skipif(not openvino.native_bfloat16(), reason="this CPU has no bfloat16")
def test_minilm_in_bfloat16_has_cosine_0_9999_for_every_text(minilm: Checkpoint, wanted: Floats) -> None:
    compiled = _openvino(minilm.model, "bfloat16")
    vectors = np.concatenate([compiled.run(batch) for batch in _batches(minilm, TEXTS)])
    assert (_unit(vectors) * wanted).sum(1).min() >= 0.9999


ACTIVATIONS = (torch.nn.Tanh(), torch.nn.GELU(), torch.nn.Identity(), torch.nn.ReLU())
# Every activation once, on families of every kind; EmbeddingGemma has two Dense modules.
DENSE = [("gemma3-both-sides", ACTIVATIONS[2]), *zip(("mistral", "qwen3", "gte-native"), ACTIVATIONS, strict=False)]


@pytest.mark.parametrize(("family", "activation"), [*zip(families.FAMILIES, ACTIVATIONS * 2, strict=False), *DENSE])
def test_a_folder_saved_by_sentence_transformers_with_dense_modules(
    family: str, activation: torch.nn.Module, tmp_path: Path
) -> None:
    modules = [
        Transformer(str(families.save(tmp_path / "network", family))),
        Pooling(48, pooling_mode="lasttoken"),
        Dense(48, 32, activation_function=activation),
        Dense(32, 20, bias=False, activation_function=torch.nn.Sigmoid()),
        Normalize(),
    ]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "whole"), create_model_card=False)
    checkpoint = load(str(tmp_path / "whole"))
    assert (checkpoint.model.embedding_dim, checkpoint.model.pooling) == (20, "last_token")
    texts = ("the river bank", "bees make honey.", "two plus two is four")
    judged = _judge(tmp_path / "whole", texts)
    (batch,) = _batches(checkpoint, texts)
    for vectors in (plain.run(checkpoint.model, batch, "vectors"), _openvino(checkpoint.model, "float32").run(batch)):
        np.testing.assert_allclose(_unit(vectors), judged, rtol=0, atol=1e-5)


PAIRS = (("the river", "bees make honey."), ("deep learning", "two plus two is four, is it?"), ("a", "the bank"))


@pytest.mark.parametrize("activation", [None, torch.nn.Identity()])
@pytest.mark.parametrize("family", ["bert", "roberta", "gte-native", "modernbert"])
def test_a_cross_encoder_saved_by_sentence_transformers(
    family: str, activation: torch.nn.Module | None, tmp_path: Path
) -> None:
    plain_folder = families.save(tmp_path / "plain", family, families.network(family, "Sequence", num_labels=1), None)
    judge = CrossEncoder(str(plain_folder), device="cpu", activation_fn=activation)
    judge.save_pretrained(str(tmp_path / "whole"), create_model_card=False)
    checkpoint = load(str(tmp_path / "whole"))
    labels = checkpoint.labels
    assert labels is not None
    assert (labels.reranker, labels.activation) == (True, "sigmoid" if activation is None else "identity")
    tokenizer = _tokenizer(checkpoint.text.tokenizer_file, checkpoint.text.max_length)
    encodings = tokenizer.encode_batch(list(PAIRS))
    batch = pack(checkpoint.model.spec, [each.ids for each in encodings], [each.type_ids for each in encodings])
    logits = plain.run(checkpoint.model, batch, "labels")[:, 0]
    scores = 1 / (1 + np.exp(-logits)) if labels.activation == "sigmoid" else logits
    judged = judge.predict(list(PAIRS), batch_size=1, show_progress_bar=False)
    np.testing.assert_allclose(scores, judged, rtol=0, atol=1e-5)


def test_without_a_normalize_module_vectors_keep_their_length(tmp_path: Path) -> None:
    folder = families.save(tmp_path, "bert")
    modules = [Transformer(str(folder)), Pooling(48, pooling_mode="cls")]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "whole"), create_model_card=False)
    checkpoint = load(str(tmp_path / "whole"))
    assert not checkpoint.model.normalize
    (batch,) = _batches(checkpoint, TEXTS[:3])
    vectors = plain.run(checkpoint.model, batch, "vectors")
    np.testing.assert_allclose(vectors, _judge(tmp_path / "whole", TEXTS[:3]), rtol=0, atol=1e-5)
    assert not np.allclose(plain.run(replace(checkpoint.model, pooling="mean"), batch, "vectors"), vectors)
