"""A Request and its Result: one client's call with its options, and the answer. Data only.

Owns the shapes that cross between server and engine; never HTTP, JSON or tensors other than NumPy.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from openbei.errors import InvalidInput

Message = Mapping[str, Any]


class Pair(NamedTuple):
    """Two texts that the model reads as one input, such as a query and a document."""

    first: str
    second: str


class Chat(tuple[Message, ...]):
    """Messages that the model reads as one input, by its chat template: {"role": "user", "content": "..."} and so on.

    Keys beside these two reach the template as they are. Raises InvalidInput if a message lacks one of them as text.
    """

    __slots__ = ()

    def __new__(cls, messages: Iterable[Message]) -> Self:
        """Messages, checked."""
        chat = super().__new__(cls, messages)
        for index, message in enumerate(chat):
            for key in ("role", "content"):
                if not isinstance(message, Mapping) or not isinstance(message.get(key), str):
                    raise InvalidInput(f"message {index} of a chat must be an object whose {key} is a string")
        return chat


Input = str | Sequence[int] | Pair | Chat
Direction = Literal["right", "left"]
Task = Literal["embed", "embed_tokens", "embed_sparse", "embed_multi", "classify", "rerank", "classify_tokens"]
Kind = Literal["embedding", "sparse", "multi_vector", "classifier", "reranker", "token_classifier"]


class SparseVector(NamedTuple):
    """What of a vector over the vocabulary is not 0. indices: int32 (K,), ascending; values: float32 (K,)."""

    indices: NDArray[np.int32]
    values: NDArray[np.float32]


Rows = NDArray[np.float32] | list[NDArray[np.float32]] | list[SparseVector]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How one request wants its inputs treated.

    truncate: None takes the server's auto_truncate. truncation_direction: the end that is cut away.
    prompt_name: key of the model's prompts, None for the server's default prompt, if any.
    normalize: L2 norm 1. dimensions: keep the first N values, before normalising.
    raw_scores: logits as they are, instead of the scores that the model's activation makes of them.
    max_tokens: an input's limit, where below the model's own. max_second_tokens: that of a pair's second text, which is
    always cut to it, at its end.
    is_query: of embed_multi and embed_sparse, that the inputs are queries and no documents, which some models treat
    otherwise.
    """

    truncate: bool | None = None
    truncation_direction: Direction = "right"
    prompt_name: str | None = None
    normalize: bool = True
    dimensions: int | None = None
    raw_scores: bool = False
    max_tokens: int | None = None
    max_second_tokens: int | None = None
    is_query: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Texts, token ids, pairs or chats, and what to do with them.

    deadline_s: time.monotonic() after which inference must not begin. bulk: it may wait for those that are not.
    """

    inputs: Sequence[Input]
    task: Task = "embed"
    options: Options = Options()
    deadline_s: float | None = None
    bulk: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """num_tokens: computed, with specials and prompt, after truncation. num_characters: code points given.

    Of a pair both texts count, whole, each time they are given; of a chat the contents of its messages, and of its
    template only the tokens.
    """

    num_tokens: int
    num_characters: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds. total_s: submit to result; tokenization_s, queue_s, inference_s: means over the inputs.

    submitted_s, tokenized_s: time.monotonic(). batches: when each input's batch began and ended, on the same clock.
    """

    total_s: float
    tokenization_s: float
    queue_s: float
    inference_s: float
    submitted_s: float = 0.0
    tokenized_s: float = 0.0
    batches: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True, slots=True)
class Token:
    """One token of a text. start, end: code points of the text it stands for, both 0 for a special one.

    text: that slice of the text, or the name of a special token. continues: it goes on with the word before it.
    """

    id: int
    text: str
    start: int
    end: int
    special: bool
    continues: bool


@dataclass(frozen=True, slots=True)
class Tokenized:
    """A text, with the prompt that was put before it, and all its tokens."""

    text: str
    tokens: list[Token]


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to a Request, in input order.

    rows, float32: embed (N, dimensions), classify (N, L), rerank (N,), embed_sparse N SparseVectors; of N inputs with n
    tokens each, embed_tokens N arrays (n, C), classify_tokens N arrays (n, L), and embed_multi N arrays (m, dimensions)
    for those m tokens that have a vector. tokens: of each input, for classify_tokens.
    """

    rows: Any
    usage: Usage
    timings: Timings
    tokens: Sequence[Sequence[Token]] = ()


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine serves, for /info, /v1/models and the start banner.

    dtype: float32 or bfloat16, as computed. device: such as "cpu, 2 streams on 2 cores". prompts: the model's own list.
    labels: names of what a model with a head tells apart. takes_instruction: a prompt says how to judge a pair.
    more_tasks: what it can do beyond its kind (bge-m3). multi_dim: width of the vectors of embed_multi.
    """

    model_id: str
    revision: str | None
    served_model_name: str
    dtype: str
    device: str
    pooling: str
    embedding_dim: int
    vocab_size: int
    max_input_length: int
    max_batch_tokens: int
    tokenization_workers: int
    prompts: dict[str, str]
    kind: Kind = "embedding"
    labels: tuple[str, ...] = ()
    takes_instruction: bool = False
    more_tasks: tuple[Task, ...] = ()
    multi_dim: int = 0

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What a model of this kind can do, its own task first; whatever has one label can also rank."""
        if self.kind == "embedding":
            return ("embed", "embed_tokens", *self.more_tasks)
        if self.kind == "sparse":
            return ("embed_sparse", "embed")
        if self.kind == "multi_vector":
            return ("embed_multi",)
        if self.kind == "token_classifier":
            return ("classify_tokens",)
        if self.kind == "reranker":
            return ("rerank", "classify")
        return ("classify", "rerank") if len(self.labels) == 1 else ("classify",)


def with_chats(inputs: Sequence[Any]) -> Sequence[Input]:
    """Inputs as a Python caller writes them: lists of messages become Chats, and bare messages are the one Chat."""
    if len(inputs) and isinstance(inputs[0], Mapping):
        return [Chat(inputs)]
    return [Chat(one) if _is_chat(one) else one for one in inputs]


def _is_chat(one: Any) -> bool:
    return isinstance(one, Sequence) and not isinstance(one, str) and len(one) > 0 and isinstance(one[0], Mapping)


def num_characters(item: Input) -> int:
    """Code points of a text, of both texts of a pair or of all contents of a chat, or the ids of a list."""
    if isinstance(item, Chat):
        return sum(len(message["content"]) for message in item)
    return len(item.first) + len(item.second) if isinstance(item, Pair) else len(item)
