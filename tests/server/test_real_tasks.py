"""The whole way from a folder to an answer over HTTP, with tiny models that have heads; transformers is the judge."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from openbei.config import EngineConfig
from openbei.engine.engine import Engine
from openbei.engine.start import open_engine
from tests.families import ALL, network, save
from tests.server.wire import Wire

TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
UNKNOWN = {"bert": "[UNK]", "roberta": "<unk>"}
TEXTS = ("the river bank", "Bees make honey. Two plus two?", "deep learning 漢 is, the rivers makes", "x")

Judge = tuple[PreTrainedModel, PreTrainedTokenizerFast]


class Served:
    """A folder of one model with a head, served, with its judge."""

    def __init__(self, folder: Path, family: str, kind: Callable[[PretrainedConfig], PreTrainedModel], **config: Any):
        body = network(family, **config)
        self.judge = kind(body.config).eval()
        self.judge.base_model.load_state_dict(body.state_dict(), strict=False)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, parameter in self.judge.named_parameters():
                if "classifier" in name:
                    parameter.normal_(0.0, 0.3, generator=generator)
        save(folder, family, self.judge)
        if "Classification" in type(self.judge).__name__:
            (folder / "modules.json").unlink()
        tiny = ALL[family]
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tiny.tokenizer(), pad_token=tiny.pad, unk_token=UNKNOWN[family], model_max_length=64
        )
        self.tokenizer.save_pretrained(folder)
        self.engine = open_engine(EngineConfig(model_id=str(folder), dtype="float32"))
        self.wire = Wire(self.engine)  # type: ignore[arg-type]

    def logits(self, *texts: str) -> np.ndarray:
        """The judge's logits of one text or pair."""
        encoded = self.tokenizer(*texts, return_tensors="pt", return_token_type_ids="bert" in str(type(self.judge)))
        with torch.inference_mode():
            return self.judge(**encoded).logits[0].numpy()


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Served]]:
    engines: list[Engine] = []

    def one(*args: Any, **config: Any) -> Served:
        served = Served(tmp_path_factory.mktemp("model"), *args, **config)
        engines.append(served.engine)
        return served

    yield one
    for engine in engines:
        engine.close()


def test_predict(serve: Callable[..., Served]) -> None:
    names = {0: "bad", 1: "good", 2: "mixed"}
    served = serve(
        "bert", transformers.BertForSequenceClassification, id2label=names, label2id={v: k for k, v in names.items()}
    )
    inputs = [["the river bank"], ["two plus two", "is four, deep"], ["the"]]
    logits = [served.logits(*one) for one in inputs]
    for raw_scores in (False, True):
        body = served.wire.post("/predict", {"inputs": inputs, "raw_scores": raw_scores}).json()
        for row, answer in zip(logits, body, strict=True):
            want = row if raw_scores else torch.softmax(torch.tensor(row), -1).numpy()
            assert {one["label"]: one["score"] for one in answer} == pytest.approx(
                {names[i]: float(value) for i, value in enumerate(want)}, abs=1e-4
            )
            assert answer == sorted(answer, key=lambda one: -one["score"])
    single = served.wire.post("/predict", {"inputs": inputs[1], "raw_scores": True}).json()
    assert [one["score"] for one in single] == pytest.approx(sorted(map(float, logits[1]), reverse=True), abs=1e-4)


def test_rerank(serve: Callable[..., Served]) -> None:
    served = serve("bert", transformers.BertForSequenceClassification, num_labels=1)
    texts = ["the river bank", "bees make honey", "is four", ""]
    scores = {i: 1 / (1 + np.exp(-float(served.logits("two plus two", text)[0]))) for i, text in enumerate(texts)}
    body = served.wire.post("/rerank", {"query": "two plus two", "texts": texts}).json()
    assert {one["index"]: one["score"] for one in body} == pytest.approx(scores, abs=1e-4)
    assert [one["index"] for one in body] == sorted(scores, key=lambda index: -scores[index])
    assert np.allclose(served.engine.rerank("two plus two", texts), list(scores.values()), atol=1e-4)


def test_embed_all_beside_embed(serve: Callable[..., Served]) -> None:
    served = serve("bert", transformers.BertModel)
    with torch.inference_mode():
        want = [served.judge(**served.tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in TEXTS]
    body = served.wire.post("/embed_all", {"inputs": list(TEXTS)}).json()
    for rows, states in zip(body, want, strict=True):
        assert np.allclose(rows, states.numpy(), atol=1e-4)
    vectors = served.wire.post("/embed", {"inputs": list(TEXTS), "normalize": False}).json()
    assert np.allclose(vectors, [states.numpy().mean(axis=0) for states in want], atol=1e-4)


@pytest.mark.parametrize(
    ("family", "kind"),
    [("bert", transformers.BertForTokenClassification), ("roberta", transformers.RobertaForTokenClassification)],
)
def test_predict_tokens(serve: Callable[..., Served], family: str, kind: Any) -> None:
    """As transformers' pipeline, with a vocabulary that marks sub-words and with one that does not."""
    tags = dict(enumerate(TAGS))
    served = serve(family, kind, id2label=tags, label2id={tag: i for i, tag in tags.items()})
    judge = transformers.pipeline("token-classification", model=served.judge, tokenizer=served.tokenizer, device="cpu")
    num_entities = 0
    for strategy in ("simple", "first", "average", "max"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of roberta: "does not support real words"
            want = [judge(text, aggregation_strategy=strategy) for text in TEXTS]
        body = served.wire.post("/predict_tokens", {"inputs": list(TEXTS), "aggregation_strategy": strategy}).json()
        for text, found, entities in zip(TEXTS, body, want, strict=True):
            num_entities += len(entities)
            assert [(one["start"], one["end"], list(one["results"])) for one in found] == [
                (one["start"], one["end"], [one["entity_group"]]) for one in entities
            ]
            assert [one["token"] for one in found] == [text[one["start"] : one["end"]] for one in entities]
            scores = [score for one in found for score in one["results"].values()]
            assert np.allclose(scores, [one["score"] for one in entities], atol=1e-4)
    assert num_entities > 20
    body = served.wire.post("/predict_tokens", {"inputs": [[text] for text in TEXTS], "raw_scores": True}).json()
    for text, found in zip(TEXTS, body, strict=True):
        encoded = served.tokenizer(text, return_offsets_mapping=True)
        assert [one["token_id"] for one in found] == encoded["input_ids"]
        assert [(one["start"], one["end"]) for one in found] == encoded["offset_mapping"]
        rows = [[one["results"][tag] for tag in TAGS] for one in found]
        assert np.allclose(rows, served.logits(text), atol=1e-4)
