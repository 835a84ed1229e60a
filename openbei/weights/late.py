"""Models of late interaction (ColBERT): what only their folders say -> Late.

Three kinds of folder hold one: sentence-transformers' own (a MultiVectorMask module), PyLate's (its keys in
config_sentence_transformers.json) and Stanford's (architecture HF_ColBERT, artifact.metadata). Owns lengths, markers,
the expansion of queries and the words without a vector; never reads weights. The rules are those by which
sentence-transformers 6.2 reads all three (multi_vector_encoder/model.py, base/modules/transformer.py).
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openbei.errors import UnsupportedModel
from openbei.weights.files import read_object
from openbei.weights.module_files import text_config

METADATA = "artifact.metadata"
_PREFIXES = {"query": "query_prefix", "document": "document_prefix"}
_PYLATE_KEYS = (
    *_PREFIXES.values(),
    "query_length",
    "document_length",
    "do_query_expansion",
    "attend_to_expansion_tokens",
    "attend_to_mask_tokens",
    "skiplist_words",
)
_CLASSIC_LENGTH = 32


@dataclass(frozen=True, slots=True)
class Expanding:
    """How the files want queries filled up. token: None for the tokenizer's mask token, or else its end of a text."""

    length: int
    attended: bool
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Late:
    """What is asked of queries and documents. max_query_tokens, max_document_tokens: None for the limit of every text.

    skiplist: words that have no vector in a document. markers: "query" and "document" -> what stands before their
    texts, one token if the vocabulary has it. inline: the projection lies among the network's tensors (Stanford).
    """

    skiplist: tuple[str, ...] = ()
    max_query_tokens: int | None = None
    max_document_tokens: int | None = None
    expanding: Expanding | None = None
    markers: Mapping[str, str] = field(default_factory=dict)
    inline: bool = False


def is_pylate(folder: Path, kinds: Sequence[str]) -> bool:
    """True for the modules that PyLate writes, which leave its last two steps unsaid, with a key that it alone has."""
    said = read_object(folder / "config_sentence_transformers.json", optional=True)
    marked = said.get("model_type") == "ColBERT" or any(key in said for key in _PREFIXES.values())
    return marked and list(kinds) == ["Transformer", *["Dense"] * (len(kinds) - 1)] and len(kinds) > 1


def is_stanford(folder: Path) -> bool:
    """True for a folder without modules whose config.json names Stanford's architecture."""
    config = read_object(folder / "config.json", optional=True)
    return not (folder / "modules.json").exists() and "HF_ColBERT" in (config.get("architectures") or ())


def read_late(folder: Path, body: Path, mask: Mapping[str, Any] | None) -> Late:
    """The folders of a model and of its network, and the MultiVectorMask's config -> Late. mask: None for PyLate's."""
    own, said = text_config(body), read_object(folder / "config_sentence_transformers.json", optional=True)
    words = (said if mask is None else mask).get("skiplist_words")
    if mask is None and words is None:
        words = list(string.punctuation)
    expanding = _expanding(own, said)
    length = _length("query_length", own, said)
    if expanding is not None:
        length = _expanded_length(own, expanding, length)
    return Late(
        skiplist=tuple(words or ()),
        max_query_tokens=length,
        max_document_tokens=_length("document_length", own, said),
        expanding=expanding,
        markers={role: said[key] for role, key in _PREFIXES.items() if said.get(key)},
    )


def read_stanford(folder: Path) -> Late:
    """A folder of Stanford's -> Late. Source of the defaults: stanford-futuredata/ColBERT, colbert/infra/config."""
    said = read_object(folder / METADATA, optional=True)
    length = _length("query_maxlen", said) or _CLASSIC_LENGTH
    return Late(
        skiplist=tuple(string.punctuation) if said.get("mask_punctuation", True) else (),
        max_query_tokens=length,
        max_document_tokens=_length("doc_maxlen", said),
        expanding=Expanding(length, bool(said.get("attend_to_mask_tokens"))),
        markers={
            "query": f"{said.get('query_token_id') or '[unused0]'} ",
            "document": f"{said.get('doc_token_id') or '[unused1]'} ",
        },
        inline=True,
    )


def _expanding(own: Mapping[str, Any], said: Mapping[str, Any]) -> Expanding | None:
    for config in (own, said):
        if "query_expansion" in config:
            return _checked(config["query_expansion"])
    if said.get("do_query_expansion") is False or not any(key in said for key in _PYLATE_KEYS):
        return None
    attended = said.get("attend_to_expansion_tokens", said.get("attend_to_mask_tokens"))
    return Expanding(_length("query_length", said) or _CLASSIC_LENGTH, bool(attended))


def _checked(wanted: Any) -> Expanding | None:
    if wanted is None:
        return None
    known = {"strategy": ("fixed", "min"), "attend": (False, True)}
    given = {"attend": False, "token": None, **wanted}
    for key, values in known.items():
        if given.get(key) not in values:
            listed = ", ".join(map(repr, values))
            raise UnsupportedModel(f"query_expansion has {key} {given.get(key)!r}; supported: {listed}")
    if more := set(given) - {*known, "token", "length"}:
        raise UnsupportedModel(f"query_expansion has {', '.join(sorted(more))}, which openbei does not know")
    length = _length("length", given)
    if length is None:
        raise UnsupportedModel("query_expansion has no length")
    return Expanding(length, given["attend"], given["token"])


def _expanded_length(own: Mapping[str, Any], expanding: Expanding, length: int | None) -> int | None:
    """The most tokens of an expanded query: as many as the least, but with strategy min."""
    if (own.get("query_expansion") or {}).get("strategy") != "min":
        return expanding.length
    return None if length is None else max(length, expanding.length)


def _length(key: str, *configs: Mapping[str, Any]) -> int | None:
    length = next((config[key] for config in configs if config.get(key) is not None), None)
    if length is not None and (type(length) is not int or length < 1):
        raise UnsupportedModel(f"the model's files have {key} {length!r}; it must be an integer of at least 1")
    return length
