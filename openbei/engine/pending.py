"""A Request on its way: what is known of it so far, and the future that its client holds.

Owns the assembly of a Result from rows that arrive batch by batch; never touches the queue or the executor.
"""

from concurrent.futures import Future, InvalidStateError

import numpy as np
from numpy.typing import NDArray

from openbei.engine.metrics import InputTimes
from openbei.engine.request import Request, Result, Timings, Usage
from openbei.errors import InferenceFailed

SMALLEST_NORM = 1e-12


class Pending:
    """One admitted Request. submitted_s: time.monotonic(); times: one InputTimes an input, once resolved."""

    def __init__(self, request: Request, submitted_s: float) -> None:
        self.request = request
        self.future: Future[Result] = Future()
        self.times: list[InputTimes] = []
        self._submitted_s = self._tokenized_s = submitted_s
        self._lengths: list[int] = []
        self._rows: list[NDArray[np.float32]] = []
        self._spans: list[tuple[float, float]] = []
        self._num_left = len(request.inputs)

    @property
    def num_tokens(self) -> int:
        """Tokens of all inputs, known once tokenised."""
        return sum(self._lengths)

    def tokenized(self, lengths: list[int], now_s: float) -> None:
        """Note the tokens of each input, and that they wait from now on."""
        self._lengths, self._tokenized_s = lengths, now_s
        self._rows = [np.empty(0, np.float32)] * len(lengths)
        self._spans = [(now_s, now_s)] * len(lengths)

    def add(self, index: int, vector: NDArray[np.float32], begin_s: float, end_s: float) -> bool:
        """Note the vector (C,) of one input and when it was computed; True if it was the last one."""
        self._rows[index], self._spans[index] = vector, (begin_s, end_s)
        self._num_left -= 1
        return self._num_left == 0

    def resolve(self, now_s: float) -> Result | None:
        """All rows -> the Result, given to the client; None if it was cancelled, or failed on NaN."""
        options = self.request.options
        vectors = np.stack(self._rows)[:, : options.dimensions]
        if not np.isfinite(vectors).all():
            self.fail(InferenceFailed("inference failed: the model's output holds NaN or infinity"))
            return None
        result = Result(normalized(vectors) if options.normalize else vectors, self._usage(), self._timings(now_s))
        try:
            self.future.set_result(result)
        except InvalidStateError:
            return None
        return result

    def fail(self, error: BaseException) -> None:
        """Give the client an error, unless it has an answer or left."""
        try:
            self.future.set_exception(error)
        except InvalidStateError:
            return

    def _usage(self) -> Usage:
        return Usage(self.num_tokens, sum(len(item) for item in self.request.inputs))

    def _timings(self, now_s: float) -> Timings:
        count, total_s = len(self._spans), now_s - self._submitted_s
        tokenization_s = (self._tokenized_s - self._submitted_s) / count
        self.times = [
            InputTimes(tokenization_s, begin_s - self._tokenized_s, end_s - begin_s, total_s, length)
            for (begin_s, end_s), length in zip(self._spans, self._lengths, strict=True)
        ]
        queue_s = sum(times.queue_s for times in self.times) / count
        return Timings(total_s, tokenization_s, queue_s, sum(times.inference_s for times in self.times) / count)


def normalized(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows (N, C) -> rows of L2 norm 1, the norm in float64; a zero row stays zero."""
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(norms, SMALLEST_NORM), np.float32)
