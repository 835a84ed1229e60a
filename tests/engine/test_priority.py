"""Level 7: who goes first. Interactive before bulk, bulk late but never lost, and nobody who has left."""

from concurrent.futures import CancelledError, Future

import pytest

from openbei.engine.queue import MAX_BULK_WAIT_S, Encoding, Queue, share
from openbei.engine.request import Options, Request, Result
from openbei.errors import DeadlineExceeded, Overloaded
from tests.engine.conftest import Make
from tests.engine.fakes import WAIT_S, Harness, words

RAW = Options(normalize=False)


def put(queue: Queue[str], *owners: str, now_s: float = 0.0) -> None:
    """Encodings of 5 tokens; owners that begin with b are bulk."""
    queue.put([Encoding([0] * 5, owner, 0, bulk=owner.startswith("b")) for owner in owners], now_s)


def taken(queue: Queue[str], max_batch_tokens: int, now_s: float = 0.0) -> list[str]:
    return [encoding.owner for encoding in queue.take(max_batch_tokens, now_s=now_s)]


def queue_of(*owners: str, dead: frozenset[str] = frozenset()) -> Queue[str]:
    queue: Queue[str] = Queue(10_000, lambda owner: owner not in dead)
    put(queue, *owners)
    return queue


def test_interactive_leaves_before_bulk_that_came_first() -> None:
    queue = queue_of("b1", "b2", "i1", "b3", "i2", "i3")
    assert [taken(queue, 10) for _ in range(5)] == [["i1", "i2"], ["i3"], ["b1", "b2"], ["b3"], []]
    assert (len(queue), queue.num_tokens) == (0, 0)


def test_an_interactive_batch_is_not_filled_up_with_bulk() -> None:
    assert taken(queue_of("b1", "i1"), 100) == ["i1"]


def test_bulk_has_a_turn_when_it_has_waited_and_then_waits_again() -> None:
    queue = queue_of("b1", "b2", "b3")
    turns = []
    for step in range(10):
        now_s = step * MAX_BULK_WAIT_S / 4
        put(queue, f"i{step}", now_s=now_s)
        turns.append(taken(queue, 5, now_s))
    assert [(step, batch) for step, batch in enumerate(turns) if batch[0].startswith("b")] == [(4, ["b1"]), (8, ["b2"])]


def test_bulk_waits_from_when_it_came_not_from_when_the_server_began() -> None:
    queue = queue_of()
    put(queue, "b1", "i1", "i2", now_s=500.0)
    assert taken(queue, 5, 500.0 + MAX_BULK_WAIT_S * 0.99) == ["i1"]
    assert taken(queue, 5, 500.0 + MAX_BULK_WAIT_S) == ["b1"]


def test_more_bulk_does_not_put_off_the_bulk_that_waits() -> None:
    queue = queue_of("b1")
    put(queue, "b2", "i1", now_s=MAX_BULK_WAIT_S / 2)
    assert taken(queue, 5, MAX_BULK_WAIT_S) == ["b1"]


def test_a_turn_of_bulk_that_has_left_goes_to_the_interactive() -> None:
    queue = queue_of("b1", "b2", "i1", dead=frozenset({"b1", "b2"}))
    assert taken(queue, 100, MAX_BULK_WAIT_S) == ["i1"]
    assert (len(queue), queue.num_tokens) == (0, 0)


def test_a_batch_of_bulk_is_full_and_of_neighbours_too() -> None:
    queue: Queue[int] = Queue(1000, lambda _: True)
    lengths = [9, 2, 8, 3]
    queue.put([Encoding([0] * length, owner, 0, bulk=True) for owner, length in enumerate(lengths)])
    assert [lengths[one.owner] for one in queue.take(18)] == [9, 8]


def test_bulk_leaves_a_quarter_of_the_room() -> None:
    assert [share(limit, bulk=True) for limit in (1, 3, 4, 8, 4096)] == [1, 3, 3, 6, 3072]
    queue: Queue[str] = Queue(100, lambda _: True)
    put(queue, *["b1"] * 14)
    assert (queue.has_room(5, bulk=True), queue.has_room(6, bulk=True)) == (True, False)
    assert (queue.has_room(30), queue.has_room(31)) == (True, False)


# The engine, in one process and in two


def submit(house: Harness, *inputs: str, bulk: bool = False, deadline_s: float | None = None) -> Future[Result]:
    before = len(house.core._queue)
    future = house.engine.submit(Request(inputs=inputs, options=RAW, bulk=bulk, deadline_s=deadline_s))
    house.wait_for_queue(before + len(inputs))
    return future


def busy(house: Harness):
    house.engine.submit(Request(inputs=[words(1)]))
    return house.next_run()


def rest(house: Harness, count: int) -> list[list[int]]:
    """Let `count` more batches run, one after the other -> the lengths in each."""
    batches = []
    for _ in range(count):
        run = house.next_run()
        batches.append(run.lengths)
        run.finish()
    return batches


def test_the_engine_runs_interactive_first(make: Make) -> None:
    house = make(lane_tokens=10)
    blocker = busy(house)
    late = submit(house, words(2), words(2), words(7), bulk=True)
    soon = submit(house, words(3), words(4))
    blocker.finish()
    assert rest(house, 3) == [[3, 4], [2, 2], [7]]
    assert soon.result(WAIT_S).rows[:, 1].tolist() == [3, 4]
    assert late.result(WAIT_S).rows[:, 1].tolist() == [2, 2, 7]


def test_the_engine_gives_bulk_its_turn_by_its_clock(make: Make) -> None:
    house = make(lane_tokens=5)
    blocker = busy(house)
    submit(house, words(2), words(4), bulk=True)
    submit(house, words(3), words(5), words(1))
    house.clock.now_s += MAX_BULK_WAIT_S
    blocker.finish()
    assert rest(house, 4) == [[2], [1, 3], [5], [4]]


def test_bulk_leaves_a_quarter_of_the_permits(make: Make) -> None:
    house = make(max_concurrent_requests=4)
    blocker = busy(house)
    submit(house, words(1), words(1), bulk=True)
    with pytest.raises(Overloaded):
        house.engine.submit(Request(inputs=[words(1)], bulk=True)).result(WAIT_S)
    submit(house, words(2))
    blocker.finish()


def test_a_bulk_request_larger_than_its_share_passes_when_the_house_is_empty(make: Make) -> None:
    house = make(max_concurrent_requests=4)
    future = house.engine.submit(Request(inputs=[words(1)] * 5, options=RAW, bulk=True))
    house.next_run().finish()
    assert len(future.result(WAIT_S).rows) == 5


def test_a_client_that_leaves_between_two_batches_of_its_request_is_spared_the_second(make: Make) -> None:
    house = make(lane_tokens=5)
    blocker = busy(house)
    gone = submit(house, words(5), words(4))
    stays = submit(house, words(3))
    blocker.finish()
    first = house.next_run()
    assert first.lengths == [5]
    assert gone.cancel()
    house.wait_for_admitted(1)
    first.finish()
    assert rest(house, 1) == [[3]]
    assert len(stays.result(WAIT_S).rows) == 1
    with pytest.raises(CancelledError):
        gone.result(WAIT_S)


def test_a_deadline_that_passes_between_two_batches_of_a_request_spares_the_second(make: Make) -> None:
    house = make(lane_tokens=5)
    blocker = busy(house)
    late = submit(house, words(5), words(4), deadline_s=house.clock.now_s + 1)
    stays = submit(house, words(3))
    blocker.finish()
    first = house.next_run()
    house.clock.now_s += 2
    first.finish()
    assert rest(house, 1) == [[3]]
    assert len(stays.result(WAIT_S).rows) == 1
    with pytest.raises(DeadlineExceeded, match="before inference began"):
        late.result(WAIT_S)
