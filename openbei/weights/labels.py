"""config.json -> Labels: the names of a head's outputs, and what turns them into scores. Never touches weights.

The rules of scores are those of sentence-transformers' CrossEncoder (a declared activation wins) and of transformers'
text-classification pipeline (problem_type; sigmoid of one label).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from openbei.errors import UnsupportedModel
from openbei.weights.checkpoint import Labels

Score = Literal["sigmoid", "softmax", "identity"]
_TORCH: dict[str, Score] = {"Sigmoid": "sigmoid", "Identity": "identity", "Softmax": "softmax"}


@dataclass(frozen=True, slots=True)
class HeadFacts:
    """What config.json does not say of a head.

    declared: activation_fn of config_sentence_transformers.json. scores_pairs: the files make a decoder a scorer of
    pairs. verdict: its one logit is that of yes less that of no, whose sigmoid is the probability of yes of the two.
    """

    per_token: bool
    decoder: bool
    declared: Any = None
    scores_pairs: bool = False
    verdict: bool = False


def read_labels(config: Mapping[str, Any], num_labels: int, facts: HeadFacts) -> Labels:
    """A config.json, the rows of the head's last weight, and the head's facts -> Labels.

    Raises UnsupportedModel where id2label does not fit the weights or an activation is not one of three.
    """
    return Labels(
        names=_names(config.get("id2label"), num_labels),
        activation=_activation(config, num_labels, facts),
        per_token=facts.per_token,
        reranker=num_labels == 1 and not facts.per_token and (facts.scores_pairs or not facts.decoder),
    )


def _names(id2label: Any, num_labels: int) -> tuple[str, ...]:
    """By number and not by text, for there "10" comes before "2"."""
    if not id2label:
        return tuple(f"LABEL_{number}" for number in range(num_labels))
    try:
        by_number = {int(number): str(name) for number, name in id2label.items()}
    except (AttributeError, ValueError) as error:
        raise UnsupportedModel(f"config.json has id2label {id2label!r}; it must map numbers to names") from error
    if sorted(by_number) != list(range(num_labels)):
        raise UnsupportedModel(f"config.json names {len(by_number)} labels in id2label; the weights have {num_labels}")
    return tuple(by_number[number] for number in range(num_labels))


def _activation(config: Mapping[str, Any], num_labels: int, facts: HeadFacts) -> Score:
    if facts.per_token:
        return "softmax"
    if facts.verdict:
        return "sigmoid"
    declared = (
        facts.declared,
        (config.get("sentence_transformers") or {}).get("activation_fn"),
        config.get("sbert_ce_default_activation_function"),
    )
    for name in declared:
        if name is not None and str(name).startswith("torch."):  # the library trusts no other
            return _torch(str(name))
    if num_labels == 1:
        return "sigmoid"
    by_problem: dict[Any, Score] = {"multi_label_classification": "sigmoid", "regression": "identity"}
    return by_problem.get(config.get("problem_type"), "softmax")


def _torch(name: str) -> Score:
    activation = _TORCH.get(name.rpartition(".")[2].removesuffix("()"))
    if activation is None:
        raise UnsupportedModel(f"the model's files score with {name!r}; supported: {', '.join(_TORCH)} of torch")
    return activation
