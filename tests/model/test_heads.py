"""Heads on every backend: logits against transformers' classifiers, and the mistakes that must be seen."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from openbei.model.ops import numpy as plain
from openbei.model.spec import Head, HeadLayer, Model, Pooling, pack
from openbei.weights.load import load
from tests import families
from tests.model import oracles
from tests.model.oracles import BACKENDS, error, labels_of

LENGTHS = (3, 17, 1, 9, 30, 2)
ENCODERS = (
    "bert",
    "roberta",
    "xlm-roberta",
    "distilbert",
    "mpnet",
    "nomic-native",
    "gte-new",
    "gte-native",
    "modernbert",
)
DECODERS = ("llama", "mistral", "qwen2", "qwen2-both-sides", "qwen3", "gemma2", "gemma3", "gemma3-both-sides")
Row = tuple[str, str, tuple[tuple[str, Any], ...]]
ROWS: list[Row] = [
    *((family, "Sequence", ()) for family in (*ENCODERS, *DECODERS)),
    *((family, "Token", ()) for family in (*ENCODERS, "llama", "mistral", "qwen2", "qwen3", "gemma2")),
    ("llama", "Token", (("token_classification_bias", False),)),
    ("jina-en", "", ()),
    ("modernbert", "Sequence", (("classifier_pooling", "mean"),)),
    (
        "modernbert",
        "Sequence",
        (("classifier_activation", "relu"), ("classifier_bias", True), ("norm_bias", True), ("mlp_bias", True)),
    ),
    ("llama", "Sequence", (("attention_bias", True), ("mlp_bias", True))),
]


@dataclass(frozen=True)
class Case:
    """A loaded classifier, sequences for it, and the logits that transformers gives."""

    model: Model
    ids: oracles.Ids
    types: oracles.Ids
    logits: NDArray[np.float32]

    def run(self, backend: str, model: Model | None = None) -> NDArray[np.float32]:
        model = model or self.model
        return labels_of(backend, model)(pack(model.spec, self.ids, self.types))


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Row], Case]:
    """Row -> its Case with five labels, made once."""

    @cache
    def make(row: Row) -> Case:
        family, kind, changes = row
        judge = families.network(family, kind, num_labels=5, **dict(changes))
        folder = families.save(tmp_path_factory.mktemp(family), family, judge, pooling=None)
        model = load(str(folder)).model
        ids, types = oracles.sequences(model, LENGTHS)
        return Case(model, ids, types, families.transformers_logits(judge, ids, types))

    return make


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}{'-changed' if row[2] else ''}")
def test_logits_match_transformers(row: Row, backend: str, cases: Callable[[Row], Case]) -> None:
    case = cases(row)
    assert case.model.num_labels == 5
    assert case.logits.shape == (sum(LENGTHS) if row[1] == "Token" else len(LENGTHS), 5)
    assert error(case.run(backend), case.logits) <= 1e-4


@pytest.mark.parametrize("backend", ["numpy", "openvino"])
@pytest.mark.parametrize("pooling", ["avg", "cls", "last"])
def test_a_bidirectional_llama_scores_the_state_that_it_pools(pooling: str, backend: str, tmp_path: Path) -> None:
    """As NVIDIA's code has it: no mask, a pooled state, the matrix. transformers' Llama gives the states."""
    judge = families.network("llama", "Sequence", num_labels=1, is_causal=False)
    folder = families.save(tmp_path, "llama", judge, pooling=None)
    changes = {"model_type": "llama_bidirec", "architectures": ["LlamaBidirectionalForSequenceClassification"]}
    families.change_json(folder / "config.json", **changes, pooling=pooling)
    model = load(str(folder)).model
    ids, types = oracles.sequences(model, LENGTHS)
    states = families.transformers_states(judge.model, ids, types)
    kind: Pooling = {"avg": "mean", "cls": "cls", "last": "last_token"}[pooling]  # type: ignore[assignment]
    vectors = oracles.pooled(states, pack(model.spec, ids), kind)
    wanted = vectors @ judge.score.weight.detach().numpy().T
    assert error(Case(model, ids, types, wanted).run(backend), wanted) <= 1e-4


def _changed(number: int, **changes: Any) -> Callable[[Model], Model]:
    def change(model: Model) -> Model:
        assert model.head is not None
        layers = list(model.head.layers)
        layers[number] = replace(layers[number], **changes)
        return replace(model, head=replace(model.head, layers=tuple(layers)))

    return change


def _without_dense(model: Model) -> Model:
    assert model.head is not None
    return replace(model, head=Head(model.head.layers[1:]))


def _without_bias(model: Model) -> Model:
    assert model.head is not None
    last = model.head.layers[-1]
    return replace(model, head=Head((*model.head.layers[:-1], HeadLayer(replace(last.linear, bias=None)))))


BUGS: dict[str, dict[str, Callable[[Model], Model]]] = {
    "two layers": {
        "no first layer": _without_dense,
        "no activation": _changed(0, activation="identity"),
        "sigmoid for tanh": _changed(0, activation="sigmoid"),
        "mean for the first token": lambda model: replace(model, pooling="mean"),
        "no bias": _without_bias,
    },
    "modernbert": {
        "no norm": _changed(0, norm=None),
        "tanh gelu": _changed(0, activation="gelu_tanh"),
        "mean for the first token": lambda model: replace(model, pooling="mean"),
    },
    "decoder": {
        "the first token": lambda model: replace(model, pooling="cls"),
        "the mean": lambda model: replace(model, pooling="mean"),
        "tanh on the score": _changed(0, activation="tanh"),
    },
}
SEEDED = [
    (family, bug)
    for family, kind in (
        *((family, "two layers") for family in ("bert", "roberta", "distilbert", "gte-new")),
        ("modernbert", "modernbert"),
        ("llama", "decoder"),
        ("gemma2", "decoder"),
        ("jina-en", "two layers"),
    )
    for bug in BUGS[kind].items()
]


@pytest.mark.parametrize(("family", "bug"), SEEDED, ids=lambda value: value if isinstance(value, str) else value[0])
def test_a_seeded_bug_in_a_head_is_seen(
    family: str, bug: tuple[str, Callable[[Model], Model]], cases: Callable[[Row], Case]
) -> None:
    case = cases((family, "" if family == "jina-en" else "Sequence", ()))
    assert error(case.run("numpy", bug[1](case.model)), case.logits) > 1e-4


def test_a_text_that_ends_in_the_pad_id_is_scored_at_its_last_token(tmp_path: Path) -> None:
    """transformers scores the token before, where pad is also the end of a turn; with another pad id it agrees."""
    judge = families.network("llama", "Sequence", num_labels=1, pad_token_id=1)
    model = load(str(families.save(tmp_path, "llama", judge, pooling=None))).model
    ids, types = [[5, 7, 9, 1]], [[0] * 4]
    ours = plain.run(model, pack(model.spec, ids), "labels")
    assert error(ours, families.transformers_logits(judge, ids, types)) > 1e-2
    judge.config.pad_token_id = None
    assert error(ours, families.transformers_logits(judge, ids, types)) <= 1e-4
    judge.config.pad_token_id = 1
    shorter = plain.run(model, pack(model.spec, [[5, 7, 9]]), "labels")
    assert error(shorter, families.transformers_logits(judge, ids, types)) <= 1e-4
