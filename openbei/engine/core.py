"""The half of an engine that computes: jobs of tokens in, rows out. Wait, batch, run, answer, and mend the executor.

Threads: one a lane of the executor. No timer and no polling: a lane that becomes free forms its next batch from
whatever waits, at once. Owns the queue, the lanes and the life of the executor; never touches texts, HTTP or tensors
other than NumPy.
"""

import itertools
import logging
import math
import threading
import time
import traceback
from collections.abc import Callable

import numpy as np

from openbei.config import EngineConfig
from openbei.engine.admission import Admission
from openbei.engine.executor import RESTART_PAUSES_S, Executor
from openbei.engine.job import Job
from openbei.engine.metrics import Metrics
from openbei.engine.queue import Encoding, Queue
from openbei.engine.sparse import at_most, few_words
from openbei.errors import DeadlineExceeded, InferenceFailed, Overloaded
from openbei.model.spec import Batch, Output, pack
from openbei.weights.checkpoint import Checkpoint

Clock = Callable[[], float]

log = logging.getLogger(__name__)


class LocalCore:
    """Queue, lanes and executor for one model, in this process.

    make_executor is called once to start, and again after an executor raised. clock: seconds, only ever forward.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: EngineConfig,
        make_executor: Callable[[], Executor],
        metrics: Metrics,
        clock: Clock = time.monotonic,
    ) -> None:
        self._spec, self._metrics, self._clock = checkpoint.model.spec, metrics, clock
        self._name = config.served_model_name or checkpoint.model_id
        labels = checkpoint.labels
        self._of_words = checkpoint.model.num_logs > 0
        self._by_token: set[Output] = {"states", "weights", "multi"}
        if labels and labels.per_token:
            self._by_token.add("labels")
        self._make_executor = make_executor
        self._executor = make_executor()
        self.device = self._executor.device
        self.on_hang: Callable[[], None] = lambda: None  # when a lane hangs or nothing mends, by a thread of ours
        self.on_room: Callable[[], object] = lambda: None  # when less waits, by a lane; must not block
        self.admission = Admission(config.max_concurrent_requests, self._retry_after_s)
        self._max_batch_tokens = self.device.batch_tokens(config.max_batch_tokens)
        self._max_batch_requests = config.max_batch_requests
        if self._of_words:
            self._max_batch_requests = at_most(self._max_batch_requests, checkpoint.model.embedding_dim)
        self._changed = threading.Condition()  # guards everything below
        self._queue: Queue[Job] = Queue(config.max_queue_tokens, self._is_live)
        self._running: dict[int, tuple[float, list[Encoding[Job]]]] = {}  # by lane: since when, and what
        self._alone = self._down = self._hung = self._closed = False
        self._tokens_per_s = 1e4
        self._count_waiting()
        self._lanes = [
            threading.Thread(target=self._serve_lane, args=(number,), name=f"lane-{number}", daemon=True)
            for number in range(self.device.num_lanes)
        ]
        self._closing = threading.Event()
        threads = [*self._lanes, threading.Thread(target=self._watch, name="watch", daemon=True)]
        for thread in threads if self.device.patience_s else self._lanes:
            thread.start()

    def submit(self, job: Job, wait: bool = False) -> None:
        """Let a job's inputs wait for their batches. Raises InferenceFailed and Overloaded, as Core says."""
        num_tokens = job.num_tokens
        inputs = enumerate(zip(job.ids, job.types, strict=True))
        encodings = [Encoding(ids, job, index, types, job.output, job.bulk) for index, (ids, types) in inputs]
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._queue.has_room(num_tokens, job.bulk) or self._down)
            if self._down:
                raise InferenceFailed("the executor is down")
            if not self._queue.has_room(num_tokens, job.bulk):
                raise Overloaded(retry_after_s=self._retry_after_s())
            self._queue.put(encodings, self._clock())
            self._count_waiting()
            self._changed.notify_all()

    def close(self) -> None:
        """Stop the lanes. What still waits is not answered: call it when nothing is admitted."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._closing.set()
        for lane in [] if self._hung else self._lanes:
            lane.join()

    def _retry_after_s(self) -> float:
        return 1 + self._queue.num_tokens / self._tokens_per_s

    # Batch and run

    def _serve_lane(self, lane: int) -> None:
        while (taken := self._take(lane)) is not None:
            encodings, alone = taken
            try:
                self._run(encodings, alone)
            except Exception as error:
                self._restart(lane, error, encodings)
            finally:
                with self._changed:
                    del self._running[lane]
                    self._alone = False
                    self._back()
                    self._changed.notify_all()

    def _count_waiting(self) -> None:
        self._metrics.queue_size.set(len(self._queue))
        self._metrics.queue_tokens.set(self._queue.num_tokens)

    def _take(self, lane: int) -> tuple[list[Encoding[Job]], bool] | None:
        """Wait for work and form a batch; None when the core is closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._closed or (len(self._queue) > 0 and not self._alone))
                if self._closed:
                    return None
                encodings = self._queue.take(self._max_batch_tokens, self._max_batch_requests, self._clock())
                self._count_waiting()
                self._changed.notify_all()  # there is room, also where all that was taken out had been cancelled
                self.on_room()
                if encodings:
                    alone = self.device.divided and not self._running and len(self._queue) == 0
                    self._running[lane] = self._clock(), encodings
                    self._alone = alone
                    return encodings, alone

    def _run(self, encodings: list[Encoding[Job]], alone: bool) -> None:
        begin_s = self._clock()
        batch = self._pack(encodings)
        output = encodings[0].owner.output
        rows = self._executor.run(batch, output, alone)
        end_s = self._clock()
        self._tokens_per_s = batch.num_tokens / max(end_s - begin_s, 1e-6) * len(self._lanes)
        self._metrics.batch_formed(len(encodings), batch.num_tokens)
        answers = np.split(rows, batch.cu_seqlens[1:-1]) if output in self._by_token else rows
        if self._of_words and output == "vectors":
            answers = list(map(few_words, rows))
            del rows  # of which answers are views otherwise
        finished = []
        with self._changed:  # a job's inputs may finish on two lanes at once
            for encoding, answer in zip(encodings, answers, strict=True):
                if encoding.owner.add(encoding.index, answer, (begin_s, end_s)):
                    finished.append(encoding.owner)
        for job in finished:
            job.finish()

    def _pack(self, encodings: list[Encoding[Job]]) -> Batch:
        types = None
        if any(encoding.type_ids is not None for encoding in encodings):
            types = [
                [0] * len(encoding.token_ids) if encoding.type_ids is None else encoding.type_ids
                for encoding in encodings
            ]
        return pack(self._spec, [encoding.token_ids for encoding in encodings], types)

    def _is_live(self, job: Job) -> bool:
        if job.deadline_s is not None and self._clock() > job.deadline_s:
            job.fail(DeadlineExceeded("the request's deadline passed before inference began"))
        return not job.future.done()

    # Recover

    def check_lanes(self) -> None:
        """Fail everything if a lane has computed for longer than the device's patience: "failed" until it is back."""
        assert self.device.patience_s is not None
        with self._changed:
            late = self._late()
            if not late or self._hung:
                return
            self._hung = self._down = True
            lost = {encoding.owner for encoding in (*late, *self._queue.clear())}
            self._count_waiting()
            self.admission.set_down(True)
            self._changed.notify_all()
        log.error("%s: a batch has taken over %g s: the device hangs", self._name, self.device.patience_s)
        for job in lost:
            job.fail(InferenceFailed(f"inference failed: no answer from the device for {self.device.patience_s:g} s"))
        self.on_hang()

    def _watch(self) -> None:
        assert self.device.patience_s is not None
        while not self._closing.wait(self.device.patience_s / 4):
            self.check_lanes()

    def _late(self) -> list[Encoding[Job]]:
        """What lanes have computed for too long."""
        now_s, patience_s = self._clock(), self.device.patience_s or math.inf
        return [
            one for begin_s, encodings in self._running.values() if now_s - begin_s > patience_s for one in encodings
        ]

    def _back(self) -> None:
        """A lane is back; if none hangs any more, admit again."""
        if self._hung and not self._late():
            log.warning("%s: the device answers again", self._name)
            self._hung = self._down = False
            self.admission.set_down(False)

    def _restart(self, lane: int, error: Exception, encodings: list[Encoding[Job]]) -> None:
        """The executor raised: fail what waits, then make another; the status is "failed" until one stands."""
        log.error("%s: executor failed: %s; restarting it", self._name, error, exc_info=error)
        with self._changed:
            self._running[lane] = math.inf, []  # mending may take longer than any batch
            first, self._down = not self._down, True
            lost = {encoding.owner for encoding in (*encodings, *self._queue.clear())}
            self._count_waiting()
            self.admission.set_down(True)
            self._changed.notify_all()
        for job in lost:
            job.fail(InferenceFailed(f"inference failed: {error}"))
        if first:  # another lane that fails meanwhile leaves the mending to this one
            traceback.clear_frames(error.__traceback__)  # they hold the executor, which holds the device's memory
            del self._executor
            self._make_another_executor()

    def _make_another_executor(self) -> None:
        for number, pause_s in enumerate(itertools.chain(RESTART_PAUSES_S, itertools.repeat(RESTART_PAUSES_S[-1]))):
            if number == len(RESTART_PAUSES_S):
                self.on_hang()  # after an illegal access CUDA does nothing more in this process
            with self._changed:
                if self._changed.wait_for(lambda: self._closed, timeout=pause_s):
                    return
            try:
                self._executor = self._make_executor()
                break
            except Exception:
                log.exception("%s: the executor did not start; trying again", self._name)
        with self._changed:
            self._down = False
            self.admission.set_down(False)
            self._changed.notify_all()
