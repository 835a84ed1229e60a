"""The half of an engine that reads requests, and the story of one: check, admit, tokenise, have it computed, finish.

Threads: the caller's (submit), the tokenizer's pool, and the core's. Owns the way from a Request to a Job and from an
Answer to a Result; never touches HTTP, JSON, batches or executors. The core may be in another process.
"""

import time
from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Self

from openbei.engine.admission import Status
from openbei.engine.check import check, check_ids, check_prompt, check_sizes, check_vocabulary
from openbei.engine.job import Answer, Core, Job
from openbei.engine.local import LocalCalls
from openbei.engine.metrics import Metrics
from openbei.engine.pending import Pending
from openbei.engine.probe import check_tokens
from openbei.engine.request import Chat, Request, Result, Task, Tokenized, num_characters
from openbei.engine.settle import Served
from openbei.engine.sparse import Tokens, all_words, expanded, looked_up
from openbei.engine.tokenizer import Encoded, Tokenizer
from openbei.engine.tokens import tokenized, tokens_of
from openbei.engine.truncation import Truncation
from openbei.errors import RequestError, Unhealthy
from openbei.model.spec import Output

Clock = Callable[[], float]
INLINE_CHARACTERS = 2048  # so few are tokenised (0.2 ms) sooner than another thread wakes up

OUTPUTS: dict[Task, Output] = {  # what the executor is asked for; tasks of one output share batches
    "embed": "vectors",
    "embed_tokens": "states",
    "embed_sparse": "weights",  # but of SPLADE its vectors
    "embed_multi": "multi",
    "classify": "labels",
    "rerank": "labels",
    "classify_tokens": "labels",
}


class Engine(LocalCalls):
    """Requests in, futures of results out, for one model.

    served: as the core's process found it. clock: seconds, only ever forward. Raises ModelError if the tokenizer
    cannot be read, or does not fit the model.
    """

    def __init__(self, served: Served, core: Core, metrics: Metrics, clock: Clock = time.monotonic) -> None:
        self.config, self.info, self.metrics = served.config, served.info, metrics
        self._prompt, self._core, self._clock = served.prompt, core, clock
        self._activation, self._by_token = served.activation, served.by_token
        self._expansion, self._lookup = served.text.expansion, served.lookup
        self._tokenizer = self._query_tokenizer = Tokenizer(served.text)
        if served.text.max_query_length is not None:
            self._query_tokenizer = Tokenizer(replace(served.text, max_length=served.text.max_query_length))
        if served.lookup is not None:
            self._query_tokenizer = Tokenizer(served.lookup.text)
        check_vocabulary(self._tokenizer.vocab_size, self.info.vocab_size)
        check_tokens(self._tokenizer, served.text)
        self._tokenizers = ThreadPoolExecutor(self.info.tokenization_workers, "tokenizer")

    @property
    def status(self) -> Status:
        """ready, draining (admits nothing more) or failed (what computes is down and being restarted)."""
        return self._core.admission.status

    def submit(self, request: Request, wait: bool = False) -> Future[Result]:
        """Request -> future of its Result; cancelling it drops what of it still waits.

        wait: block until there is room, instead of raising Overloaded; for callers in this process.
        Raises at once what check.check does, Unhealthy and Overloaded. The future fails with TooLong,
        TokenizerFailed, InferenceFailed, DeadlineExceeded, Overloaded (max_queue_tokens), Unhealthy.
        """
        self.metrics.begun(request)
        try:
            check(request, self.info, self.config.max_client_batch_size)
            num_permits = self._core.admission.take(len(request.inputs), wait, request.bulk)
        except RequestError as error:
            self.metrics.failed(request, error)
            raise
        activation = "identity" if self._is_looked_up(request) else self._activation
        pending = Pending(request, self._clock(), activation)
        pending.future.add_done_callback(lambda _: self._core.admission.give_back(num_permits))
        pending.future.add_done_callback(lambda future: self._count(request, future))
        has_chat = any(isinstance(one, Chat) for one in request.inputs)  # its template is a program of the model's
        if not has_chat and sum(map(num_characters, request.inputs)) <= INLINE_CHARACTERS:
            self._compute(pending, wait)
        else:
            self._tokenizers.submit(self._compute, pending, wait)
        return pending.future

    def tokenize(
        self, texts: Sequence[str], add_special_tokens: bool = True, prompt_name: str | None = None
    ) -> Future[list[Tokenized]]:
        """Texts -> future of all their tokens, with the prompt of that name, or the default one, before each.

        A default prompt that is an instruction in pairs stands before no text.
        Takes no permit. Raises at once EmptyInput, BatchTooLarge, UnknownPrompt, Unhealthy; the future fails with
        TooLong (characters), TokenizerFailed.
        """
        self._check_open()
        check_sizes(texts, self.config.max_client_batch_size)
        check_prompt(prompt_name, self.info)
        default = "" if self.info.takes_instruction else self._prompt or ""
        prompt = default if prompt_name is None else self.info.prompts[prompt_name]
        prompted = [prompt + text for text in texts]
        return self._tokenizers.submit(tokenized, self._tokenizer, prompted, add_special_tokens)

    def decode(self, ids: Sequence[Sequence[int]], skip_special_tokens: bool = True) -> Future[list[str]]:
        """Id lists -> future of their texts. Takes no permit. Raises at once as tokenize, and InvalidInput."""
        self._check_open()
        check_sizes(ids, self.config.max_client_batch_size)
        for one in ids:
            check_ids(one, self.info)
        return self._tokenizers.submit(self._tokenizer.decode, ids, skip_special_tokens)

    def _check_open(self) -> None:
        if self.status == "draining":
            raise Unhealthy("unhealthy: draining")

    def drain(self) -> None:
        """Admit nothing more; what was admitted is still answered."""
        self._core.admission.drain()

    def close(self) -> None:
        """Drain, wait until everything admitted is answered, and stop the threads."""
        self.drain()
        self._core.admission.wait_until_empty()
        self._tokenizers.shutdown()
        self._core.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _count(self, request: Request, future: Future[Result]) -> None:
        if future.cancelled():
            self.metrics.failed(request, CancelledError())
        elif (error := future.exception()) is not None:
            self.metrics.failed(request, error)

    def _compute(self, pending: Pending, wait: bool) -> None:
        """Tokenise, and hand the tokens to the core; nothing of both if the client left while this had to wait."""
        if pending.future.cancelled():
            return
        try:
            encoded = self._encode(pending)
            pending.tokenized([len(one.ids) for one in encoded], self._clock())
            if self._is_looked_up(pending.request):
                self._look_up(pending, encoded)
                return
            task, deadline_s = pending.request.task, pending.request.deadline_s
            output = "vectors" if self.info.kind == "sparse" else OUTPUTS[task]
            ids = [array("i", one.ids) for one in encoded]  # int32: a lane packs them sooner than lists
            if output in ("weights", "multi"):
                pending.ids = Tokens(ids, self._by_token)
            job = Job(ids, [one.type_ids for one in encoded], output, deadline_s, pending.request.bulk)
            job.future.add_done_callback(lambda future: self._resolve(pending, future))
            pending.future.add_done_callback(lambda _: job.future.cancel())
            self._core.submit(job, wait)
        except Exception as error:  # the pool would swallow it, and the client would hang
            pending.fail(error)

    def _encode(self, pending: Pending) -> list[Encoded]:
        inputs, options = pending.request.inputs, pending.request.options
        enabled = self.config.auto_truncate if options.truncate is None else options.truncate
        truncation = Truncation(enabled, options.truncation_direction, options.max_tokens, options.max_second_tokens)
        if pending.request.task == "classify_tokens":  # its offsets are into the bare text, so no prompt
            encoded = self._tokenizer.encode(inputs, truncation, None, with_offsets=True)
            pending.tokens = [
                tokens_of(str(text), one, self._tokenizer, truncation)
                for text, one in zip(inputs, encoded, strict=True)
            ]
            return encoded
        prompt = self._prompt if options.prompt_name is None else self.info.prompts[options.prompt_name]
        if not options.is_query:
            return self._tokenizer.encode(inputs, truncation, prompt)
        return [expanded(one, self._expansion) for one in self._query_tokenizer.encode(inputs, truncation, prompt)]

    def _is_looked_up(self, request: Request) -> bool:
        """Whether the inputs are queries that no network computes."""
        return self._lookup is not None and request.options.is_query

    def _look_up(self, pending: Pending, encoded: Sequence[Encoded]) -> None:
        assert self._lookup is not None
        now_s, found = self._clock(), Future[Answer]()
        rows = [looked_up(one.ids, self._lookup.weights) for one in encoded]  # type: ignore[arg-type]
        found.set_result(Answer(rows, [(now_s, now_s)] * len(rows)))
        self._resolve(pending, found)

    def _resolve(self, pending: Pending, future: Future[Answer]) -> None:
        if future.cancelled():
            return
        try:
            answer = future.result()
            if self.info.kind == "sparse" and pending.request.task == "embed":
                answer = answer._replace(rows=[all_words(row, self.info.embedding_dim) for row in answer.rows])
            result = pending.resolve(answer, self._clock())
        except Exception as error:  # the future would swallow it, and the client would hang
            pending.fail(error)
            return
        if result is not None:
            self.metrics.succeeded(pending.request, result, pending.times)
