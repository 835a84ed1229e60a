"""What a checkpoint says of its text side and of its labels, and the Checkpoint itself. Data only.

Owns the records that pass from weights to engine; never reads a file itself.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from openbei.model.spec import Array, Model
from openbei.weights.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Edge:
    """What the model's files say of one end of every text, beside tokenizer.json.

    wanted: token stands there, unless tokenizer.json puts a special token there itself; else it does not.
    """

    token: str
    wanted: bool


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is found in the text before anything else. The flags are the tokenizers library's own."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


@dataclass(frozen=True, slots=True)
class PairTemplate:
    """How a query and a document become the one text that a language model reads.

    source: Jinja, given a message of role query and one of role document, after one of role system that holds the
    instruction, if there is one. instruction: the model's own; None leaves it to the template.
    complete: the text has its special tokens already. structured: a message's content is a list of parts.
    generation_prompt: the template is told to open the answer.
    """

    source: str
    instruction: str | None = None
    complete: bool = True
    structured: bool = False
    generation_prompt: bool = False


@dataclass(frozen=True, slots=True)
class Expansion:
    """Queries of fewer tokens than length are filled up with token_id, and each of these has a vector too.

    attended: other tokens see these; else they see the query's own, and nothing sees them.
    Source: ColBERT (Khattab and Zaharia 2020, section 3.2).
    """

    length: int
    token_id: int
    attended: bool


@dataclass(frozen=True, slots=True)
class TextSpec:
    """How text becomes tokens: tokenizer.json, the most tokens with specials, prompts by name, lower-casing.

    max_query_length: the most tokens of what is sent as a query to a model of multi-vectors, None for max_length.
    expansion: of these queries. markers: each is one token, if the vocabulary has it or its first word.
    bare: texts get no special tokens.
    first, last: what stands at the ends of every text; None leaves that to tokenizer.json. added_tokens: by id.
    special_tokens: by role, such as {"eos_token": "</s>"}. chat_template: Jinja, of models that score chats.
    bert_normalizer: settings of a BertNormalizer, by the tokenizers library's names, that win over tokenizer.json.
    split_special_tokens: special tokens that occur in a text are read as its letters.
    pair_template: of language models that rerank; None where the tokenizer itself joins the two texts.
    probes: of an artifact, texts or pairs with the ids that they must become.
    """

    tokenizer_file: Path
    max_length: int
    prompts: dict[str, str] = field(default_factory=dict)
    lower_case: bool = False
    first: Edge | None = None
    last: Edge | None = None
    added_tokens: dict[int, AddedToken] = field(default_factory=dict)
    special_tokens: dict[str, str] = field(default_factory=dict)
    chat_template: str | None = None
    bert_normalizer: dict[str, bool | None] = field(default_factory=dict)
    split_special_tokens: bool = False
    pair_template: PairTemplate | None = None
    max_query_length: int | None = None
    expansion: Expansion | None = None
    markers: tuple[str, ...] = ()
    bare: bool = False
    probes: tuple[tuple[tuple[str, ...], tuple[int, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class Labels:
    """What a head's outputs mean. names: one a label, in the order of the logits.

    activation: turns logits into scores, unless raw scores are asked for. per_token: labels every token.
    reranker: one label, of an encoder or of a decoder whose files make it a scorer of pairs; the one label of any other
    decoder is a reward.
    """

    names: tuple[str, ...]
    activation: Literal["sigmoid", "softmax", "identity"]
    per_token: bool = False
    reranker: bool = False


@dataclass(frozen=True, slots=True)
class ByToken:
    """Which tokens count where the answer holds something of each.

    unweighed: ids that have no place in a sparse vector. num_dropped: tokens at the front of a text, and skipped: ids
    in a document, that have no vector among its multi-vectors.
    """

    unweighed: frozenset[int] = frozenset()
    num_dropped: int = 0
    skipped: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Lookup:
    """What a query's sparse vector is looked up in: the weight of each word that occurs in it, float32 (V,)."""

    text: TextSpec
    weights: Array


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model read from files: its network, its text side, where it came from, and its labels if it has a head.

    artifact: what its manifest says, if it has one. lookup: of queries that go through no network.
    """

    model_id: str
    revision: str | None
    folder: Path
    model: Model
    text: TextSpec
    labels: Labels | None = None
    by_token: ByToken = field(default_factory=ByToken)
    artifact: Manifest | None = None
    lookup: Lookup | None = None
