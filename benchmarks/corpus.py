"""Texts of mixed lengths, made of the documentation that every Python brings: the same on every machine of a version.

A text is a run of words from `pydoc_data.topics` and the standard library's docstrings, cut to a wanted number of
tokens of the tokenizer at hand, specials included. Lengths are log-uniform, as real queries and passages mixed are:
MIXED 8 to 256 tokens (71 on average), LONG 64 to 512. It is not natural traffic: that has other
lengths, and repeats itself.
"""

import ast
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pydoc_data import topics

import numpy as np
from tokenizers import Tokenizer

MIXED, LONG = (8, 256), (64, 512)
MODULES = (
    "argparse",
    "asyncio/base_events",
    "collections/__init__",
    "datetime",
    "decimal",
    "difflib",
    "doctest",
    "enum",
)


@dataclass(frozen=True)
class Corpus:
    """texts and how many tokens each has, specials included."""

    texts: list[str]
    lengths: list[int]

    @property
    def num_tokens(self) -> int:
        return sum(self.lengths)


@cache
def words() -> list[str]:
    """All words of the documentation, in a fixed order."""
    pages = [topics.topics[name] for name in sorted(topics.topics)]
    library = Path(sysconfig.get_path("stdlib"))
    trees = [ast.parse((library / f"{name}.py").read_text(encoding="utf-8")) for name in MODULES]
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    pages += [ast.get_docstring(node) or "" for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)]
    return " ".join(pages).split()


def make(tokenizer_file: Path, tokens: tuple[int, int], count: int, seed: int = 0) -> Corpus:
    """`count` texts of `tokens` (fewest, most) tokens in random order, none twice."""
    random = np.random.default_rng(seed)
    low, high = tokens
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    evenly = (random.permutation(count) + 0.5) / count  # not drawn: any count has the same mix of lengths
    wanted = np.exp(np.log(low) + evenly * np.log((high + 1) / low)).astype(int)
    starts = random.permutation(len(words()) - high)[:count]
    texts = [_cut(tokenizer, start, length) for start, length in zip(starts, wanted, strict=True)]
    return Corpus(texts, [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(texts)])


def _cut(tokenizer: Tokenizer, start: int, length: int) -> str:
    """Words from `start` on until there are `length` tokens with the two specials: never more."""
    text = " ".join(words()[start : start + length])
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets[: length - 2]
    return text[: offsets[-1][1]]
