"""The waiting room against a model of it: whatever comes, leaves early and is taken, both give the same batches."""

from dataclasses import dataclass, field
from typing import Any

import hypothesis
from hypothesis import strategies as st

from openbei.engine.queue import MAX_BULK_WAIT_S, Encoding, Queue


@dataclass
class Plain:
    """One list of what waits, oldest first, looked through again for every batch. gone: owners that have left."""

    waiting: list[Encoding[int]] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)
    bulk_since_s: float = 0.0

    def live(self, bulk: bool) -> list[Encoding[int]]:
        return [one for one in self.waiting if one.bulk is bulk and one.owner not in self.gone]

    def put(self, encodings: list[Encoding[int]], now_s: float) -> None:
        if not any(one.bulk for one in self.waiting):
            self.bulk_since_s = now_s
        self.waiting += encodings

    def take(self, max_tokens: int, max_requests: int | None, now_s: float) -> list[Encoding[int]]:
        due = now_s - self.bulk_since_s >= MAX_BULK_WAIT_S
        for bulk in (due, not due):
            if live := self.live(bulk):
                batch = neighbours(live, max_tokens, max_requests)
                self.waiting = [one for one in self.waiting if one not in batch]
                self.bulk_since_s = now_s if bulk else self.bulk_since_s
                return batch
        return []


def neighbours(live: list[Encoding[int]], max_tokens: int, max_requests: int | None) -> list[Encoding[int]]:
    """The oldest, and from its place in the order of lengths outwards whichever side is nearer and still fits."""
    oldest = live[0]
    row = sorted((one for one in live if one.kind == oldest.kind), key=lambda one: len(one.token_ids))
    place = row.index(oldest)
    below, above, batch = row[:place][::-1], row[place + 1 :], [oldest]
    while max_requests is None or len(batch) < max_requests:
        room = max_tokens - sum(len(one.token_ids) for one in batch)
        sides = [side for side in (below, above) if side and len(side[0].token_ids) <= room]
        if not sides:
            break
        side = min(sides, key=lambda side: abs(len(side[0].token_ids) - len(oldest.token_ids)))
        batch.append(side.pop(0))
    return batch


LENGTHS = st.lists(st.tuples(st.integers(1, 12), st.sampled_from(["", "other"])), min_size=1, max_size=6)
PUT = st.tuples(st.just("put"), LENGTHS, st.just(False))
PUT_EITHER = st.tuples(st.just("put"), LENGTHS, st.booleans())
LEAVE = st.tuples(st.just("leave"), st.integers(1, 4))
TAKE = st.tuples(st.just("take"), st.integers(1, 40), st.none() | st.integers(1, 4))
WAIT = st.tuples(st.just("wait"), st.sampled_from([0.4, 0.6, 1.0]))
ALL = [("take", 12, None)] * 100
SETTINGS = hypothesis.settings(max_examples=300, deadline=None, database=None, derandomize=True)


@SETTINGS
@hypothesis.given(st.lists(st.one_of(PUT, PUT, LEAVE, TAKE), max_size=30))
def test_one_line_that_owners_leave(steps: list[Any]) -> None:
    compare([*steps, *ALL])


@SETTINGS
@hypothesis.given(st.lists(st.one_of(PUT_EITHER, PUT_EITHER, TAKE, WAIT), max_size=30))
def test_two_lines(steps: list[Any]) -> None:
    compare([*steps, *ALL])


def compare(steps: list[Any]) -> None:
    """Steps done to both: they give the same batches, and at the end neither holds anything."""
    model, now_s, num_owners = Plain(), 100.0, 0
    queue: Queue[int] = Queue(10_000, lambda owner: owner not in model.gone)
    for name, *values in steps:
        if name == "put":
            inputs, bulk = values
            encodings = [
                Encoding([0] * length, num_owners, index, kind=kind, bulk=bulk)
                for index, (length, kind) in enumerate(inputs)
            ]
            queue.put(encodings, now_s)
            model.put(encodings, now_s)
            num_owners += 1
        elif name == "leave":
            model.gone.add(num_owners - values[0])
        elif name == "wait":
            now_s += values[0]
        else:
            batch = queue.take(*values, now_s=now_s)
            assert [(one.owner, one.index) for one in batch] == [
                (one.owner, one.index) for one in model.take(*values, now_s)
            ]
    assert (len(queue), queue.num_tokens) == (0, 0)
