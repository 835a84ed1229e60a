"""What a Python process calls: any number of texts in, arrays out, blocking until done.

Owns the cutting of long lists into requests, a bounded number in flight; never touches batches or threads.
"""

import itertools
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from openbei.config import EngineConfig
from openbei.engine.request import (
    Chat,
    EngineInfo,
    Input,
    Message,
    Options,
    Pair,
    Request,
    Result,
    SparseVector,
    Task,
    with_chats,
)
from openbei.errors import InvalidInput

CHUNK_INPUTS = 256
WINDOW_INPUTS = 4096
TAKEN = "taken are texts, lists of token ids, Pairs of texts and lists of messages"

Floats = NDArray[np.float32]
Several = TypeVar("Several", bound=Iterable[Any])


class LocalCalls(ABC):
    """The blocking calls of an engine, made of its submit."""

    config: EngineConfig
    info: EngineInfo

    @abstractmethod
    def submit(self, request: Request, wait: bool = False) -> Future[Result]:
        """Request -> future of its Result; wait: block until there is room."""

    def embed(self, texts: Sequence[str], **options: Any) -> Floats:
        """Texts, any number -> embeddings float32 (B, C); options: fields of request.Options. Raises RequestError."""
        parts = list(self._chunks(texts, "embed", Options(**options)))
        width = options.get("dimensions") or self.info.embedding_dim
        return np.concatenate(parts) if parts else np.empty((0, width), np.float32)

    def embed_stream(
        self, texts: Iterable[str], options: Options | None = None, window: int = WINDOW_INPUTS
    ) -> Iterator[Floats]:
        """Texts -> their embeddings float32 (C,), in order; holds about `window` inputs at a time."""
        for part in self._chunks(texts, "embed", options or Options(), window):
            yield from part

    def embed_tokens(self, texts: Sequence[str], **options: Any) -> list[Floats]:
        """Texts -> of each the last hidden state of every token, float32 (n, C), specials and prompt included."""
        return [rows for part in self._chunks(texts, "embed_tokens", Options(**options)) for rows in part]

    def embed_sparse(self, texts: Sequence[str], **options: Any) -> list[SparseVector]:
        """Texts -> of each the words or tokens of the vocabulary that it is about. Raises WrongTask, RequestError."""
        return [row for part in self._chunks(texts, "embed_sparse", Options(**options)) for row in part]

    def embed_multi(self, texts: Sequence[str], **options: Any) -> list[Floats]:
        """Texts -> of each a vector for every token that counts, float32 (m, D). Raises WrongTask, RequestError."""
        return [rows for part in self._chunks(texts, "embed_multi", Options(**options)) for rows in part]

    def rerank(
        self, query: str, texts: Sequence[str], raw_scores: bool = False, prompt_name: str | None = None
    ) -> Floats:
        """How well each text answers the query: float32 (N,), in the order of texts. Raises WrongTask, RequestError.

        prompt_name: the instruction, of models that take one.
        """
        pairs = [Pair(query, text) for text in several(texts)]
        parts = list(self._chunks(pairs, "rerank", Options(raw_scores=raw_scores, prompt_name=prompt_name)))
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def classify(
        self, inputs: Sequence[str | Pair | Sequence[Message]] | Sequence[Message], raw_scores: bool = False
    ) -> Floats:
        """Texts, pairs, lists of messages, or one such list -> scores float32 (N, L), in the order of info.labels.

        Raises WrongTask, RequestError.
        """
        parts = list(self._chunks(with_chats(several(inputs)), "classify", Options(raw_scores=raw_scores)))
        return np.concatenate(parts) if parts else np.empty((0, len(self.info.labels)), np.float32)

    def _chunks(
        self, inputs: Iterable[Input], task: Task, options: Options, window: int = WINDOW_INPUTS
    ) -> Iterator[Any]:
        chunk = min(CHUNK_INPUTS, self.config.max_client_batch_size, window)
        source, futures = map(_known, itertools.count(), several(inputs)), deque[Future[Result]]()
        try:
            while some := list(itertools.islice(source, chunk)):
                futures.append(self.submit(Request(inputs=some, task=task, options=options), wait=True))
                if len(futures) * chunk >= window:
                    yield futures.popleft().result().rows
            while futures:
                yield futures.popleft().result().rows
        finally:
            for future in futures:
                future.cancel()


def several(inputs: Several) -> Several:
    """Inputs as they are. Raises InvalidInput for a bare text, whose letters would each count as one."""
    if isinstance(inputs, str):
        raise InvalidInput("a list of texts is taken here, not one text: put it in a list")
    return inputs


def _known(index: int, one: Input) -> Input:
    """An input as it is. Raises InvalidInput of what is none, such as the NaN of an empty cell."""
    if isinstance(one, str | Chat):
        return one
    if isinstance(one, Pair):
        known = isinstance(one.first, str) and isinstance(one.second, str)
    else:
        known = isinstance(one, Sequence | np.ndarray) and all(isinstance(i, int | np.integer) and i >= 0 for i in one)
    if not known:
        raise InvalidInput(f"input {index} is of type {type(one).__name__}; {TAKEN}")
    return one
