"""Decoders that give one number, over HTTP: one that reranks by yes and no, and a reward model. transformers judges."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

from openbei.config import EngineConfig
from openbei.engine.engine import Engine
from openbei.engine.start import open_engine
from tests import families, rerankers
from tests.rerankers import INSTRUCTION, prompted
from tests.server.wire import Wire, error

QUERY = "is it yes?"
TEXTS = ["The answer is no.", "yes", "", "the <|im_end|> of it: 1 + 1"]


def _sigmoid(values: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(values, np.float64)))


def _open(folder: Path, **config: Any) -> Engine:
    return open_engine(EngineConfig(model_id=str(folder), dtype="float32", **config))


@pytest.fixture(scope="module")
def judge() -> PreTrainedModel:
    return rerankers.language_model(tied=False)


@pytest.fixture(scope="module")
def folder(judge: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rerankers.as_cross_encoder(rerankers.save(tmp_path_factory.mktemp("reranker"), judge))


@pytest.fixture(scope="module")
def wire(folder: Path) -> Iterator[Wire]:
    with _open(folder) as engine:
        yield Wire(engine)  # type: ignore[arg-type]


def _verdicts(judge: PreTrainedModel, folder: Path, instruction: str = INSTRUCTION) -> list[float]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(prompted(QUERY, text, instruction), add_special_tokens=False)["input_ids"] for text in TEXTS]
    return rerankers.verdicts(judge, ids)


def test_rerank_by_yes_and_no(wire: Wire, judge: PreTrainedModel, folder: Path) -> None:
    logits = _verdicts(judge, folder)
    for raw_scores, wanted in ((False, _sigmoid(logits)), (True, logits)):
        for path in ("/rerank", "/"):
            body = wire.post(path, {"query": QUERY, "texts": TEXTS, "raw_scores": raw_scores}).json()
            assert {one["index"]: one["score"] for one in body} == pytest.approx(dict(enumerate(wanted)), abs=1e-4)
            assert [one["index"] for one in body] == np.argsort(wanted)[::-1].tolist()


def test_predict_takes_a_pair_or_a_prompt_that_the_client_made(
    wire: Wire, judge: PreTrainedModel, folder: Path
) -> None:
    inputs = [[QUERY, TEXTS[0]], [prompted(QUERY, TEXTS[1])]]
    body = wire.post("/predict", {"inputs": inputs, "raw_scores": True}).json()
    assert [one["label"] for (one,) in body] == ["LABEL_0", "LABEL_0"]
    assert [one["score"] for (one,) in body] == pytest.approx(_verdicts(judge, folder)[:2], abs=1e-4)


def test_the_instruction_is_the_default_prompt(
    judge: PreTrainedModel, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """By its text, by its name, and by name for one request of a Python process."""
    wanted = _verdicts(judge, folder, "Find facts.")
    body = {"query": QUERY, "texts": TEXTS, "raw_scores": True}
    for config in ({"default_prompt": "Find facts."}, {"default_prompt_name": "facts"}):
        with caplog.at_level(logging.INFO), _open(folder, **config) as engine:
            answer = Wire(engine).post("/rerank", body).json()  # type: ignore[arg-type]
            assert {one["index"]: one["score"] for one in answer} == pytest.approx(dict(enumerate(wanted)), abs=1e-4)
            own = engine.rerank(QUERY, TEXTS, raw_scores=True, prompt_name="query")
            np.testing.assert_allclose(own, _verdicts(judge, folder), rtol=0, atol=1e-4)
        assert "the default prompt is the instruction by which pairs are judged" in caplog.text


def test_no_vectors_of_a_reranker(wire: Wire) -> None:
    assert error(wire.post("/embed", {"inputs": "text"})) == (424, "Backend")


def test_a_reward_is_a_probability_unless_raw_scores_are_asked_for(tmp_path: Path) -> None:
    """TEI's and BEI's contract for one label; the reward itself is the raw score."""
    reward = families.network("llama", "Sequence", num_labels=1, id2label={0: "reward"}, label2id={"reward": 0})
    folder = families.save(tmp_path, "llama", reward, pooling=None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = ["the river bank", "two plus two is four"]
    with torch.inference_mode():
        logits = [float(reward(**tokenizer(text, return_tensors="pt")).logits[0, 0]) for text in texts]
    with _open(folder) as engine:
        wire = Wire(engine)  # type: ignore[arg-type]
        for raw_scores, wanted in ((False, _sigmoid(logits)), (True, logits)):
            for path in ("/predict", "/"):
                body = wire.post(path, {"inputs": [[text] for text in texts], "raw_scores": raw_scores}).json()
                assert [one["score"] for (one,) in body] == pytest.approx(list(wanted), abs=1e-4)
                assert [one["label"] for (one,) in body] == ["reward", "reward"]
        assert wire.get("/info").json()["model_type"].keys() == {"classifier"}
