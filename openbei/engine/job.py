"""What passes between the two halves of an engine: a Job, one request's tokens; and its Answer, the model's rows.

Owns the assembly of an Answer from rows that arrive batch by batch; never touches texts, queues or threads.
"""

from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from openbei.model.spec import Output

if TYPE_CHECKING:
    from openbei.engine.admission import Admission

Floats = NDArray[np.float32]
Ids = Sequence[int]  # an array or memoryview of int32, which are packed faster than a list
Span = tuple[float, float]


class Answer(NamedTuple):
    """One row an input, in input order, as finish.finished takes them; and when its batch began and ended.

    spans: seconds of time.monotonic(), which all processes of a machine share.
    """

    rows: Sequence[Floats]
    spans: Sequence[Span]


class Job:
    """The tokens of one request's inputs. Its future gives the Answer; to cancel it drops what still waits.

    types: segment of each token, by input, or HIDDEN (see spec.pack); None for an input where all are zero.
    deadline_s: time.monotonic() after which inference must not begin. bulk: it may wait for others.
    """

    __slots__ = ("_num_left", "_rows", "_spans", "bulk", "deadline_s", "future", "ids", "output", "types")

    def __init__(
        self,
        ids: Sequence[Ids],
        types: Sequence[Ids | None],
        output: Output,
        deadline_s: float | None = None,
        bulk: bool = False,
    ) -> None:
        self.ids, self.types, self.output, self.deadline_s, self.bulk = ids, types, output, deadline_s, bulk
        self.future: Future[Answer] = Future()
        self._rows: list[Floats] = [np.empty(0, np.float32)] * len(ids)
        self._spans: list[Span] = [(0.0, 0.0)] * len(ids)
        self._num_left = len(ids)

    @property
    def num_tokens(self) -> int:
        """Tokens of all inputs."""
        return sum(map(len, self.ids))

    def add(self, index: int, row: Floats, span: Span) -> bool:
        """Note what the model made of one input, and when; True if it was the last one."""
        self._rows[index], self._spans[index] = row, span
        self._num_left -= 1
        return self._num_left == 0

    def finish(self) -> None:
        """All rows are there: give the Answer, unless the job was cancelled or has failed."""
        self.answer(Answer(self._rows, self._spans))

    def answer(self, answer: Answer) -> None:
        """Give an Answer made elsewhere."""
        try:
            self.future.set_result(answer)
        except InvalidStateError:
            return

    def fail(self, error: BaseException) -> None:
        """Give an error, unless there is an answer or nobody waits for one."""
        try:
            self.future.set_exception(error)
        except InvalidStateError:
            return


class Core(Protocol):
    """The half of an engine that computes, in this process (core.LocalCore) or in another (remote.RemoteCore)."""

    admission: "Admission"

    def submit(self, job: Job, wait: bool = False) -> None:
        """Take a job; its future gives the Answer. wait: block while too many tokens wait.

        Raises Overloaded (max_queue_tokens), InferenceFailed and Unhealthy, or fails the future with them.
        """
        ...

    def close(self) -> None:
        """Stop, once nothing is admitted any more."""
        ...
