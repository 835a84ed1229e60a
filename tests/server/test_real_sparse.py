"""From a folder to sparse vectors, and to all of bge-m3's, over HTTP; sentence-transformers judges tiny models."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Router
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling

from openbei.errors import ModelError, UnsupportedModel, WeightsError
from openbei.weights.load import load
from openbei.weights.modules import read_modules
from tests import families, late, splade
from tests.server.conftest import Opened
from tests.server.wire import error

TEXTS = ["the river bank", "Bees make honey. Two plus two?", "deep learning 漢 is, the rivers makes", "x"]


def dense(answer: list[list[dict[str, Any]]], width: int) -> np.ndarray:
    """The answer of /embed_sparse -> dense rows, after checking that indexes ascend and no value is 0."""
    rows = np.zeros((len(answer), width), np.float32)
    for row, entries in zip(rows, answer, strict=True):
        indexes = [entry["index"] for entry in entries]
        assert indexes == sorted(set(indexes))
        row[indexes] = [entry["value"] for entry in entries]
        assert np.count_nonzero(row) == len(entries) > 0
        assert all(set(entry) == {"index", "value"} for entry in entries)
    return rows


def newer(folder: Path) -> Path:
    """The folder as sentence-transformers itself writes it now."""
    SparseEncoder(str(folder), device="cpu").save_pretrained(str(folder / "newer"))
    return folder / "newer"


@pytest.mark.parametrize(
    ("family", "strategy", "activation"),
    [
        ("bert", "max", "relu"),
        ("distilbert", "max", "log1p_relu"),
        ("roberta", "sum", "relu"),
        ("modernbert", "sum", "log1p_relu"),
    ],
)
def test_splade(family: str, strategy: str, activation: str, opened: Opened, tmp_path: Path) -> None:
    folder = splade.save(tmp_path, family, pooling={"pooling_strategy": strategy, "activation_function": activation})
    folder = newer(folder) if family == "bert" else folder
    wanted = splade.judge(folder, TEXTS)
    wire = opened(folder)
    together = wire.post("/embed_sparse", {"inputs": TEXTS})
    assert together.status_code == 200
    assert np.abs(dense(together.json(), wanted.shape[1]) - wanted).max() <= 1e-4
    assert together.headers["x-compute-characters"] == str(sum(map(len, TEXTS)))
    alone = [wire.post("/embed_sparse", {"inputs": text}).json()[0] for text in TEXTS]
    assert np.abs(dense(alone, wanted.shape[1]) - wanted).max() <= 1e-4
    assert len(wire.post("/", {"inputs": TEXTS[:2]}).json()) == 2
    vectors = wire.post("/embed", {"inputs": TEXTS, "normalize": False}).json()
    assert np.abs(np.float32(vectors) - wanted).max() <= 1e-4
    assert np.shape(wire.post("/embed", {"inputs": "x", "normalize": False, "dimensions": 5}).json()) == (1, 5)
    for path, body in (
        ("/embed", {"inputs": "x"}),
        ("/embed_all", {"inputs": "x"}),
        ("/v1/embeddings", {"input": "x"}),
    ):
        assert error(wire.post(path, body)) == (424, "Backend")
    assert wire.get("/info").json()["model_type"] == {"embedding": {"pooling": "splade"}}


def test_a_plain_masked_language_model_is_splade_if_told_so(opened: Opened, tmp_path: Path) -> None:
    judge = splade.network("bert")
    wire = opened(families.save(tmp_path, "bert", judge, pooling=None), pooling="splade")
    ids = [[2, 9, 11, 30, 3], [5, 6]]
    answer = wire.post("/embed_sparse", {"inputs": ids}).json()
    wanted = splade.definition(judge, ids, [[0] * len(one) for one in ids])
    assert np.abs(dense(answer, wanted.shape[1]) - wanted).max() <= 1e-4


# Queries that are looked up


@pytest.fixture
def routed(tmp_path: Path) -> SparseEncoder:
    """A model as those of opensearch-project that need no inference for queries, saved in tmp_path / "routed"."""
    body = SparseEncoder(str(splade.save(late.network(tmp_path / "body", "bert"), "bert")), device="cpu")
    weights = torch.rand(body[0].model.config.vocab_size, generator=torch.Generator().manual_seed(3)) + 0.5
    weights[9] = 0
    router = Router.for_query_document(
        query_modules=[SparseStaticEmbedding(body.tokenizer, weight=weights, frozen=True)],
        document_modules=[body[0], SpladePooling("max", activation_function="log1p_relu")],
    )
    model = SparseEncoder(modules=[router], prompts={"query": "is ", "document": "deep "}, device="cpu")
    model.save_pretrained(str(tmp_path / "routed"))
    return model


def test_queries_are_looked_up_and_documents_computed(routed: SparseEncoder, opened: Opened, tmp_path: Path) -> None:
    wire = opened(tmp_path / "routed")
    texts = [*TEXTS, "the bees the river " * 30]
    for kind, encode in (("query", routed.encode_query), ("document", routed.encode_document)):
        wanted = encode(texts, convert_to_sparse_tensor=False).numpy()
        answer = wire.post("/embed_sparse", {"inputs": texts, "input_type": kind}).json()
        assert np.abs(dense(answer, wanted.shape[1]) - wanted).max() <= 1e-4
    query = wire.post("/embed_sparse", {"inputs": [[5, 9, 7, 5]], "input_type": "query", "prompt_name": None}).json()
    assert len(query[0]) > 0
    plain = routed.encode(texts, task="document", prompt="", convert_to_sparse_tensor=False).numpy()
    assert np.abs(dense(wire.post("/embed_sparse", {"inputs": texts}).json(), plain.shape[1]) - plain).max() <= 1e-4
    vectors = wire.post("/embed", {"inputs": texts, "normalize": False}).json()
    assert np.abs(np.float32(vectors) - plain).max() <= 1e-4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"structure": {"query": ["document_1_SpladePooling"], "document": []}}, "has the routes query: SpladePooling"),
        ({"structure": {"document": []}}, "has the routes document: ; supported"),
        ({"structure": {"query": ["query_0_SparseStaticEmbedding"], "document": []}}, "without SpladePooling"),
        ({"parameters": {"route_mappings": {"('x', None)": "query"}}}, "route_mappings"),
        ({"types": {}}, "must have types and a structure of them"),
    ],
)
def test_other_routers_are_refused(change: Any, said: str, routed: SparseEncoder, tmp_path: Path) -> None:
    families.change_json(tmp_path / "routed" / "router_config.json", **change)
    with pytest.raises(ModelError, match=re.escape(said)):
        read_modules(tmp_path / "routed")


def test_a_table_of_other_words_is_refused(routed: SparseEncoder, tmp_path: Path) -> None:
    query = tmp_path / "routed" / "query_0_SparseStaticEmbedding"
    save_file({"weight": torch.ones(5)}, query / "model.safetensors")
    with pytest.raises(WeightsError, match=r"has weights of shape \(5,\); documents have \d+ words"):
        load(str(tmp_path / "routed"))
    families.write_json(query / "config.json", {"path": "idf.json"})
    with pytest.raises(UnsupportedModel, match=r"takes its weights from 'idf\.json'"):
        load(str(tmp_path / "routed"))


# bge-m3

NUM_VECTOR = 12


@pytest.fixture
def m3(tmp_path: Path) -> tuple[Path, dict[str, dict[str, torch.Tensor]], Any]:
    """A folder as bge-m3's, with its two layers, and the network."""
    judge = families.network("xlm-roberta")
    folder = families.save(tmp_path, "xlm-roberta", judge, pooling="cls_token")
    specials = {"cls_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    families.change_json(folder / "tokenizer_config.json", **specials)
    random = torch.Generator().manual_seed(5)
    layers = {
        name: {"weight": torch.randn(rows, 48, generator=random), "bias": torch.randn(rows, generator=random) + 8}
        for name, rows in (("sparse_linear.pt", 1), ("colbert_linear.pt", NUM_VECTOR))
    }
    for name, layer in layers.items():
        torch.save(layer, folder / name)
    return folder, layers, judge


M3_IDS = [[0, 9, 11, 30, 9, 2], [0, 5, 2], [0, 3, 7, 7, 7, 1, 8, 2]]  # repeated, unknown and padding ids


def test_bge_m3_weighs_its_tokens(m3: Any, opened: Opened) -> None:
    folder, layers, judge = m3
    wire = opened(folder)
    answer = wire.post("/embed_sparse", {"inputs": M3_IDS}).json()
    layer, wanted = layers["sparse_linear.pt"], np.zeros((len(M3_IDS), judge.config.vocab_size), np.float32)
    for row, ids in zip(wanted, M3_IDS, strict=True):
        states = torch.from_numpy(families.transformers_states(judge, [ids], [[0] * len(ids)]))
        weights = torch.relu(states @ layer["weight"].T + layer["bias"])[:, 0]
        for token, weight in zip(ids, weights.tolist(), strict=True):
            if token > 3:
                row[token] = max(row[token], weight)
    assert wanted[0, 9] > 0 < wanted[2, 7]  # each the largest of several
    assert np.abs(dense(answer, wanted.shape[1]) - wanted).max() <= 1e-4


def test_bge_m3_gives_a_vector_to_every_token_but_the_first(m3: Any, opened: Opened) -> None:
    folder, layers, judge = m3
    wire = opened(folder)
    answer = wire.post("/v1/multi-vector", {"input": M3_IDS}).json()
    assert (answer["model"], answer["object"]) == (str(folder), "list")
    layer = layers["colbert_linear.pt"]
    for index, (one, ids) in enumerate(zip(answer["data"], M3_IDS, strict=True)):
        states = torch.from_numpy(families.transformers_states(judge, [ids], [[0] * len(ids)]))
        wanted = torch.nn.functional.normalize(states[1:] @ layer["weight"].T + layer["bias"], dim=-1)
        assert one["index"] == index
        assert np.abs(np.float32(one["embeddings"]) - wanted.numpy()).max() <= 1e-4
    assert np.shape(wire.post("/embed", {"inputs": M3_IDS}).json()) == (3, 48)
    assert np.shape(wire.post("/embed_all", {"inputs": "x"}).json())[2] == 48
    raw = wire.post("/v1/multi-vector", {"input": M3_IDS[1], "normalize": False, "dimensions": 5}).json()
    assert np.shape(raw["data"][0]["embeddings"]) == (2, 5)
    too_many = {"input": M3_IDS[1], "dimensions": NUM_VECTOR + 1}
    assert error(wire.post("/v1/multi-vector", too_many)) == (422, None)


def test_without_torch_bge_m3_gives_its_vector_alone(
    m3: Any, opened: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    wire = opened(m3[0])
    assert "sparse_linear.pt and colbert_linear.pt" in caplog.text
    assert wire.post("/embed", {"inputs": "x"}).status_code == 200
    assert error(wire.post("/embed_sparse", {"inputs": "x"})) == (424, "Backend")
    assert error(wire.post("/v1/multi-vector", {"input": "x"})) == (424, None)
