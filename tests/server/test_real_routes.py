"""All routes over one real engine: they agree with each other, and count what they computed. No fake below."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openbei.config import EngineConfig
from openbei.engine.start import open_engine
from tests.server.wire import Wire, error

TEXTS = ["the river bank", "x", "Bees make honey. Two plus two is four, deep learning and rivers", "né 漢 🦊"]
E08 = (400, "Empty")


@pytest.fixture(scope="module")
def wire(tiny_folder: Callable[[str], Path]) -> Iterator[Wire]:
    config = EngineConfig(model_id=str(tiny_folder("bert")), dtype="float32", default_prompt="say: ")
    with open_engine(config) as engine:
        yield Wire(engine)  # type: ignore[arg-type]


def embed(wire: Wire, inputs: Any, **options: Any) -> np.ndarray:
    return np.float32(wire.post("/embed", {"inputs": inputs, **options}).json())


def test_every_route_gives_the_same_vectors(wire: Wire) -> None:
    """8.14: whichever route asks, alone or among others, in whatever order."""
    want = embed(wire, TEXTS)
    openai = wire.post("/v1/embeddings", {"input": TEXTS}).json()["data"]
    cohere = wire.post("/v2/embed", {"texts": TEXTS}).json()["embeddings"]["float"]
    plain = wire.post("/v1/embed", {"texts": TEXTS}).json()["embeddings"]
    vertex = wire.post("/vertex", {"instances": [{"inputs": text} for text in TEXTS]}).json()["predictions"]
    others = [
        [one["embedding"] for one in openai],
        cohere,
        plain,
        [one[0] for one in vertex],
        [embed(wire, text)[0] for text in TEXTS],
        embed(wire, TEXTS[::-1])[::-1],
        embed(wire, TEXTS * 3)[4:8],
    ]
    for rows in others:
        assert np.abs(np.float32(rows) - want).max() <= 1e-5


def test_states_of_tokens_do_not_depend_on_batch_mates(wire: Wire) -> None:
    together = wire.post("/embed_all", {"inputs": TEXTS}).json()
    for text, states in zip(TEXTS, together, strict=True):
        (alone,) = wire.post("/embed_all", {"inputs": text}).json()
        assert np.shape(alone) == np.shape(states)
        assert np.abs(np.float32(alone) - np.float32(states)).max() <= 1e-5


def test_similarities_are_cosines_of_those_vectors(wire: Wire) -> None:
    rows = embed(wire, TEXTS).astype(np.float64)
    body = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS}}
    assert wire.post("/similarity", body).json() == pytest.approx((rows @ rows[0]).tolist(), abs=1e-5)


@pytest.mark.parametrize("dimensions", [1, 3, 8])
def test_dimensions_cut_before_the_norm_on_every_route(wire: Wire, dimensions: int) -> None:
    whole = embed(wire, TEXTS, normalize=False).astype(np.float64)[:, :dimensions]
    want = whole / np.linalg.norm(whole, axis=1, keepdims=True)
    openai = wire.post("/v1/embeddings", {"input": TEXTS, "dimensions": dimensions}).json()["data"]
    cohere = wire.post("/v2/embed", {"texts": TEXTS, "output_dimension": dimensions}).json()
    body = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS}, "parameters": {"dimensions": dimensions}}
    for rows in (
        embed(wire, TEXTS, dimensions=dimensions),
        [one["embedding"] for one in openai],
        cohere["embeddings"]["float"],
    ):
        assert np.abs(rows - want).max() <= 1e-5
    assert wire.post("/similarity", body).json() == pytest.approx((want @ want[0]).tolist(), abs=1e-5)


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokens_shown_are_the_tokens_counted(wire: Wire, text: str) -> None:
    """8.7 and 8.2: with special tokens and with the default prompt."""
    (tokens,) = wire.post("/tokenize", {"inputs": text}).json()
    answer = wire.post("/v1/embeddings", {"input": text})
    assert answer.json()["usage"] == {"prompt_tokens": len(tokens), "total_tokens": len(tokens)}
    assert answer.headers["x-compute-tokens"] == str(len(tokens))
    assert answer.headers["x-compute-characters"] == str(len(text))
    cohere = wire.post("/v2/embed", {"texts": [text]}).json()
    assert cohere["meta"]["billed_units"] == {"input_tokens": len(tokens)}


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_slices_of_the_prompted_text_in_bytes(wire: Wire, text: str) -> None:
    (tokens,) = wire.post("/tokenize", {"inputs": text}).json()
    source = ("say: " + text).encode()
    own = [token for token in tokens if not token["special"]]
    assert own
    assert all(source[token["start"] : token["stop"]].decode() == token["text"] for token in own)
    places = [place for token in own for place in (token["start"], token["stop"])]
    assert places == sorted(places)
    assert own[-1]["stop"] == len(source)


def test_decode_undoes_tokenize(wire: Wire) -> None:
    (tokens,) = wire.post("/tokenize", {"inputs": "the river bank", "add_special_tokens": False}).json()
    ids = [token["id"] for token in tokens if token["start"] >= len("say: ")]
    assert wire.post("/decode", {"ids": [ids, ids[:2]]}).json() == ["the river bank", "the river"]


@pytest.mark.parametrize("path", ["/embed", "/tokenize"])
def test_an_empty_text_is_empty_whatever_stands_before_it(wire: Wire, path: str) -> None:
    """8.15: the default prompt and the special tokens would give tokens; a space is no empty text."""
    assert error(wire.post(path, {"inputs": ""})) == E08
    assert wire.post(path, {"inputs": " "}).status_code == 200


def test_max_tokens_counts_special_tokens_and_prompt(wire: Wire) -> None:
    (tokens,) = wire.post("/tokenize", {"inputs": TEXTS[2]}).json()
    for limit in (len(tokens) - 1, len(tokens)):
        answer = wire.post("/v2/embed", {"texts": [TEXTS[2]], "max_tokens": limit})
        assert answer.headers["x-compute-tokens"] == str(limit)
    body = {"texts": [TEXTS[2]], "truncate": "NONE"}
    assert wire.post("/v2/embed", {**body, "max_tokens": len(tokens)}).status_code == 200
    assert error(wire.post("/v2/embed", {**body, "max_tokens": len(tokens) - 1})) == (422, None)
