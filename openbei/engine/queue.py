"""The bounded waiting room: encodings in, batches of neighbours in length out; bulk behind what somebody waits for.

Owns the order in which inputs are computed; never touches threads, tensors or clocks of its own (time is given).
Not locked: the engine calls it under its own lock.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Owner = TypeVar("Owner")
MAX_BULK_WAIT_S = 1.0


@dataclass(slots=True, eq=False)
class Encoding(Generic[Owner]):
    """Token ids of one input: `index` among the inputs of its `owner`.

    type_ids: segment of each token, None for all zero. kind: encodings of different kinds never share a batch.
    bulk: nobody sits and waits for it.
    """

    token_ids: Sequence[int]
    owner: Owner
    index: int
    type_ids: Sequence[int] | None = None
    kind: str = ""
    bulk: bool = False
    arrival: int = field(default=-1, init=False)
    waiting: bool = field(default=False, init=False)

    @property
    def key(self) -> tuple[str, int, int]:
        """Place in the order by length, each kind by itself; arrivals break ties."""
        return self.kind, len(self.token_ids), self.arrival


class Queue(Generic[Owner]):
    """Two lines, interactive and bulk. A batch is of one line: of the interactive one, as long as somebody waits there.

    So that bulk is late and not lost, it has a turn when it has waited for MAX_BULK_WAIT_S since it came or since its
    last turn: a batch as full as any other. Bulk may fill three quarters of max_tokens, so that it shuts nobody out.
    is_live(owner) says whether an owner still wants its answer (not cancelled, not expired); encodings of others
    are dropped when a batch is formed. num_tokens counts all that wait.
    """

    def __init__(self, max_tokens: int, is_live: Callable[[Owner], bool]) -> None:
        self.max_tokens = max_tokens
        self._interactive, self._bulk = Line(is_live), Line(is_live)
        self._bulk_since_s = 0.0

    def __len__(self) -> int:
        return len(self._interactive) + len(self._bulk)

    @property
    def num_tokens(self) -> int:
        """Tokens of all that wait."""
        return self._interactive.num_tokens + self._bulk.num_tokens

    def has_room(self, num_tokens: int, bulk: bool = False) -> bool:
        """True if num_tokens more may wait; an empty queue takes any one request, however large."""
        return not len(self) or self.num_tokens + num_tokens <= share(self.max_tokens, bulk)

    def put(self, encodings: Sequence[Encoding[Owner]], now_s: float = 0.0) -> None:
        """Add encodings, each the youngest of its line."""
        if not len(self._bulk):
            self._bulk_since_s = now_s
        for encoding in encodings:
            (self._bulk if encoding.bulk else self._interactive).put(encoding)

    def take(
        self, max_batch_tokens: int, max_batch_requests: int | None = None, now_s: float = 0.0
    ) -> list[Encoding[Owner]]:
        """Remove and return the oldest live encoding of a line with its nearest neighbours in length, of its kind.

        Together at most max_batch_tokens tokens and max_batch_requests encodings, but always the oldest, even
        if it alone is longer: nobody starves. Empty if nothing live waits.
        """
        due = now_s - self._bulk_since_s >= MAX_BULK_WAIT_S
        for line in (self._bulk, self._interactive) if due else (self._interactive, self._bulk):
            batch = line.take(max_batch_tokens, max_batch_requests)
            if batch:
                if line is self._bulk:
                    self._bulk_since_s = now_s
                return batch
        return []

    def clear(self) -> list[Encoding[Owner]]:
        """Remove and return all that wait."""
        return self._interactive.clear() + self._bulk.clear()


def share(limit: int, bulk: bool) -> int:
    """A limit on what may wait -> the part of it that bulk may fill; all of it for the rest."""
    return limit - limit // 4 if bulk else limit


class Line(Generic[Owner]):
    """Waits in order of arrival, leaves in batches of one kind and like length. is_live: as Queue says."""

    def __init__(self, is_live: Callable[[Owner], bool]) -> None:
        self.num_tokens = 0
        self._is_live = is_live
        self._by_length: list[tuple[tuple[str, int, int], Encoding[Owner]]] = []
        self._by_arrival: deque[Encoding[Owner]] = deque()
        self._num_arrived = 0

    def __len__(self) -> int:
        return len(self._by_length)

    def put(self, encoding: Encoding[Owner]) -> None:
        """Add an encoding, the youngest of all that wait here."""
        encoding.arrival, encoding.waiting = self._num_arrived, True
        self._num_arrived += 1
        self._by_arrival.append(encoding)
        insort(self._by_length, (encoding.key, encoding))
        self.num_tokens += len(encoding.token_ids)

    def take(self, max_batch_tokens: int, max_batch_requests: int | None = None) -> list[Encoding[Owner]]:
        """As Queue.take, of this line."""
        oldest = self._oldest()
        if oldest is None:
            return []
        place = bisect_left(self._by_length, (oldest.key,))
        below, above = place - 1, place + 1
        batch, room = [oldest], max_batch_tokens - len(oldest.token_ids)
        while max_batch_requests is None or len(batch) < max_batch_requests:
            nearest = self._nearest((below, above), oldest, room)
            if nearest is None:
                break
            encoding = self._by_length[nearest][1]
            below, above = (below - 1, above) if nearest == below else (below, above + 1)
            if self._is_live(encoding.owner):
                batch.append(encoding)
                room -= len(encoding.token_ids)
            else:
                self._forget(encoding)
        for encoding in batch:
            self._forget(encoding)
        del self._by_length[below + 1 : above]
        return batch

    def clear(self) -> list[Encoding[Owner]]:
        """Remove and return all that wait."""
        everything = [encoding for _, encoding in self._by_length]
        for encoding in everything:
            self._forget(encoding)
        self._by_length.clear()
        self._by_arrival.clear()
        return everything

    def _oldest(self) -> Encoding[Owner] | None:
        while self._by_arrival:
            oldest = self._by_arrival[0]
            if oldest.waiting and self._is_live(oldest.owner):
                return oldest
            self._by_arrival.popleft()
            if oldest.waiting:
                del self._by_length[bisect_left(self._by_length, (oldest.key,))]
                self._forget(oldest)
        return None

    def _nearest(self, edges: tuple[int, int], oldest: Encoding[Owner], room: int) -> int | None:
        """Of the places at the two edges of a window, the one nearest in length to `oldest` that fits, if any."""
        length = len(oldest.token_ids)
        return min(
            (place for place in edges if self._fits(place, oldest.kind, room)),
            key=lambda place: abs(self._by_length[place][0][1] - length),
            default=None,
        )

    def _fits(self, place: int, kind: str, room: int) -> bool:
        if not 0 <= place < len(self._by_length):
            return False
        (its_kind, length, _), encoding = self._by_length[place]
        return its_kind == kind and (length <= room or not self._is_live(encoding.owner))  # who left takes no room

    def _forget(self, encoding: Encoding[Owner]) -> None:
        encoding.waiting = False
        self.num_tokens -= len(encoding.token_ids)
