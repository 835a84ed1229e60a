"""A Request on its way: what is known of it so far, and the future that its client holds.

Owns the making of a Result from the core's Answer; never touches the core, the queue or the executor.
"""

from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError

from openbei.engine.finish import Activation, finished
from openbei.engine.job import Answer, Span
from openbei.engine.metrics import InputTimes
from openbei.engine.request import Request, Result, Timings, Token, Usage, num_characters
from openbei.engine.sparse import NO_TOKENS, Tokens


class Pending:
    """One admitted Request. submitted_s: time.monotonic(); activation: of the model's labels.

    times: one InputTimes an input, once resolved. tokens: of each input, where the task answers with them; ids: all
    ids, where the task's rows go by them.
    """

    def __init__(self, request: Request, submitted_s: float, activation: Activation = "identity") -> None:
        self.request = request
        self.future: Future[Result] = Future()
        self.times: list[InputTimes] = []
        self.tokens: list[list[Token]] = []
        self.ids: Tokens = NO_TOKENS
        self._activation = activation
        self._submitted_s = self._tokenized_s = submitted_s
        self._lengths: list[int] = []

    def tokenized(self, lengths: list[int], now_s: float) -> None:
        """Note the tokens of each input, and that they wait from now on."""
        self._lengths, self._tokenized_s = lengths, now_s

    def resolve(self, answer: Answer, now_s: float) -> Result | None:
        """The core's Answer -> the Result, given to the client; None if it left. Raises InferenceFailed on NaN."""
        rows = finished(self.request.task, answer.rows, self.request.options, self._activation, self.ids)
        result = Result(rows, self._usage(), self._timings(answer.spans, now_s), self.tokens)
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
        return Usage(sum(self._lengths), sum(map(num_characters, self.request.inputs)))

    def _timings(self, spans: Sequence[Span], now_s: float) -> Timings:
        count, total_s = len(spans), now_s - self._submitted_s
        tokenization_s = (self._tokenized_s - self._submitted_s) / count
        self.times = [
            InputTimes(tokenization_s, begin_s - self._tokenized_s, end_s - begin_s, total_s, length)
            for (begin_s, end_s), length in zip(spans, self._lengths, strict=True)
        ]
        queue_s = sum(times.queue_s for times in self.times) / count
        inference_s = sum(times.inference_s for times in self.times) / count
        return Timings(
            total_s, tokenization_s, queue_s, inference_s, self._submitted_s, self._tokenized_s, tuple(spans)
        )
