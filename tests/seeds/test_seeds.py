"""Each of the 24 models, tiny, from a folder as published to an answer over HTTP, against its judge."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

import openbei
from openbei.engine.engine import Engine
from tests.seeds.folder import Judge
from tests.seeds.rows import SEEDS
from tests.server.wire import Wire

TEXTS = [
    "the red fox",
    "x",
    "The FOX on the  red é 北京 fox!",
    "on the red fox, " * 40,
    "<s> the [SEP] </s><|eot_id|> <query>fox",
]
QUERY, LONG_QUERY = "the fox", "the red fox on " * 20
CHATS = [
    [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": " on the red  "}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "fox?"},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "on?"},
        {"role": "assistant", "content": "é"},
    ],
]


def of(task: str) -> list[str]:
    return [name for name, seed in SEEDS.items() if seed.task == task]


@contextmanager
def served(name: str, folder: Path) -> Iterator[tuple[Wire, Judge, Engine]]:
    """One model's folder behind the server's app, and its judge."""
    seed = SEEDS[name]
    judge = Judge(seed, folder)
    with openbei.load(str(folder), dtype="float32", pooling=seed.pooling) as engine:
        assert engine.info.max_input_length == seed.limit
        yield Wire(engine), judge, engine  # type: ignore[arg-type]


def close(got: Any, want: Any, limit: float) -> None:
    """Raise AssertionError if any value differs by more than the limit."""
    assert np.shape(got) == np.shape(want)
    assert np.abs(np.asarray(got, np.float64) - want).max() <= limit


def judged_twice(name: str) -> bool:
    """Whether sentence-transformers loads the folder without the authors' code, and so as they meant it."""
    return SEEDS[name].modules is not None and "auto_map" not in SEEDS[name].config


def softmax(row: Any) -> Any:
    return np.exp(row) / np.exp(row).sum()


def sigmoid(row: Any) -> Any:
    return 1 / (1 + np.exp(-row))


@pytest.mark.parametrize("name", of("embed"))
def test_embed(name: str, tmp_path: Path) -> None:
    with served(name, tmp_path) as (wire, judge, engine):
        modules = SEEDS[name].modules
        prompts = {None: "", **(modules.prompts or {} if modules else {})}
        assert engine.info.prompts == {key: text for key, text in prompts.items() if key}
        for prompt, text in prompts.items():
            want = np.stack([judge.vector(text + each) for each in TEXTS])
            sent = {"prompt_name": prompt}
            close(wire.post("/embed", {"inputs": TEXTS, "normalize": False, **sent}).json(), want, 1e-4)
            body = wire.post("/v1/embeddings", {"input": TEXTS, **sent}).json()
            unit = want / np.linalg.norm(want, axis=1, keepdims=True)
            close([one["embedding"] for one in body["data"]], unit, 1e-5)
            assert body["usage"]["prompt_tokens"] == sum(judge.num_tokens(text + each) for each in TEXTS)


def test_bge_m3_weighs_its_tokens_and_embeds_each(tmp_path: Path) -> None:
    """relu of one linear layer, the largest of each id that is not special; another on all tokens but the first.

    Source: FlagOpen/FlagEmbedding, inference/embedder/encoder_only/m3.py.
    """
    with served("bge-m3", tmp_path) as (wire, judge, _):
        sparse = wire.post("/embed_sparse", {"inputs": TEXTS}).json()
        multi = wire.post("/v1/multi-vector", {"input": TEXTS}).json()["data"]
        special = {judge.tokenizer.convert_tokens_to_ids(token) for token in ("<s>", "</s>", "<pad>", "<unk>")}
        for text, weights, vectors in zip(TEXTS, sparse, multi, strict=True):
            ids, states = judge.tokens(text)
            found: dict[int, float] = {}
            for token, weight in zip(ids, judge.layers["sparse_linear.pt"](states).relu()[:, 0].tolist(), strict=True):
                if token not in special and weight > 0:
                    found[token] = max(weight, found.get(token, 0))
            assert [entry["index"] for entry in weights] == sorted(found)
            close([entry["value"] for entry in weights], [found[token] for token in sorted(found)], 1e-4)
            rows = judge.layers["colbert_linear.pt"](states[1:]).numpy()
            close(vectors["embeddings"], rows / np.linalg.norm(rows, axis=1, keepdims=True), 1e-5)
        assert sum(map(len, sparse)) > 10


@pytest.mark.parametrize("name", [name for name in of("embed") if judged_twice(name)])
def test_the_judge_agrees_with_sentence_transformers(name: str, tmp_path: Path) -> None:
    """Pooling, prompts and limits as the folder's own files say them, read by their own library."""
    modules, judge = SEEDS[name].modules, Judge(SEEDS[name], tmp_path)
    assert modules
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    theirs = SentenceTransformer(str(tmp_path), device="cpu", model_kwargs=options, tokenizer_kwargs=judge.ends)
    for prompt, text in {None: "", **(modules.prompts or {})}.items():
        want = np.stack([judge.vector(text + each) for each in TEXTS])
        if modules.normalize:
            want /= np.linalg.norm(want, axis=1, keepdims=True)
        close(theirs.encode(TEXTS, prompt_name=prompt, batch_size=1), want, 1e-5)


@pytest.mark.parametrize("name", of("rerank"))
def test_rerank(name: str, tmp_path: Path) -> None:
    with served(name, tmp_path) as (wire, judge, _):
        for query in (QUERY, LONG_QUERY):
            want = np.array([judge.logits(query, text)[0] for text in TEXTS])
            for raw_scores, scores, limit in ((True, want, 1e-4), (False, sigmoid(want), 1e-5)):
                body = wire.post("/rerank", {"query": query, "texts": TEXTS, "raw_scores": raw_scores}).json()
                assert [one["index"] for one in body] == list(np.argsort(-want))
                close([one["score"] for one in body], -np.sort(-scores), limit)


@pytest.mark.parametrize("name", of("classify"))
def test_classify(name: str, tmp_path: Path) -> None:
    config = SEEDS[name].config
    activation = sigmoid if config.get("problem_type") == "multi_label_classification" else softmax
    labels = [config["id2label"][str(number)] for number in range(len(config["id2label"]))]
    with served(name, tmp_path) as (wire, judge, _):
        want = [judge.logits(text) for text in TEXTS]
        for raw_scores, limit in ((True, 1e-4), (False, 1e-5)):
            body = wire.post("/predict", {"inputs": [[text] for text in TEXTS], "raw_scores": raw_scores}).json()
            for answer, logits in zip(body, want, strict=True):
                by_label = {one["label"]: one["score"] for one in answer}
                close([by_label[label] for label in labels], logits if raw_scores else activation(logits), limit)


@pytest.mark.parametrize("name", of("reward"))
def test_reward(name: str, tmp_path: Path) -> None:
    """Messages, the same chats as text, and texts that are none; a reward is the raw number, and else its sigmoid."""
    with served(name, tmp_path) as (wire, judge, engine):
        chats = [judge.chat_logits(chat) for chat in CHATS]
        ready = [judge.tokenizer.apply_chat_template(chat, tokenize=False) for chat in CHATS]
        inputs = [*CHATS, *([text] for text in (*TEXTS, *ready))]
        want = np.array([*chats, *(judge.logits(text) for text in TEXTS), *(read(judge, each) for each in ready)])
        for options, scored in (({}, 1 / (1 + np.exp(-want))), ({"raw_scores": True}, want)):
            body = wire.post("/predict", {"inputs": inputs, **options}).json()
            assert {one["label"] for answer in body for one in answer} == {"LABEL_0"}
            scores = np.array([[one["score"] for one in answer] for answer in body])
            close(scores, scored, 1e-4)
        body = wire.post("/", {"inputs": CHATS[0], "raw_scores": True}).json()
        close([one["score"] for one in body], chats[0], 1e-4)
        close(engine.classify(CHATS, raw_scores=True), chats, 1e-4)
        close(engine.classify(CHATS[1], raw_scores=True), chats[1:], 1e-4)


def read(judge: Judge, ready: str) -> Any:
    """A chat that came as text: a template that prints the BOS has made a whole one, else it is a text like others."""
    bos = judge.tokenizer.bos_token
    return judge.logits(ready.removeprefix(bos))
