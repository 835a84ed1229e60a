"""An engine without a model: the surface of openbei.engine.engine.Engine, with answers that a test can work out.

An input's vector is made from its own text or ids, so that order and mixing show. Futures are resolved at once,
unless `hold` is set: then they stay in `held` until a test resolves them.
"""

import re
from concurrent.futures import Future
from dataclasses import replace
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from openbei import errors
from openbei.config import EngineConfig
from openbei.engine.check import check, check_ids, check_prompt, check_sizes
from openbei.engine.finish import Activation, finished
from openbei.engine.metrics import InputTimes, Metrics
from openbei.engine.request import (
    EngineInfo,
    Input,
    Kind,
    Request,
    Result,
    Timings,
    Token,
    Tokenized,
    Usage,
    num_characters,
)
from openbei.engine.sparse import NO_TOKENS, Tokens, few_words
from openbei.engine.truncation import MAX_CHARACTERS_PER_TOKEN
from openbei.weights.checkpoint import ByToken

DIM = 8
INFO = EngineInfo(
    model_id="org/tiny",
    revision="abc123",
    served_model_name="org/tiny",
    dtype="float32",
    device="cpu, 2 streams",
    pooling="mean",
    embedding_dim=DIM,
    vocab_size=1000,
    max_input_length=16,
    max_batch_tokens=64,
    tokenization_workers=2,
    prompts={"query": "query: "},
)
LABELS: dict[Kind, tuple[str, ...]] = {
    "embedding": (),
    "sparse": (),
    "multi_vector": (),
    "classifier": ("bad", "good", "mixed"),
    "reranker": ("relevance",),
    "token_classifier": ("O", "B-PER", "I-PER", "B-LOC"),
}
ACTIVATIONS: dict[Kind, Activation] = {"embedding": "identity", "sparse": "log1p_relu", "multi_vector": "identity"}
TIMES = InputTimes(tokenization_s=0.0012, queue_s=0.0034, inference_s=0.0056, total_s=0.0102, num_tokens=3)


def vector(one: Input) -> NDArray[np.float32]:
    """The fake's answer to one input, before any option: fixed by its content."""
    key = one if isinstance(one, str) else ",".join(map(str, one))
    return np.random.default_rng(crc32(key.encode())).standard_normal(DIM).astype(np.float32)


def tokens(text: str) -> list[Token]:
    """The fake's tokens: the words of a text, between two special ones. A word that begins with + goes on."""
    words = [
        Token(7, match[0], match.start(), match.end(), special=False, continues=match[0].startswith("+"))
        for match in re.finditer(r"\S+", text)
    ]
    special = [
        Token(number, name, 0, 0, special=True, continues=False) for number, name in ((1, "[CLS]"), (2, "[SEP]"))
    ]
    return [special[0], *words, special[1]]


class FakeEngine:
    """kind: what its model is for; a text's logits are the first numbers of its vector, a token's of its text.

    name: under which it is served.
    """

    def __init__(self, kind: Kind = "embedding", name: str = INFO.served_model_name, **config: object) -> None:
        self.config = EngineConfig(**{"max_client_batch_size": 4, **config})
        self.info = replace(INFO, kind=kind, labels=LABELS[kind], multi_dim=DIM, served_model_name=name)
        self.status = "ready"
        self.metrics = Metrics(INFO.max_input_length)
        self.requests: list[Request] = []
        self.hold = False
        self.held: list[Future[Result]] = []
        self.fail_with: BaseException | None = None  # what futures fail with
        self.refuse_with: BaseException | None = None  # what submit raises
        self.closed = False

    def set_prompts(self, prompts: dict[str, str]) -> None:
        self.info = replace(self.info, prompts=prompts)

    def submit(self, request: Request, wait: bool = False) -> Future[Result]:
        self.metrics.begun(request)
        self.requests.append(request)
        future: Future[Result] = Future()
        future.add_done_callback(lambda done: self._count(request, done))
        try:
            self._check(request)
        except errors.RequestError as error:
            self.metrics.failed(request, error)
            raise
        if self.hold:
            self.held.append(future)
        else:
            self.resolve(future, request)
        return future

    def resolve(self, future: Future[Result], request: Request) -> None:
        error = self.fail_with or too_long(request)
        if error is not None:
            future.set_exception(error)
            return
        usage = Usage(num_tokens=3 * len(request.inputs), num_characters=sum(map(num_characters, request.inputs)))
        times = Timings(TIMES.total_s, TIMES.tokenization_s, TIMES.queue_s, TIMES.inference_s)
        tagged = [tokens(one) for one in request.inputs] if request.task == "classify_tokens" else []
        rows = [self.row(one, request) for one in request.inputs]
        ids = NO_TOKENS
        if self.info.kind != "sparse":
            ids = Tokens([range(len(row)) for row in rows], ByToken(frozenset({1}), num_dropped=1))
        rows = finished(request.task, rows, request.options, ACTIVATIONS.get(self.info.kind, "sigmoid"), ids)
        result = Result(rows, usage, times, tagged)
        self.metrics.succeeded(request, result, [TIMES] * len(request.inputs))
        self.metrics.batch_formed(len(request.inputs), usage.num_tokens)
        future.set_result(result)

    def row(self, one: Input, request: Request) -> NDArray[np.float32]:
        """What the model would say to one input."""
        match request.task:
            case "embed":
                return vector(one)
            case "embed_sparse":
                return few_words(vector(one)) if self.info.kind == "sparse" else np.abs(vector(one))[:, None]
            case "embed_tokens" | "embed_multi":
                return np.stack([vector(one)] * num_characters(one))
            case "classify_tokens":
                return np.stack([vector(token.text)[: len(self.info.labels)] for token in tokens(str(one))])
            case _:
                return vector(one)[: len(self.info.labels)]

    def tokenize(
        self, texts: list[str], add_special_tokens: bool = True, prompt_name: str | None = None
    ) -> Future[list[Tokenized]]:
        self._refuse()
        check_sizes(texts, self.config.max_client_batch_size)
        check_prompt(prompt_name, self.info)
        prompted = [self.info.prompts[prompt_name] + text if prompt_name else text for text in texts]
        most = INFO.max_input_length * MAX_CHARACTERS_PER_TOKEN
        error = errors.TooLong("too many characters") if max(map(len, prompted)) > most else None
        return self._done(
            [Tokenized(text, tokens(text)[slice(None) if add_special_tokens else slice(1, -1)]) for text in prompted],
            error,
        )

    def decode(self, ids: list[list[int]], skip_special_tokens: bool = True) -> Future[list[str]]:
        self._refuse()
        check_sizes(ids, self.config.max_client_batch_size)
        for one in ids:
            check_ids(one, self.info)
        skipped = (1, 2) if skip_special_tokens else ()
        return self._done([" ".join(str(number) for number in one if number not in skipped) for one in ids])

    def _done(self, value: Any, error: BaseException | None = None) -> Future[Any]:
        future: Future[Any] = Future()
        if error := error or self.fail_with:
            future.set_exception(error)
        else:
            future.set_result(value)
        return future

    def release(self) -> None:
        """Answer everything that was held."""
        self.hold = False
        latest = self.requests[len(self.requests) - len(self.held) :]
        for future, request in zip(self.held, latest, strict=True):
            if future.set_running_or_notify_cancel():
                self.resolve(future, request)
        self.held.clear()

    def drain(self) -> None:
        self.status = "draining"

    def close(self) -> None:
        for future in self.held:
            future.exception()  # waits
        self.closed = True

    def _check(self, request: Request) -> None:
        self._refuse()
        check(request, self.info, self.config.max_client_batch_size)

    def _refuse(self) -> None:
        if self.status != "ready":
            raise errors.Unhealthy(f"unhealthy: {self.status}")
        if self.refuse_with is not None:
            raise self.refuse_with

    def _count(self, request: Request, future: Future[Result]) -> None:
        if future.cancelled():
            self.metrics.failed(request, None)
        elif future.exception() is not None:
            self.metrics.failed(request, future.exception())


def too_long(request: Request) -> errors.TooLong | None:
    """The fake counts characters or ids for tokens."""
    longest = max(map(num_characters, request.inputs))
    limit = min(INFO.max_input_length, request.options.max_tokens or INFO.max_input_length)
    if request.options.truncate is False and longest > limit:
        return errors.TooLong(f"{longest} tokens > {limit}, the most this model takes")
    return None
