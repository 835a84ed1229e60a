"""From a folder of late interaction to multi-vectors over HTTP; MultiVectorEncoder of sentence-transformers judges."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import MultiVectorEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

from openbei.config import EngineConfig
from openbei.engine.settle import limited
from openbei.errors import ConfigError
from openbei.weights.load import load
from tests import families, late
from tests.server.conftest import Opened
from tests.server.wire import Wire, error

# A marker in a text, words of the skiplist, a mask token, and more tokens than either limit.
TEXTS = ["the river bank", "Bees make honey. Two plus two?", "[Q] x", "the bees make the honey. the river " * 5]
PYLATE = {"query_length": 24, "document_length": 20, "attend_to_expansion_tokens": False}


@pytest.fixture
def native(tmp_path: Path) -> MultiVectorEncoder:
    """A model of two layers with prompts, a skiplist and lengths, saved in tmp_path / "native"."""
    body = late.network(tmp_path / "body", "bert")
    transformer = Transformer(str(body), query_length=6, document_length=11)
    layers = [
        Dense(48, 20, activation_function=torch.nn.Tanh(), module_input_name="token_embeddings"),
        Dense(20, late.WIDTH, bias=False, activation_function=None, module_input_name="token_embeddings"),
    ]
    mask = MultiVectorMask(skiplist_words=["the", ".", "?", "no such word"])
    modules = [transformer, *layers, mask, Normalize(module_input_name="token_embeddings")]
    model = MultiVectorEncoder(modules=modules, prompts={"query": "is ", "document": "deep "}, device="cpu")
    model.save_pretrained(str(tmp_path / "native"))
    return model


def check(wire: Wire, kind: str, texts: list[str], wanted: list[Any]) -> None:
    data = wire.post("/v1/multi-vector", {"input": texts, "input_type": kind}).json()["data"]
    assert [len(one["embeddings"]) for one in data] == [len(one) for one in wanted]
    for one, rows in zip(data, wanted, strict=True):
        assert np.abs(np.float32(one["embeddings"]) - np.asarray(rows)).max() <= 1e-4


def test_a_folder_of_sentence_transformers(native: MultiVectorEncoder, opened: Opened, tmp_path: Path) -> None:
    wire = opened(tmp_path / "native")
    check(wire, "document", TEXTS, native.encode_document(TEXTS))
    check(wire, "query", TEXTS, native.encode_query(TEXTS))
    by_default = wire.post("/v1/multi-vector", {"input": TEXTS}).json()
    assert by_default == wire.post("/v1/multi-vector", {"input": TEXTS, "input_type": "document"}).json()
    assert wire.post("/", {"input": "x"}).status_code == 200
    for path in ("/embed", "/embed_all", "/embed_sparse"):
        assert error(wire.post(path, {"inputs": "x"})) == (424, "Backend")
    assert wire.get("/info").json()["model_type"] == {"embedding": {"pooling": "none"}}
    too_long = {"input": TEXTS[-1], "truncate": False}
    assert error(wire.post("/v1/multi-vector", too_long)) == (422, None)


@pytest.mark.parametrize(
    ("expansion", "length", "counts"),
    [
        ({"strategy": "fixed", "attend": False, "length": 10}, None, [10] * 4),
        ({"strategy": "fixed", "attend": True, "length": 10}, None, [10] * 4),
        ({"strategy": "min", "length": 10, "token": "honey"}, 13, [10, 11, 10, 13]),
        ({"strategy": "min", "length": 10}, None, [10, 11, 10, 43]),
    ],
)
def test_its_queries_are_expanded(
    expansion: dict[str, Any],
    length: int | None,
    counts: list[int],
    native: MultiVectorEncoder,
    opened: Opened,
    tmp_path: Path,
) -> None:
    change = {"query_expansion": expansion, "query_length": length}
    families.change_json(tmp_path / "native" / "sentence_bert_config.json", **change)
    wanted = late.judge(tmp_path / "native", TEXTS, "query")
    assert [len(one) for one in wanted] == counts
    check(opened(tmp_path / "native"), "query", TEXTS, wanted)


@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("bert", PYLATE),
        (
            "roberta",
            {**PYLATE, "attend_to_expansion_tokens": True, "skiplist_words": ["."], "prompts": {"query": "is "}},
        ),
        ("modernbert", {**PYLATE, "query_length": 5, "model_type": ...}),
        ("xlm-roberta", {**PYLATE, "query_length": 9, "do_query_expansion": False}),
        ("bert", {"query_prefix": "", "document_prefix": "two: "}),  # all by default; a marker that is no token
    ],
)
def test_a_folder_of_pylate(family: str, said: dict[str, Any], opened: Opened, tmp_path: Path) -> None:
    folder = late.pylate(tmp_path, family)
    families.change_json(folder / "config_sentence_transformers.json", **said)
    wire = opened(folder)
    for kind in ("query", "document"):
        check(wire, kind, TEXTS, late.judge(folder, TEXTS, kind))


@pytest.mark.parametrize(
    "metadata",
    [
        {"query_maxlen": 24, "doc_maxlen": 20, "mask_punctuation": True, "attend_to_mask_tokens": False},
        {"query_token_id": "[unused1]", "mask_punctuation": False, "attend_to_mask_tokens": True},
    ],
)
def test_a_folder_of_stanford(metadata: dict[str, Any], opened: Opened, tmp_path: Path) -> None:
    folder = late.stanford(tmp_path, **metadata)
    wire = opened(folder)
    for kind in ("query", "document"):
        check(wire, kind, TEXTS, late.judge(folder, TEXTS, kind))


def test_a_limit_below_the_length_of_queries_is_refused(tmp_path: Path) -> None:
    checkpoint = load(str(late.stanford(tmp_path, query_maxlen=24)))
    with pytest.raises(ConfigError, match="at most 23 tokens, but queries are filled up to 24"):
        limited(checkpoint.text, EngineConfig(max_input_length=23))
    assert limited(checkpoint.text, EngineConfig(max_input_length=24)).max_query_length == 24
