"""The waiting room alone: order, neighbours in length, budget, fairness, what is dropped."""

import random

import pytest

from openbei.engine.queue import Encoding, Queue


def filled(lengths: list[int], dead: set[int] = frozenset(), max_tokens: int = 10_000) -> Queue[int]:
    """A queue of encodings whose owner is their place in `lengths`; owners in `dead` left."""
    queue: Queue[int] = Queue(max_tokens, lambda owner: owner not in dead)
    queue.put([Encoding([0] * length, owner, 0) for owner, length in enumerate(lengths)])
    return queue


def taken(queue: Queue[int], max_batch_tokens: int, max_batch_requests: int | None = None) -> list[int]:
    return [len(encoding.token_ids) for encoding in queue.take(max_batch_tokens, max_batch_requests)]


def test_a_batch_is_the_oldest_with_its_nearest_neighbours_in_length() -> None:
    queue = filled([50, 3, 52, 49, 90, 4])
    assert taken(queue, 151) == [50, 49, 52]
    assert taken(queue, 151) == [3, 4, 90]
    assert taken(queue, 151) == []


def test_the_oldest_goes_even_when_it_alone_is_longer_than_the_budget() -> None:
    queue = filled([30, 1, 1])
    assert taken(queue, 10) == [30]
    assert taken(queue, 10) == [1, 1]


def test_max_batch_requests_bounds_a_batch() -> None:
    assert taken(filled([5] * 9), 100, max_batch_requests=4) == [5] * 4


def test_nobody_starves_under_a_stream_of_better_fits() -> None:
    """A long text waits behind an endless supply of short ones and leaves within its turn."""
    queue = filled([90] + [5] * 20)
    assert 90 in taken(queue, 95)
    queue = filled([5, 90, 5])
    for turn in range(3):
        queue.put([Encoding([0] * 5, 100 + turn, 0)])
        if 90 in taken(queue, 10):
            break
    else:
        pytest.fail("the long text starved")


def test_owners_that_left_are_dropped_and_take_no_room() -> None:
    queue = filled([5, 5, 5, 5], dead={0, 2})
    assert taken(queue, 10) == [5, 5]
    assert len(queue) == 0
    assert queue.num_tokens == 0


def test_tokens_are_bounded_but_an_empty_queue_takes_any_one_request() -> None:
    queue = filled([], max_tokens=10)
    assert queue.has_room(999)
    queue.put([Encoding([0] * 8, 0, 0)])
    assert queue.has_room(2)
    assert not queue.has_room(3)


def test_clear_returns_all_that_wait() -> None:
    queue = filled([3, 1, 2])
    assert sorted(len(encoding.token_ids) for encoding in queue.clear()) == [1, 2, 3]
    assert (len(queue), queue.num_tokens, taken(queue, 10)) == (0, 0, [])


@pytest.mark.parametrize("seed", range(20))
def test_everything_leaves_once_in_batches_within_budget(seed: int) -> None:
    """Random lengths, budgets and departures: nothing lost, nothing twice, the oldest always first."""
    rng = random.Random(seed)
    dead: set[int] = set()
    queue: Queue[int] = Queue(10**9, lambda owner: owner not in dead)
    waiting: list[int] = []
    seen: list[int] = []
    for owner in range(300):
        queue.put([Encoding([0] * rng.randint(1, 60), owner, 0)])
        waiting.append(owner)
        if rng.random() < 0.1:
            dead.add(rng.choice(waiting))
        if rng.random() < 0.2 or owner == 299:
            while batch := queue.take(rng.randint(1, 200)):
                waiting = [owner for owner in waiting if owner not in dead]
                assert batch[0].owner == waiting[0]
                seen += [encoding.owner for encoding in batch]
                waiting = [owner for owner in waiting if owner not in {encoding.owner for encoding in batch}]
    assert len(seen) == len(set(seen))
    assert set(seen) | dead == set(range(300))
    assert queue.num_tokens == len(queue) == 0


def test_kinds_never_share_a_batch_and_the_oldest_decides() -> None:
    queue: Queue[int] = Queue(1000, lambda _: True)
    for owner, (length, kind) in enumerate([(5, "b"), (5, "a"), (6, "b"), (5, "a"), (4, "b"), (900, "a")]):
        queue.put([Encoding([0] * length, owner, 0, kind=kind)])
    batches = []
    while batch := queue.take(100):
        batches.append([encoding.owner for encoding in batch])
    assert batches == [[0, 4, 2], [1, 3], [5]]
    assert (len(queue), queue.num_tokens) == (0, 0)


def test_who_left_does_not_stand_in_front_of_shorter_ones() -> None:
    """Input 1 would be the next below, is too long for what is left, and nobody waits for it any more."""
    queue = filled([7, 3, 1, 1, 3], dead={1})
    assert taken(queue, 12) == [7, 3, 1, 1]
