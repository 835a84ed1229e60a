"""The story of a request: submit, tokenise, wait, batch, run, resolve.

Threads: the caller's (submit), the tokenizer's pool, and one thread a lane of the executor. No timer and no
polling: a lane that becomes free forms its next batch from whatever waits, at once.
Owns admission, batching and the life of the executor; never touches HTTP, JSON or tensors other than NumPy.
"""

import itertools
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Literal, Self

import numpy as np

from openbei.config import EngineConfig
from openbei.engine.check import check, check_vocabulary
from openbei.engine.executor import Executor
from openbei.engine.local import LocalCalls
from openbei.engine.metrics import Metrics
from openbei.engine.pending import Pending
from openbei.engine.queue import Encoding, Queue
from openbei.engine.request import Chat, Request, Result, Task, num_characters
from openbei.engine.settle import default_prompt, describe, kind_of, limited
from openbei.engine.tokenizer import Encoded, Tokenizer, Truncation
from openbei.engine.tokens import tokens_of
from openbei.errors import DeadlineExceeded, InferenceFailed, Overloaded, RequestError, Unhealthy
from openbei.model.spec import Batch, Output, pack
from openbei.weights.checkpoint import Checkpoint

Clock = Callable[[], float]
Status = Literal["ready", "draining", "failed"]
INLINE_CHARACTERS = 2048  # so few are tokenised (0.2 ms) sooner than another thread wakes up
MAX_RETRY_AFTER_S = 30
RESTART_PAUSES_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)

OUTPUTS: dict[Task, Output] = {  # what the executor is asked for; tasks of one output share batches
    "embed": "vectors",
    "embed_tokens": "states",
    "classify": "labels",
    "rerank": "labels",
    "classify_tokens": "labels",
}

log = logging.getLogger(__name__)


class Engine(LocalCalls):
    """Tokenizer, queue and executor for one model: requests in, futures of results out.

    make_executor is called once to start, and again after an executor raised. clock: seconds, only ever forward.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: EngineConfig,
        make_executor: Callable[[], Executor],
        clock: Clock = time.monotonic,
    ) -> None:
        self.config = config
        self._clock = clock
        text = limited(checkpoint.text, config)
        self._tokenizer = Tokenizer(text)
        self._spec, self._labels = checkpoint.model.spec, checkpoint.labels
        check_vocabulary(self._tokenizer.vocab_size, self._spec.vocab_size)
        self._prompt = default_prompt(text.prompts, config, kind_of(self._labels))
        self._make_executor = make_executor
        self._executor = make_executor()
        self.info = describe(checkpoint, text, config, self._executor.device)
        self._changed = threading.Condition()  # guards everything below
        self._queue: Queue[Pending] = Queue(config.max_queue_tokens, self._is_live)
        self._num_admitted = 0
        self._num_running = 0
        self._alone = False
        self._down = self._draining = self._closed = False
        self._tokens_per_s = 1e4
        self.metrics = Metrics(self.info.max_input_length, self._queue.__len__)
        self._tokenizers = ThreadPoolExecutor(self.info.tokenization_workers, "tokenizer")
        self._lanes = [
            threading.Thread(target=self._serve_lane, name=f"lane-{i}", daemon=True)
            for i in range(self._executor.device.num_lanes)
        ]
        for lane in self._lanes:
            lane.start()

    @property
    def status(self) -> Status:
        """ready, draining (admits nothing more) or failed (the executor is down and being restarted)."""
        if self._draining:
            return "draining"
        return "failed" if self._down else "ready"

    # Submit

    def submit(self, request: Request, wait: bool = False) -> Future[Result]:
        """Request -> future of its Result; cancelling it drops what of it still waits.

        wait: block until there is room, instead of raising Overloaded; for callers in this process.
        Raises at once what check.check does, Unhealthy and Overloaded. The future fails with TooLong,
        TokenizerFailed, InferenceFailed, DeadlineExceeded, Overloaded (max_queue_tokens).
        """
        self.metrics.begun(request)
        try:
            check(request, self.info, self.config.max_client_batch_size)
            num_permits = min(len(request.inputs), self.config.max_concurrent_requests)
            self._admit(num_permits, wait)
        except RequestError as error:
            self.metrics.failed(request, error)
            raise
        pending = Pending(request, self._clock(), self._labels.activation if self._labels else "identity")
        pending.future.add_done_callback(lambda _: self._release(num_permits))
        pending.future.add_done_callback(lambda future: self._count(request, future))
        has_chat = any(isinstance(one, Chat) for one in request.inputs)  # its template is a program of the model's
        if not has_chat and sum(map(num_characters, request.inputs)) <= INLINE_CHARACTERS:
            self._tokenize(pending, wait)
        else:
            self._tokenizers.submit(self._tokenize, pending, wait)
        return pending.future

    # Life

    def drain(self) -> None:
        """Admit nothing more; what was admitted is still answered."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()

    def close(self) -> None:
        """Drain, wait until everything admitted is answered, and stop the threads."""
        self.drain()
        with self._changed:
            self._changed.wait_for(lambda: self._num_admitted == 0)
            self._closed = True
            self._changed.notify_all()
        self._tokenizers.shutdown()
        for lane in self._lanes:
            lane.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Admission

    def _admit(self, num_permits: int, wait: bool) -> None:
        limit = self.config.max_concurrent_requests
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._num_admitted + num_permits <= limit or self.status != "ready")
            if self.status != "ready":
                raise Unhealthy(f"unhealthy: {self.status}")
            if self._num_admitted + num_permits > limit:
                raise Overloaded(retry_after_s=self._retry_after_s())
            self._num_admitted += num_permits

    def _release(self, num_permits: int) -> None:
        with self._changed:
            self._num_admitted -= num_permits
            self._changed.notify_all()

    def _retry_after_s(self) -> int:
        return int(min(MAX_RETRY_AFTER_S, 1 + self._queue.num_tokens / self._tokens_per_s))

    def _count(self, request: Request, future: Future[Result]) -> None:
        if future.cancelled():
            self.metrics.failed(request, CancelledError())
        elif (error := future.exception()) is not None:
            self.metrics.failed(request, error)

    # Tokenise

    def _tokenize(self, pending: Pending, wait: bool) -> None:
        try:
            task = pending.request.task
            encoded = self._encode(pending)
            pending.tokenized([len(one.ids) for one in encoded], self._clock())
            encodings = [Encoding(one.ids, pending, i, one.type_ids, OUTPUTS[task]) for i, one in enumerate(encoded)]
            self._enqueue(encodings, pending, wait)
        except Exception as error:  # the pool would swallow it, and the client would hang
            pending.fail(error)

    def _encode(self, pending: Pending) -> list[Encoded]:
        inputs, options = pending.request.inputs, pending.request.options
        enabled = self.config.auto_truncate if options.truncate is None else options.truncate
        truncation = Truncation(enabled, options.truncation_direction)
        if pending.request.task == "classify_tokens":  # its offsets are into the bare text, so no prompt
            encoded = self._tokenizer.encode(inputs, truncation, None, with_offsets=True)
            pending.tokens = [
                tokens_of(str(text), one, self._tokenizer, truncation)
                for text, one in zip(inputs, encoded, strict=True)
            ]
            return encoded
        prompt = self._prompt if options.prompt_name is None else self.info.prompts[options.prompt_name]
        return self._tokenizer.encode(inputs, truncation, prompt)

    def _enqueue(self, encodings: list[Encoding[Pending]], pending: Pending, wait: bool) -> None:
        num_tokens = pending.num_tokens
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._queue.has_room(num_tokens) or self._down)
            if self._down:
                raise InferenceFailed("the executor is down")
            if not self._queue.has_room(num_tokens):
                raise Overloaded(retry_after_s=self._retry_after_s())
            self._queue.put(encodings)
            self._changed.notify_all()

    # Batch and run

    def _serve_lane(self) -> None:
        while (taken := self._take()) is not None:
            encodings, alone = taken
            try:
                self._run(encodings, alone)
            except Exception as error:
                self._restart(error, encodings)
            finally:
                with self._changed:
                    self._num_running -= 1
                    self._alone = False
                    self._changed.notify_all()

    def _take(self) -> tuple[list[Encoding[Pending]], bool] | None:
        """Wait for work and form a batch; None when the engine is closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._closed or (len(self._queue) > 0 and not self._alone))
                if self._closed:
                    return None
                encodings = self._queue.take(self.info.max_batch_tokens, self.config.max_batch_requests)
                if encodings:
                    alone = self._num_running == 0 and len(self._queue) == 0
                    self._num_running += 1
                    self._alone = alone
                    return encodings, alone

    def _run(self, encodings: list[Encoding[Pending]], alone: bool) -> None:
        begin_s = self._clock()
        batch = self._pack(encodings)
        output = OUTPUTS[encodings[0].owner.request.task]
        rows = self._executor.run(batch, output, alone)
        end_s = self._clock()
        self._tokens_per_s = batch.num_tokens / max(end_s - begin_s, 1e-6) * len(self._lanes)
        self.metrics.batch_formed(len(encodings), batch.num_tokens)
        by_token = output == "states" or self.info.kind == "token_classifier"
        answers = np.split(rows, batch.cu_seqlens[1:-1]) if by_token else rows
        finished = []
        with self._changed:  # a request's inputs may finish on two lanes at once
            for encoding, answer in zip(encodings, answers, strict=True):
                if encoding.owner.add(encoding.index, answer, begin_s, end_s):
                    finished.append(encoding.owner)
        for pending in finished:
            self._resolve(pending)

    def _pack(self, encodings: list[Encoding[Pending]]) -> Batch:
        types = None
        if any(encoding.type_ids is not None for encoding in encodings):
            types = [encoding.type_ids or [0] * len(encoding.token_ids) for encoding in encodings]
        return pack(self._spec, [encoding.token_ids for encoding in encodings], types)

    def _resolve(self, pending: Pending) -> None:
        result = pending.resolve(self._clock())
        if result is not None:
            self.metrics.succeeded(pending.request, result, pending.times)

    def _is_live(self, pending: Pending) -> bool:
        deadline_s = pending.request.deadline_s
        if deadline_s is not None and self._clock() > deadline_s:
            pending.fail(DeadlineExceeded("the request's deadline passed before inference began"))
        return not pending.future.done()

    # Recover

    def _restart(self, error: Exception, encodings: list[Encoding[Pending]]) -> None:
        """The executor raised: fail what waits, then make another; status is "failed" until one stands."""
        log.error("executor failed: %s; restarting it", error, exc_info=error)
        with self._changed:
            first, self._down = not self._down, True
            lost = {encoding.owner for encoding in (*encodings, *self._queue.clear())}
            self._changed.notify_all()
        for pending in lost:
            pending.fail(InferenceFailed(f"inference failed: {error}"))
        if first:  # another lane that fails meanwhile leaves the mending to this one
            self._make_another_executor()

    def _make_another_executor(self) -> None:
        for pause_s in itertools.chain(RESTART_PAUSES_S, itertools.repeat(RESTART_PAUSES_S[-1])):
            with self._changed:
                if self._changed.wait_for(lambda: self._closed, timeout=pause_s):
                    return
            try:
                self._executor = self._make_executor()
                break
            except Exception:
                log.exception("the executor did not start; trying again")
        with self._changed:
            self._down = False
            self._changed.notify_all()
