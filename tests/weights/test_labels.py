"""config.json -> Labels: names in order, and the activation by every rule."""

from pathlib import Path
from typing import Any

import pytest

from openbei.errors import UnsupportedModel
from openbei.weights.labels import HeadFacts, read_labels
from openbei.weights.load import load
from tests import families

ENCODER, DECODER, TOKEN = HeadFacts(False, False), HeadFacts(False, True), HeadFacts(True, False)
SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"
PAIRS = HeadFacts(False, True, scores_pairs=True)
VERDICT = HeadFacts(False, True, IDENTITY, scores_pairs=True, verdict=True)


def test_names_go_by_number() -> None:
    labels = read_labels({"id2label": {str(number): f"n{number}" for number in reversed(range(12))}}, 12, ENCODER)
    assert labels.names == tuple(f"n{number}" for number in range(12))
    assert read_labels({}, 3, ENCODER).names == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize(
    ("id2label", "said"),
    [
        ({"0": "a"}, "names 1 labels in id2label; the weights have 2"),
        ({"0": "a", "2": "b"}, "names 2 labels"),
        (["a", "b"], "must map numbers to names"),
        ({"a": 0, "b": 1}, "must map numbers to names"),
    ],
)
def test_names_that_do_not_fit_are_refused(id2label: Any, said: str) -> None:
    with pytest.raises(UnsupportedModel, match=said):
        read_labels({"id2label": id2label}, 2, ENCODER)


@pytest.mark.parametrize(
    ("config", "num_labels", "facts", "activation", "reranker"),
    [
        ({}, 1, ENCODER, "sigmoid", True),
        ({"problem_type": "regression"}, 1, ENCODER, "sigmoid", True),
        ({}, 1, DECODER, "sigmoid", False),
        ({"problem_type": "regression"}, 1, DECODER, "sigmoid", False),
        ({"sbert_ce_default_activation_function": IDENTITY}, 1, DECODER, "identity", False),
        ({}, 1, PAIRS, "sigmoid", True),
        ({"sbert_ce_default_activation_function": IDENTITY}, 1, PAIRS, "identity", True),
        ({"sbert_ce_default_activation_function": IDENTITY}, 1, VERDICT, "sigmoid", True),
        ({}, 2, PAIRS, "softmax", False),
        ({}, 3, ENCODER, "softmax", False),
        ({}, 2, DECODER, "softmax", False),
        ({"problem_type": "single_label_classification"}, 3, ENCODER, "softmax", False),
        ({"problem_type": "multi_label_classification"}, 28, ENCODER, "sigmoid", False),
        ({"problem_type": "regression"}, 3, ENCODER, "identity", False),
        ({"sbert_ce_default_activation_function": IDENTITY}, 1, ENCODER, "identity", True),
        ({"sentence_transformers": {"activation_fn": IDENTITY}}, 1, ENCODER, "identity", True),
        (
            {"sentence_transformers": {"activation_fn": SIGMOID}, "sbert_ce_default_activation_function": IDENTITY},
            1,
            ENCODER,
            "sigmoid",
            True,
        ),
        ({"sbert_ce_default_activation_function": "my.own.Activation"}, 1, ENCODER, "sigmoid", True),
        ({"sentence_transformers": {"activation_fn": SIGMOID}}, 1, HeadFacts(False, False, IDENTITY), "identity", True),
        ({}, 5, TOKEN, "softmax", False),
        ({}, 1, TOKEN, "softmax", False),
    ],
)
def test_the_activation_by_every_rule(
    config: dict[str, Any], num_labels: int, facts: HeadFacts, activation: str, reranker: bool
) -> None:
    labels = read_labels(config, num_labels, facts)
    assert (labels.activation, labels.reranker) == (activation, reranker)


def test_another_torch_activation_is_refused() -> None:
    config = {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"}
    with pytest.raises(UnsupportedModel, match=r"score with 'torch.nn.modules.activation.Tanh'; supported: Sigmoid"):
        read_labels(config, 1, ENCODER)


def test_a_folder_with_a_head_has_labels_and_needs_no_pooling(tmp_path: Path) -> None:
    judge = families.network("roberta", "Sequence", id2label={0: "joy", 1: "grief", 2: "pride"})
    folder = families.save(tmp_path, "roberta", judge, pooling=None)
    families.change_json(folder / "config.json", problem_type="multi_label_classification")
    checkpoint = load(str(folder))
    assert checkpoint.labels is not None
    assert (checkpoint.labels.names, checkpoint.labels.activation) == (("joy", "grief", "pride"), "sigmoid")
    assert (checkpoint.model.pooling, checkpoint.model.num_labels) == ("cls", 3)


@pytest.mark.parametrize(
    ("family", "kind"), [("gte-new", "Token"), ("roberta", "Sequence"), ("distilbert", "Sequence")]
)
def test_a_folder_that_pools_is_an_embedder_and_its_head_is_left_aside(family: str, kind: str, tmp_path: Path) -> None:
    """gte-multilingual-base names NewForTokenClassification and is an embedder."""
    judge = families.network(family, kind, num_labels=1)
    checkpoint = load(str(families.save(tmp_path, family, judge)))
    assert (checkpoint.labels, checkpoint.model.head, checkpoint.model.pooling) == (None, None, "mean")


def test_an_embedder_has_no_labels(tmp_path: Path) -> None:
    assert load(str(families.save(tmp_path, "bert"))).labels is None
