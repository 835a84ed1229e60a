"""Labels of tokens become entities, as in transformers' pipeline for token classification; the models are elsewhere."""

import numpy as np
import pytest

from openbei.engine.entities import Strategy, find_entities
from openbei.engine.request import Token

NAMES = ("O", "B-ORG-UNIT", "I-ORG-UNIT", "B-PER", "I-PER", "GEO-X", "PLAIN")


def entities(
    *labels: str, strategy: Strategy = "simple", continues: tuple[int, ...] = ()
) -> list[tuple[str, int, int]]:
    """A token of two letters for each label, one after the other -> label, start, end of each entity."""
    tokens = [
        Token(1, "ab", 2 * place, 2 * place + 2, special=False, continues=place in continues)
        for place in range(len(labels))
    ]
    rows = np.full((len(labels), len(NAMES)), 0.01, np.float32)
    rows[range(len(labels)), [NAMES.index(label) for label in labels]] = 0.9
    return [(one.label, one.start, one.end) for one in find_entities(tokens, rows, NAMES, strategy)]


@pytest.mark.parametrize(
    ("labels", "want"),
    [
        (("B-ORG-UNIT", "I-ORG-UNIT"), [("ORG-UNIT", 0, 4)]),  # only the first dash parts B from the type
        (("B-PER", "B-PER"), [("PER", 0, 2), ("PER", 2, 4)]),
        (("I-PER", "I-PER", "O", "I-PER"), [("PER", 0, 4), ("PER", 6, 8)]),
        (("B-PER", "I-ORG-UNIT"), [("PER", 0, 2), ("ORG-UNIT", 2, 4)]),
        (("PLAIN", "PLAIN"), [("PLAIN", 0, 4)]),
        (("GEO-X", "GEO-X"), [("X", 0, 4)]),  # so does transformers, whatever stands before the dash
        (("O", "O"), []),
        ((), []),
    ],
)
def test_neighbours_of_a_type_are_one_entity(labels: tuple[str, ...], want: list[tuple[str, int, int]]) -> None:
    assert entities(*labels) == want


@pytest.mark.parametrize(
    ("strategy", "want"),
    [
        ("simple", [("PER", 0, 2), ("ORG-UNIT", 2, 4)]),
        ("first", [("PER", 0, 4)]),
        ("max", [("PER", 0, 4)]),  # of equal ones the first
        ("average", [("ORG-UNIT", 0, 4)]),  # and here the lower label
    ],
)
def test_a_word_has_one_label(strategy: Strategy, want: list[tuple[str, int, int]]) -> None:
    assert entities("B-PER", "B-ORG-UNIT", strategy=strategy, continues=(1,)) == want
