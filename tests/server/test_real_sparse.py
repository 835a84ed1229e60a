"""From a folder to sparse vectors and multi-vectors over HTTP, with tiny models; sentence-transformers is the judge."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import MultiVectorEncoder, SparseEncoder
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

from openbei.config import EngineConfig
from openbei.engine.engine import Engine
from openbei.engine.start import open_engine
from openbei.errors import UnsupportedModel
from openbei.weights.load import load
from tests import families, splade
from tests.server.wire import Wire, error

TEXTS = ["the river bank", "Bees make honey. Two plus two?", "deep learning 漢 is, the rivers makes", "x"]
Opened = Callable[..., Wire]


@pytest.fixture
def opened() -> Iterator[Opened]:
    engines: list[Engine] = []

    def one(folder: Path, **config: Any) -> Wire:
        engine = open_engine(EngineConfig(model_id=str(folder), dtype="float32", **config))
        engines.append(engine)
        return Wire(engine)  # type: ignore[arg-type]

    yield one
    for engine in engines:
        engine.close()


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
    ("family", "activation", "rewrite"),
    [("bert", "relu", newer), ("distilbert", "log1p_relu", None), ("roberta", "relu", None)],
)
def test_splade(family: str, activation: str, rewrite: Any, opened: Opened, tmp_path: Path) -> None:
    folder = splade.save(tmp_path, family, pooling={"pooling_strategy": "max", "activation_function": activation})
    folder = rewrite(folder) if rewrite else folder
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


# Late interaction


@pytest.fixture
def late(tmp_path: Path) -> MultiVectorEncoder:
    """A model of multi-vectors with two layers, prompts, a skiplist and lengths, saved in tmp_path / "late"."""
    body = families.save(tmp_path / "body", "bert", pooling=None)
    families.change_json(body / "tokenizer_config.json", unk_token="[UNK]")
    transformer = Transformer(str(body), query_length=6, document_length=11)
    layers = [
        Dense(48, 20, activation_function=torch.nn.Tanh(), module_input_name="token_embeddings"),
        Dense(20, NUM_VECTOR, bias=False, activation_function=None, module_input_name="token_embeddings"),
    ]
    mask = MultiVectorMask(skiplist_words=["the", ".", "?", "no such word"])
    modules = [transformer, *layers, mask, Normalize(module_input_name="token_embeddings")]
    model = MultiVectorEncoder(modules=modules, prompts={"query": "is ", "document": "deep "}, device="cpu")
    model.save_pretrained(str(tmp_path / "late"))
    return model


def test_late_interaction(late: MultiVectorEncoder, opened: Opened, tmp_path: Path) -> None:
    wire = opened(tmp_path / "late")
    texts = [*TEXTS, "the bees make the honey. the river " * 3]
    for kind, wanted in (("document", late.encode_document(texts)), ("query", late.encode_query(texts))):
        data = wire.post("/v1/multi-vector", {"input": texts, "input_type": kind}).json()["data"]
        assert [len(one["embeddings"]) for one in data] == [len(one) for one in wanted]
        for one, rows in zip(data, wanted, strict=True):
            assert np.abs(np.float32(one["embeddings"]) - np.asarray(rows)).max() <= 1e-4
    by_default = wire.post("/v1/multi-vector", {"input": texts}).json()
    assert by_default == wire.post("/v1/multi-vector", {"input": texts, "input_type": "document"}).json()
    assert wire.post("/", {"input": "x"}).status_code == 200
    for path in ("/embed", "/embed_all", "/embed_sparse"):
        assert error(wire.post(path, {"inputs": "x"})) == (424, "Backend")
    assert wire.get("/info").json()["model_type"] == {"embedding": {"pooling": "none"}}
    too_long = {"input": texts[-1], "truncate": False}
    assert error(wire.post("/v1/multi-vector", too_long)) == (422, None)


def test_query_expansion_is_refused(late: MultiVectorEncoder, tmp_path: Path) -> None:
    expansion = {"strategy": "fixed", "attend": False, "length": 32}
    families.change_json(tmp_path / "late" / "sentence_bert_config.json", query_expansion=expansion)
    with pytest.raises(UnsupportedModel, match="query_expansion"):
        load(str(tmp_path / "late"))
