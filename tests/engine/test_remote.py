"""Level 7 over the wire: what only two processes can do to each other. Deaths, cancels, a reader that stalls."""

import random
import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from openbei import errors
from openbei.engine.board import ROW_NUMBERS, Board
from openbei.engine.engine import Engine
from openbei.engine.job import Answer, Job
from openbei.engine.link import (
    ANSWERS,
    REQUESTS,
    Ask,
    Link,
    answer_of,
    ask,
    done,
    error_of,
    failed,
    frame,
    job_of,
)
from openbei.engine.metrics import Metrics
from openbei.engine.request import Options, Request, Result
from tests.engine.conftest import Make, making
from tests.engine.fakes import WAIT_S, WIDTH, wait_until_ready, words
from tests.engine.remote import Wires, until
from tests.server.test_metrics import values

RAW = Options(normalize=False)


@pytest.fixture
def wires() -> Iterator[Wires]:
    wires = Wires()
    yield wires
    wires.close()


@pytest.fixture
def make(wires: Wires, tmp_path) -> Iterator[Make]:
    yield from making(tmp_path, wires)


def submit(engine: Engine, *inputs: str, deadline_s: float | None = None) -> Future[Result]:
    return engine.submit(Request(inputs=inputs, options=RAW, deadline_s=deadline_s))


def test_an_engine_that_dies_fails_all_that_wait_at_once_and_another_takes_over(wires: Wires, make: Make) -> None:
    house = make()
    running = submit(house.engine, words(1))
    run = house.next_run()
    waiting = submit(house.engine, words(2))
    house.wait_for_queue(1)
    wires.hostings[-1].stop()
    for future in (running, waiting):
        with pytest.raises(errors.Unhealthy, match="before it had answered"):
            future.result(WAIT_S)
    assert house.engine.status == "failed"
    with pytest.raises(errors.Unhealthy, match="failed"):
        submit(house.engine, words(1))
    run.finish()
    house.wait_for_admitted(0)
    wires.sides[0].run(wires.remotes[0].connect(wires.host(house.core).path))
    assert house.engine.status == "ready"
    after = submit(house.engine, words(1, 7))
    house.next_run().finish()
    assert after.result(WAIT_S).rows[0, 0] == 7


def test_what_was_still_tokenised_when_the_engine_died_fails_too(wires: Wires, make: Make) -> None:
    house = make()
    wires.hostings[-1].stop()
    wires.sides[0].run(until(lambda: wires.remotes[0]._link is None))  # the frontend has noticed, too
    assert wires.remotes[0].admission.status == "failed"
    job = Job([[1]], [None], "vectors")
    wires.remotes[0].submit(job)
    with pytest.raises(errors.Unhealthy, match="being restarted"):
        job.future.result(WAIT_S)
    assert house.idle()


def test_connecting_to_nobody_raises_and_a_later_engine_is_found(wires: Wires, make: Make) -> None:
    house = make()
    wires.hostings[-1].stop()
    with pytest.raises(OSError, match="No such file"):
        wires.sides[0].run(wires.remotes[0].connect(wires.folder / "nobody"))
    assert house.engine.status == "failed"
    wires.sides[0].run(wires.remotes[0].connect(wires.host(house.core).path))
    assert house.engine.status == "ready"


def test_a_new_engine_replaces_one_that_seems_alive(wires: Wires, make: Make) -> None:
    house = make()
    lost = submit(house.engine, words(1))
    house.next_run()
    wires.sides[0].run(wires.remotes[0].connect(wires.host(house.core).path))
    with pytest.raises(errors.Unhealthy):
        lost.result(WAIT_S)
    assert house.engine.status == "ready"


def test_a_frontend_that_dies_takes_its_jobs_along_and_no_other_s(wires: Wires, make: Make) -> None:
    house = make(max_concurrent_requests=8)
    other = wires.another(house)
    blocker = submit(other, words(1))
    run = house.next_run()
    gone = [submit(house.engine, words(2)), submit(house.engine, words(3), words(3))]
    stays = submit(other, words(4, 9))
    house.wait_for_queue(4)
    wires.remotes[0].close()
    house.wait_for_admitted(2)
    run.finish()
    last = house.next_run()
    assert last.lengths == [4]
    last.finish()
    assert blocker.result(WAIT_S).rows[0, 0] == 1
    assert stays.result(WAIT_S).rows[0, 0] == 9
    for future in gone:
        with pytest.raises(errors.Unhealthy):
            future.result(WAIT_S)


def test_permits_are_counted_over_all_frontends(wires: Wires, make: Make) -> None:
    house = make(max_concurrent_requests=2)
    other = wires.another(house)
    first = submit(house.engine, words(1), words(1))
    run = house.next_run()
    with pytest.raises(errors.Overloaded) as caught:
        submit(other, words(1)).result(WAIT_S)
    assert 1 <= caught.value.retry_after_s <= 30
    assert b'te_request_failure{err="overloaded"} 1' in other.metrics.render()
    run.finish()
    first.result(WAIT_S)
    again = submit(other, words(1, 5))
    house.next_run().finish()
    assert again.result(WAIT_S).rows[0, 0] == 5


def test_a_cancel_that_crosses_the_answer_disturbs_nobody(make: Make) -> None:
    house = make()
    for _ in range(20):
        future = submit(house.engine, words(1))
        run = house.next_run()
        run.finish()
        future.cancel()
        assert future.done()
    after = submit(house.engine, words(1, 6))
    house.next_run().finish()
    assert after.result(WAIT_S).rows[0, 0] == 6
    house.wait_for_admitted(0)


def test_a_frontend_that_reads_nothing_holds_up_no_lane(wires: Wires, make: Make) -> None:
    """Its answers are larger than any socket's buffer, and the lane goes on with the others'."""
    house = make(max_batch_tokens=100_000, max_length=100_000)
    stalled = socket.socket(socket.AF_UNIX)
    stalled.connect(str(wires.hostings[-1].path))
    tokens = [1] * 50_000
    for number in range(20):
        stalled.sendall(frame(ask(number, Job([tokens], [None], "states"))))
        house.next_run().finish()  # 50,000 rows of 4 float32: 800 kB
    after = submit(house.engine, words(1, 6))
    house.next_run().finish()
    assert after.result(WAIT_S).rows[0, 0] == 6
    stalled.close()


def test_an_answer_too_large_for_a_message_is_refused_by_name(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openbei.engine.link.MAX_ANSWER_BYTES", 4 * WIDTH)
    house = make()
    for count, fits in ((1, True), (2, False)):
        future = submit(house.engine, *[words(1)] * count)
        house.next_run().finish()
        if fits:
            assert len(future.result(WAIT_S).rows) == 1
        else:
            with pytest.raises(errors.InferenceFailed, match="32 bytes > 16"):
                future.result(WAIT_S)


# Waiting for room


def test_a_call_waits_for_the_room_of_its_own_process(make: Make) -> None:
    house = make(max_concurrent_requests=1)
    first = submit(house.engine, "w1")
    run = house.next_run()
    with ThreadPoolExecutor() as pool:
        second = pool.submit(house.engine.submit, Request(inputs=["w2"], options=RAW), wait=True)
        run.finish()
        assert first.result(WAIT_S).rows[0][0] == 1
        house.next_run().finish()
        assert second.result(WAIT_S).result(WAIT_S).rows[0][0] == 2


def waiting(engine: Engine, *inputs: str, bulk: bool = False) -> Future[Result]:
    """What this process has room for, and the engine process perhaps not yet."""
    return engine.submit(Request(inputs=inputs, options=RAW, bulk=bulk), wait=True)


def wait_for_lines(wires: Wires, *lengths: int) -> None:
    """Until as many jobs wait for the room of the engine process: interactive ones, bulk."""
    side, host = wires.hostings[-1].side, wires.hostings[-1].host
    side.run(until(lambda: tuple(map(len, host._lines)) == lengths))


@pytest.mark.parametrize("limits", [{"max_concurrent_requests": 1}, {"max_queue_tokens": 1}], ids=["permits", "tokens"])
def test_what_waits_for_the_room_of_the_engine_process_has_it_in_order(
    wires: Wires, make: Make, limits: dict[str, int]
) -> None:
    house = make(**{"lane_tokens": 1, "max_concurrent_requests": 9} | limits)
    others = [wires.another(house) for _ in range(4)]
    first = submit(house.engine, words(1))
    house.next_run().finish()
    assert first.result(WAIT_S).rows[0, 0] == 1
    blocker = submit(house.engine, words(1, 2))
    run, queued = house.next_run(), len(limits) == 1 and "max_queue_tokens" in limits
    futures = []
    if queued:
        futures.append(submit(house.engine, words(1, 30)))  # the one token that may wait
        house.wait_for_queue(1)
    for place, other in enumerate(others):
        futures.append(waiting(other, words(1, 31 + place)))
        wait_for_lines(wires, 1 + place, 0)
    with pytest.raises(errors.Overloaded):
        submit(wires.another(house), words(1)).result(WAIT_S)
    run.finish()
    assert blocker.result(WAIT_S).rows[0, 0] == 2
    for future in futures:
        house.next_run().finish()
        assert future.result(WAIT_S).rows[0, 0] == (30 if queued else 31) + futures.index(future)
    house.wait_for_admitted(0)


def test_bulk_that_waits_shuts_nobody_out(wires: Wires, make: Make) -> None:
    house = make(lane_tokens=1, max_concurrent_requests=4)
    other, third = wires.another(house), wires.another(house)
    blockers = submit(house.engine, *[words(1, 9)] * 3)
    run = house.next_run()
    bulk = waiting(other, words(1, 2), bulk=True)  # bulk leaves the fourth permit to others
    wait_for_lines(wires, 0, 1)
    after = waiting(third, words(1, 3))
    house.wait_for_queue(3)
    run.finish()
    for _ in range(4):
        house.next_run().finish()
    assert [future.result(WAIT_S).rows[0, 0] for future in (blockers, after, bulk)] == [9, 3, 2]


def test_a_cancel_leaves_the_line(wires: Wires, make: Make) -> None:
    house = make(max_concurrent_requests=1)
    other, third = wires.another(house), wires.another(house)
    first = submit(house.engine, words(1))
    run = house.next_run()
    gone = waiting(other, words(1, 2))
    wait_for_lines(wires, 1, 0)
    stays = waiting(third, words(1, 3))
    wait_for_lines(wires, 2, 0)
    gone.cancel()
    wait_for_lines(wires, 1, 0)
    run.finish()
    house.next_run().finish()
    assert stays.result(WAIT_S).rows[0, 0] == 3
    assert first.done()
    house.wait_for_admitted(0)
    assert house.idle()


def test_a_frontend_that_dies_takes_what_waits_along(wires: Wires, make: Make) -> None:
    house = make(max_concurrent_requests=1)
    other, third = wires.another(house), wires.another(house)
    first = submit(house.engine, words(1))
    run = house.next_run()
    lost = waiting(other, words(1, 2))
    wait_for_lines(wires, 1, 0)
    stays = waiting(third, words(1, 3))
    wait_for_lines(wires, 2, 0)
    wires.remotes[1].close()
    with pytest.raises(errors.Unhealthy):
        lost.result(WAIT_S)
    wait_for_lines(wires, 1, 0)
    run.finish()
    house.next_run().finish()
    assert (first.result(WAIT_S).rows[0, 0], stays.result(WAIT_S).rows[0, 0]) == (1, 3)


def test_what_waits_is_told_when_the_executor_or_the_engine_goes_down(wires: Wires, make: Make) -> None:
    house = make(max_concurrent_requests=1)
    other = wires.another(house)
    submit(house.engine, words(1))
    run = house.next_run()
    first = waiting(other, words(1, 2))
    wait_for_lines(wires, 1, 0)
    house.core.admission.set_down(True)
    with pytest.raises(errors.Unhealthy, match="failed"):
        first.result(WAIT_S)
    house.core.admission.set_down(False)
    wait_until_ready(wires.remotes[1].admission)
    second = waiting(other, words(1, 2))
    wait_for_lines(wires, 1, 0)
    wires.hostings[-1].stop()
    with pytest.raises(errors.Unhealthy, match="before it had answered"):
        second.result(WAIT_S)
    run.finish()


def test_room_that_only_cancelled_inputs_had_is_told(wires: Wires, make: Make) -> None:
    """They are dropped when a batch is formed, which is then of nothing; no answer is what tells of it."""
    house = make(lane_tokens=1, max_queue_tokens=1)
    house.core.submit(Job([[1]], [None], "vectors"))  # whose end no frontend hears of
    run = house.next_run()
    dead = submit(house.engine, words(1, 2))
    house.wait_for_queue(1)
    waits = waiting(house.engine, words(1, 3))
    wait_for_lines(wires, 1, 0)
    dead.cancel()
    house.wait_for_admitted(0)
    run.finish()
    house.next_run().finish()
    assert waits.result(WAIT_S).rows[0, 0] == 3


# Messages


@pytest.mark.parametrize("seed", range(5))
def test_messages_cut_anywhere_arrive_whole_and_in_order(seed: int) -> None:
    rng = random.Random(seed)
    lists = [
        [[rng.randrange(1 << 31) for _ in range(rng.randrange(40))] for _ in range(rng.randint(1, 5))]
        for _ in range(50)
    ]
    sent = [ask(number, Job(some, [None] * len(some), "vectors", 1.5)) for number, some in enumerate(lists)]
    stream = b"".join(frame(message) for message in sent)
    seen: list[Ask] = []
    link = Link(REQUESTS, seen.append, lambda _: None)
    while stream:
        size = rng.choice([1, 2, 3, 5, 100, 5000])
        link.data_received(stream[:size])
        stream = stream[size:]
    assert seen == sent
    assert [[list(one) for one in job_of(message).ids] for message in seen] == lists


@pytest.mark.parametrize("types", [[None, None], [None, [0, 1, 1]], [[1], [0, 0, 1]]])
def test_a_job_is_the_same_on_the_other_side(types: list[list[int] | None]) -> None:
    job = job_of(REQUESTS.decode(frame(ask(3, Job([[7], [8, 9, 10]], types, "labels", 12.25, bulk=True)))[4:]))
    assert ([list(ids) for ids in job.ids], job.output) == ([[7], [8, 9, 10]], "labels")
    assert (job.deadline_s, job.bulk) == (12.25, True)
    if types == [None, None]:
        assert list(job.types) == types
    else:
        assert [list(one) for one in job.types] == [
            one or [0] * len(ids) for one, ids in zip(types, job.ids, strict=True)
        ]


@pytest.mark.parametrize(
    "shapes", [[(4,), (4,)], [(1, 4), (3, 4)], [(1, 4), (1, 4)], [(0, 2), (5, 2)], [(0, 2), (0, 2)]]
)
def test_an_answer_is_the_same_on_the_other_side(shapes: list[tuple[int, ...]]) -> None:
    """Also a row that is an input's only token, which must not come back as the input's vector."""
    rng = np.random.default_rng(0)
    rows = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    answer = answer_of(ANSWERS.decode(frame(done(1, Answer(rows, [(0.1, 0.2), (0.3, 0.4)])))[4:]))
    assert [row.shape for row in answer.rows] == shapes
    assert all(np.array_equal(one, other) for one, other in zip(answer.rows, rows, strict=True))
    assert answer.spans == [(0.1, 0.2), (0.3, 0.4)]


CARRIED = [kind for kind in errors.ANSWERS if kind is not errors.MethodNotAllowed]  # which is HTTP's own


@pytest.mark.parametrize("kind", CARRIED)
def test_every_error_is_the_same_on_the_other_side(kind: type[errors.RequestError]) -> None:
    error = kind("words")
    if isinstance(error, errors.Overloaded | errors.Unhealthy):
        error.retry_after_s = 17
    back = error_of(ANSWERS.decode(frame(failed(1, error))[4:]))
    assert (type(back), str(back), vars(back)) == (kind, "words", vars(error))


def test_a_bug_s_error_becomes_an_internal_one() -> None:
    assert type(error_of(failed(1, ZeroDivisionError("x")))) is errors.InternalError


# The board


def test_metrics_of_all_processes_are_one_sum_and_outlive_them(tmp_path) -> None:
    Board.create(tmp_path / "board", 3)
    one, two, *_ = (Metrics(100, Board.open(tmp_path / "board", row)) for row in range(3))
    request = Request(inputs=["a", "b"])
    one.begun(request)
    two.begun(request)
    one.batch_formed(3, 40)
    two.batch_formed(3, 50)
    one.queue_size.set(4)
    two.queue_size.set(5)
    successor = Metrics(100, Board.open(tmp_path / "board", 0))
    successor.begun(request)
    for metrics in (one, two, successor):
        seen = values(metrics)
        assert (seen["te_request_count batch"], seen["te_embed_count"]) == (3, 6)
        assert (seen["te_batch_next_tokens_sum"], seen["te_batch_next_tokens_count"]) == (90, 2)
        assert seen["te_queue_size"] == 9
    assert successor.batch_tokens.sum == 40


def test_a_board_gives_out_each_column_once_and_not_more_than_it_has() -> None:
    cells = Board().cells()
    first, second = cells.next(2), cells.next(ROW_NUMBERS - 2)
    first.own[1] = 5
    second.own[0] = 7
    assert (first.totals(), second.totals()[:2]) == ([0, 5], [7, 0])
    with pytest.raises(ValueError, match="1024 columns"):
        cells.next(1)
