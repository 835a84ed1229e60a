"""A Request on its way: what is known of it so far, and the future that its client holds.

Owns the assembly of a Result from rows that arrive batch by batch; never touches the queue or the executor.
"""

from concurrent.futures import Future, InvalidStateError

import numpy as np
from numpy.typing import NDArray

from openbei.engine.finish import Activation, finished
from openbei.engine.metrics import InputTimes
from openbei.engine.request import Request, Result, Timings, Token, Usage, num_characters
from openbei.errors import InferenceFailed


class Pending:
    """One admitted Request. submitted_s: time.monotonic(); activation: of the model's labels.

    times: one InputTimes an input, once resolved. tokens: of each input, where the task answers with them.
    """

    def __init__(self, request: Request, submitted_s: float, activation: Activation = "identity") -> None:
        self.request = request
        self.future: Future[Result] = Future()
        self.times: list[InputTimes] = []
        self.tokens: list[list[Token]] = []
        self._activation = activation
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

    def add(self, index: int, row: NDArray[np.float32], begin_s: float, end_s: float) -> bool:
        """Note what the model made of one input and when; True if it was the last one. row: as finish.finished."""
        self._rows[index], self._spans[index] = row, (begin_s, end_s)
        self._num_left -= 1
        return self._num_left == 0

    def resolve(self, now_s: float) -> Result | None:
        """All rows -> the Result, given to the client; None if it was cancelled, or failed on NaN."""
        try:
            rows = finished(self.request.task, self._rows, self.request.options, self._activation)
        except InferenceFailed as error:
            self.fail(error)
            return None
        result = Result(rows, self._usage(), self._timings(now_s), self.tokens)
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
        return Usage(self.num_tokens, sum(map(num_characters, self.request.inputs)))

    def _timings(self, now_s: float) -> Timings:
        count, total_s = len(self._spans), now_s - self._submitted_s
        tokenization_s = (self._tokenized_s - self._submitted_s) / count
        self.times = [
            InputTimes(tokenization_s, begin_s - self._tokenized_s, end_s - begin_s, total_s, length)
            for (begin_s, end_s), length in zip(self._spans, self._lengths, strict=True)
        ]
        queue_s = sum(times.queue_s for times in self.times) / count
        return Timings(total_s, tokenization_s, queue_s, sum(times.inference_s for times in self.times) / count)
