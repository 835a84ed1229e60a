"""Labels of tokens -> entities of the text, by the four strategies of transformers' token-classification pipeline.

Owns the joining of sub-words into words and of words into entities; never touches models or tokenizers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from openbei.engine.request import Token

Strategy = Literal["simple", "first", "average", "max"]
OUTSIDE = "O"


@dataclass(frozen=True, slots=True)
class Entity:
    """A stretch of the text with one label. score: 0 to 1. start, end: code points."""

    label: str
    score: float
    start: int
    end: int


def find_entities(
    tokens: Sequence[Token], probabilities: NDArray[np.float32], names: Sequence[str], strategy: Strategy
) -> list[Entity]:
    """Tokens of one text with their probabilities (n, L) and the names of the L labels -> its entities, in order.

    simple: every token by itself. first, average, max: sub-words become words first, with the probabilities of the
    first, with the mean of all, or with those of the surest one. Neighbours of one type then join, their score the
    mean, unless a B- begins anew; special tokens and O are left out.
    """
    words: list[Entity] = []
    for group in grouped(tokens, strategy):
        row = merged(probabilities[group], strategy)
        best = int(row.argmax())
        words.append(Entity(names[best], float(row[best]), tokens[group[0]].start, tokens[group[-1]].end))
    return [entity for entity in map(joined, neighbours(words)) if entity.label != OUTSIDE]


def grouped(tokens: Sequence[Token], strategy: Strategy) -> list[list[int]]:
    """Places of the tokens that make a word each; of simple, of every token alone."""
    groups: list[list[int]] = []
    for place, token in enumerate(tokens):
        if token.special:
            continue
        if groups and token.continues and strategy != "simple":
            groups[-1].append(place)
        else:
            groups.append([place])
    return groups


def merged(rows: NDArray[np.float32], strategy: Strategy) -> NDArray[np.floating]:
    """Probabilities of a word's sub-words (n, L) -> those of the word (L,)."""
    if strategy == "average":
        return np.asarray(rows.mean(axis=0, dtype=np.float64))
    return np.asarray(rows[rows.max(axis=1).argmax()] if strategy == "max" else rows[0])


def neighbours(words: Sequence[Entity]) -> list[list[Entity]]:
    """Words -> groups of those that follow each other and are one entity."""
    groups: list[list[Entity]] = []
    for word in words:
        begins, kind = tag(word.label)
        if groups and not begins and kind == tag(groups[-1][-1].label)[1]:
            groups[-1].append(word)
        else:
            groups.append([word])
    return groups


def joined(words: Sequence[Entity]) -> Entity:
    """Neighbours of one type -> one entity."""
    score = sum(word.score for word in words) / len(words)
    return Entity(words[0].label.split("-", 1)[-1], score, words[0].start, words[-1].end)


def tag(label: str) -> tuple[bool, str]:
    """A label -> whether it begins an entity, and its type; without B- or I- it goes on."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label
