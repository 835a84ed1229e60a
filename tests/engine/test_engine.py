"""Level 7: the engine over a fake executor and a fake clock. Exact, and nothing sleeps."""

import math
import threading
import weakref
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest

from openbei.config import EngineConfig
from openbei.engine import core
from openbei.engine.executor import Device
from openbei.engine.request import Options, Request, Result
from openbei.engine.start import start_engine
from openbei.engine.tokenizer import Encoded, Tokenizer
from openbei.errors import (
    BatchTooLarge,
    ConfigError,
    DeadlineExceeded,
    EmptyInput,
    InferenceFailed,
    InvalidInput,
    ModelError,
    Overloaded,
    RequestError,
    TooLong,
    Unhealthy,
    UnknownPrompt,
)
from tests.engine.conftest import Make
from tests.engine.fakes import VOCAB_SIZE, WAIT_S, FakeExecutor, Harness, SlowToMend, checkpoint, words

RAW = Options(normalize=False)


def submit(house: Harness, *inputs: str | list[int], **options: object) -> Future[Result]:
    return house.engine.submit(Request(inputs=inputs, options=Options(**{"normalize": False, **options})))


def submit_and_wait(house: Harness, *inputs: str, deadline_s: float | None = None) -> Future[Result]:
    """Submit while the lanes are busy, and return when the inputs wait in the queue."""
    before = len(house.core._queue)
    future = house.engine.submit(Request(inputs=inputs, options=RAW, deadline_s=deadline_s))
    house.wait_for_queue(before + len(inputs))
    return future


def busy(house: Harness):
    """Keep the one lane busy; what is submitted now waits."""
    submit(house, words(1))
    return house.next_run()


def test_results_come_in_input_order_whatever_the_batches(make: Make) -> None:
    house = make(num_lanes=1, lane_tokens=6)
    future = submit(house, words(5, 1), words(1, 2), words(4, 3), words(2, 4))
    for lengths in ([5], [1, 2], [4]):
        run = house.next_run()
        assert run.lengths == lengths
        run.finish()
    rows = future.result(WAIT_S).rows
    assert rows[:, :2].tolist() == [[1, 5], [2, 1], [3, 4], [4, 2]]


def test_batches_hold_neighbours_in_length_across_requests(make: Make) -> None:
    house = make(lane_tokens=10)
    blocker = busy(house)
    for count in (9, 2, 8, 3, 2):
        submit_and_wait(house, words(count))
    blocker.finish()
    sizes = []
    for _ in range(3):
        run = house.next_run()
        sizes.append(run.lengths)
        run.finish()
    assert sizes == [[9], [2, 2, 3], [8]]


@pytest.mark.parametrize(("lane_tokens", "max_batch_tokens"), [(100, 4), (4, 100), (4, None)])
def test_a_batch_keeps_to_what_fills_a_lane_and_to_a_limit_below_that(
    make: Make, lane_tokens: int, max_batch_tokens: int | None
) -> None:
    house = make(lane_tokens=lane_tokens, max_batch_tokens=max_batch_tokens, max_length=4)
    blocker = busy(house)
    for _ in range(4):
        submit_and_wait(house, words(2))
    blocker.finish()
    assert house.next_run().lengths == [2, 2]


def test_a_text_alone_gets_the_whole_device_and_nothing_starts_beside_it(make: Make) -> None:
    house = make(num_lanes=2)
    submit(house, words(3))
    first = house.next_run()
    submit_and_wait(house, words(4))
    assert first.alone
    assert house.idle()
    first.finish()
    assert house.next_run().lengths == [4]


def test_one_text_longer_than_a_lane_gets_the_whole_device_too(make: Make) -> None:
    house = make(num_lanes=2, lane_tokens=10)
    submit(house, words(11))
    assert house.next_run().alone


def test_a_backlog_runs_on_all_lanes_at_once(make: Make) -> None:
    house = make(num_lanes=2, lane_tokens=10)
    future = submit(house, words(9), words(9), words(8))
    runs = [house.next_run(), house.next_run()]
    assert not any(run.alone for run in runs)
    for run in runs:
        run.finish()
    house.next_run().finish()
    assert future.result(WAIT_S).rows[:, 1].tolist() == [9, 9, 8]


def test_the_last_of_a_backlog_leaves_the_device_to_those_that_still_run(make: Make) -> None:
    house = make(num_lanes=2, lane_tokens=10)
    future = submit(house, words(9), words(8))
    runs = [house.next_run(), house.next_run()]
    assert not any(run.alone for run in runs)
    for run in runs:
        run.finish()
    future.result(WAIT_S)


def test_lanes_of_an_undivided_device_always_overlap_and_none_is_alone(make: Make) -> None:
    house = make(num_lanes=2, divided=False)
    submit(house, words(3))
    first = house.next_run()
    submit(house, words(4))
    second = house.next_run()
    assert not first.alone
    assert not second.alone
    first.finish()
    second.finish()


def test_normalised_cut_and_counted(make: Make) -> None:
    house = make()
    future = submit(house, words(3, 4), normalize=True)
    house.next_run().finish()
    result = future.result(WAIT_S)
    assert result.rows.tolist() == [pytest.approx([0.8, 0.6, 0, 0])]
    assert result.rows.dtype == np.float32
    assert (result.usage.num_tokens, result.usage.num_characters) == (3, len(words(3)))
    future = submit(house, words(3, 4), normalize=True, dimensions=1)
    house.next_run().finish()
    assert future.result(WAIT_S).rows.tolist() == [[1.0]]


def test_timings_say_where_the_time_went(make: Make) -> None:
    house = make()
    blocker = busy(house)
    future = submit_and_wait(house, words(2))
    house.clock.now_s += 3
    blocker.finish()
    run = house.next_run()
    house.clock.now_s += 2
    run.finish()
    timings = future.result(WAIT_S).timings
    assert (timings.total_s, timings.tokenization_s, timings.queue_s, timings.inference_s) == (5, 0, 3, 2)


def test_timings_of_several_inputs_are_means(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def encode(self: Tokenizer, *given: object) -> list[Encoded]:
        house.clock.now_s += 4
        return real(self, *given)

    house, real = make(), Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", encode)
    future = submit(house, words(6), words(6))  # a batch each
    for seconds in (2, 6):
        run = house.next_run()
        house.clock.now_s += seconds
        run.finish()
    timings = future.result(WAIT_S).timings
    assert (timings.total_s, timings.tokenization_s, timings.queue_s, timings.inference_s) == (12, 2, 1, 4)


@pytest.mark.parametrize(
    ("inputs", "options", "error"),
    [
        ((), {}, EmptyInput),
        (("w1", ""), {}, EmptyInput),
        (([],), {}, EmptyInput),
        (("w1",) * 4, {}, BatchTooLarge),
        (("w1",), {"dimensions": 0}, InvalidInput),
        (("w1",), {"dimensions": 5}, InvalidInput),
        (("w1",), {"prompt_name": "nope"}, UnknownPrompt),
        (([VOCAB_SIZE],), {}, InvalidInput),
    ],
)
def test_bad_input_is_refused_at_once(make: Make, inputs: tuple, options: dict, error: type[RequestError]) -> None:
    house = make(max_client_batch_size=3)
    with pytest.raises(error):
        submit(house, *inputs, **options)
    assert house.core.admission.num_taken == 0


def test_too_long_is_cut_or_refused_as_asked(make: Make) -> None:
    house = make(max_length=4)
    text = "w1 w2 w3 w4 w5 w6"
    with pytest.raises(TooLong, match="6 tokens > maximum of 4"):
        submit(house, text, truncate=False).result(WAIT_S)
    for direction, first in (("right", 1), ("left", 3)):
        future = submit(house, text, truncation_direction=direction)
        house.next_run().finish()
        assert future.result(WAIT_S).rows[0, :2].tolist() == [first, 4]
    with pytest.raises(TooLong, match="characters > maximum of 1000"):
        submit(house, "w1" * 600, truncate=False).result(WAIT_S)


def test_prompts_replace_the_default_and_ids_take_none_unless_asked(make: Make) -> None:
    house = make(prompts={"query": "w7 w7 "}, default_prompt="w9 ")
    for inputs, options, want in (
        ("w1", {}, [9, 2]),
        ("w1", {"prompt_name": "query"}, [7, 3]),
        ([5, 6], {"prompt_name": "query"}, [7, 4]),
    ):
        future = submit(house, inputs, **options)
        house.next_run().finish()
        assert future.result(WAIT_S).rows[0, :2].tolist() == want
    plain = make()
    future = submit(plain, [5, 6])
    plain.next_run().finish()
    assert future.result(WAIT_S).rows[0, :2].tolist() == [5, 2]


def test_a_full_house_is_overloaded_and_frees_its_places(make: Make) -> None:
    house = make(max_concurrent_requests=2)
    blocker = busy(house)
    waiting = submit_and_wait(house, words(1))
    with pytest.raises(Overloaded) as caught:
        submit(house, words(1))
    assert 1 <= caught.value.retry_after_s <= 30
    waiting.cancel()
    house.wait_for_admitted(1)
    again = submit(house, words(1, 3))
    blocker.finish()
    house.next_run().finish()
    assert again.result(WAIT_S).rows[0, 0] == 3


def test_a_request_larger_than_the_house_passes_when_the_house_is_empty(make: Make) -> None:
    house = make(max_concurrent_requests=2)
    future = submit(house, *[words(1)] * 5)
    house.next_run().finish()
    assert len(future.result(WAIT_S).rows) == 5


def test_queued_tokens_are_bounded(make: Make) -> None:
    house = make(max_queue_tokens=5)
    blocker = busy(house)
    submit_and_wait(house, words(4))
    with pytest.raises(Overloaded):
        submit(house, words(2)).result(WAIT_S)
    blocker.finish()


def test_waiting_inputs_and_their_tokens_are_told(make: Make) -> None:
    house = make()
    blocker = busy(house)
    waiting = submit_and_wait(house, words(2), words(3))
    text = house.engine.metrics.render()
    assert b"te_queue_size 2\n" in text
    assert b"openbei_queue_tokens 5\n" in text
    blocker.finish()
    house.next_run().finish()
    waiting.result(WAIT_S)
    assert b"openbei_queue_tokens 0\n" in house.engine.metrics.render()


def test_cancelled_inputs_never_run(make: Make) -> None:
    house = make()
    blocker = busy(house)
    gone = submit_and_wait(house, words(2), words(3))
    stays = submit_and_wait(house, words(4))
    assert gone.cancel()
    house.wait_for_admitted(2)
    blocker.finish()
    run = house.next_run()
    assert run.lengths == [4]
    run.finish()
    assert len(stays.result(WAIT_S).rows) == 1
    with pytest.raises(CancelledError):
        gone.result(WAIT_S)
    assert b'te_request_failure{err="dropped"} 1' in house.engine.metrics.render()


def test_what_was_cancelled_is_not_even_tokenised(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long texts wait for the one tokenizer thread; clients that give up must not leave it work."""
    house, gate, seen = make(tokenization_workers=1), threading.Semaphore(0), []

    def encode(self: Tokenizer, inputs: list[str], *options: object) -> list[Encoded]:
        seen.append(len(inputs[0]))
        assert gate.acquire(timeout=WAIT_S)
        return real(self, inputs, *options)

    real = Tokenizer.encode
    monkeypatch.setattr(Tokenizer, "encode", encode)
    first, gone, last = (submit(house, "x" * (3000 + i)) for i in range(3))
    assert gone.cancel()
    for one in (first, last):
        gate.release()  # one after the other, or both may be one run
        house.next_run().finish()
        one.result(WAIT_S)
    assert seen == [3000, 3002]


def test_cancelling_while_it_runs_disturbs_nobody(make: Make) -> None:
    house = make()
    blocker = busy(house)
    gone, stays = submit_and_wait(house, words(2)), submit_and_wait(house, words(2))
    blocker.finish()
    run = house.next_run()
    gone.cancel()
    run.finish()
    assert len(stays.result(WAIT_S).rows) == 1
    assert house.engine.status == "ready"


def test_a_passed_deadline_is_never_computed(make: Make) -> None:
    house = make()
    blocker = busy(house)
    late = submit_and_wait(house, words(2), deadline_s=house.clock.now_s + 1)
    in_time = submit_and_wait(house, words(3))
    house.clock.now_s += 2
    blocker.finish()
    run = house.next_run()
    assert run.lengths == [3]
    run.finish()
    in_time.result(WAIT_S)
    with pytest.raises(DeadlineExceeded):
        late.result(WAIT_S)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_and_infinity_fail_their_request_alone(make: Make, value: float) -> None:
    house = make()
    blocker = busy(house)
    bad, good = submit_and_wait(house, words(1, 1)), submit_and_wait(house, words(1, 2))
    blocker.finish()
    run = house.next_run()
    run.answer = np.array([[value, 0, 0, 0], [1, 0, 0, 0]], np.float32)
    run.finish()
    with pytest.raises(InferenceFailed, match="NaN or infinity"):
        bad.result(WAIT_S)
    assert good.result(WAIT_S).rows[0, 0] == 1
    assert house.engine.status == "ready"


def test_a_crash_fails_all_who_wait_and_another_executor_takes_over(make: Make) -> None:
    maker = SlowToMend()
    house = make(make=maker)
    running = submit(house, words(1))
    run = house.next_run()
    waiting = submit_and_wait(house, words(2))
    run.fail(MemoryError("device lost"))
    for future in (running, waiting):
        with pytest.raises(InferenceFailed, match="device lost"):
            future.result(WAIT_S)
    assert house.engine.status == "failed"
    with pytest.raises(Unhealthy):
        submit(house, words(1))
    maker.may_mend.set()
    house.wait_until_ready()
    after = submit(house, words(1, 5))
    house.next_run().finish()
    assert after.result(WAIT_S).rows[0, 0] == 5
    assert maker.num_made == 2


def test_two_lanes_that_fail_together_get_one_executor(make: Make) -> None:
    maker = SlowToMend()
    house = make(make=maker, num_lanes=2)
    future = submit(house, words(9), words(9))
    for run in [house.next_run(), house.next_run()]:
        run.fail(MemoryError("device lost"))
    with pytest.raises(InferenceFailed, match="device lost"):
        future.result(WAIT_S)
    with house.core._changed:  # one lane mends, the other is free again
        assert house.core._changed.wait_for(lambda: len(house.core._running) == 1, WAIT_S)
    maker.may_mend.set()
    house.wait_until_ready()
    assert maker.num_made == 2


def test_restart_is_tried_again_when_it_fails(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(core, "RESTART_PAUSES_S", (0.0, 0.0))
    attempts = []

    def second_attempt_fails(plain) -> FakeExecutor:
        attempts.append(1)
        if len(attempts) == 2:
            raise RuntimeError("no device yet")
        return plain()

    house = make(make=second_attempt_fails)
    running = submit(house, words(1))
    house.next_run().fail(RuntimeError("boom"))
    with pytest.raises(InferenceFailed):
        running.result(WAIT_S)
    house.wait_until_ready()
    assert len(attempts) == 3


def test_the_old_executor_is_gone_before_another_is_made(make: Make) -> None:
    """Both at once may not fit in a device's memory."""
    made: list[weakref.ref[FakeExecutor]] = []
    alive = []

    def remember(plain) -> FakeExecutor:
        alive.append(sum(one() is not None for one in made))
        executor = plain()
        made.append(weakref.ref(executor))
        return executor

    house = make(make=remember)
    running = submit(house, words(1))
    house.next_run().fail(RuntimeError("boom"))
    with pytest.raises(InferenceFailed):
        running.result(WAIT_S)
    house.wait_until_ready()
    assert alive == [0, 0]


def test_where_no_executor_starts_any_more_it_is_told_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an illegal access on a GPU, where nothing but another process helps."""
    monkeypatch.setattr(core, "RESTART_PAUSES_S", (0.0, 0.0, 0.0))
    attempts, told = [], []

    def broken_for_long(plain) -> FakeExecutor:
        attempts.append(len(told))
        if 1 < len(attempts) < 7:
            raise RuntimeError("the device is gone")
        return plain()

    house = make(make=broken_for_long)
    house.core.on_hang = lambda: told.append(1)
    running = submit(house, words(1))
    house.next_run().fail(RuntimeError("boom"))
    with pytest.raises(InferenceFailed):
        running.result(WAIT_S)
    house.wait_until_ready()
    assert attempts == [0, 0, 0, 0, 1, 1, 1]


def test_a_batch_that_hangs_fails_all_who_wait_until_the_device_answers_again(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    house = make(patience_s=1000.0)
    hung = []
    house.core.on_hang = lambda: hung.append(1)
    running = submit(house, words(1))
    run = house.next_run()
    waiting = submit_and_wait(house, words(2))
    house.clock.now_s += 1000
    house.core.check_lanes()
    assert house.engine.status == "ready"
    house.clock.now_s += 1
    for _ in range(2):  # told once
        house.core.check_lanes()
    for future in (running, waiting):
        with pytest.raises(InferenceFailed, match="no answer from the device for 1000 s"):
            future.result(WAIT_S)
    assert house.engine.status == "failed"
    assert hung == [1]
    with pytest.raises(Unhealthy):
        submit(house, words(1))
    run.finish()
    house.wait_until_ready()
    after = submit(house, words(1, 5))
    house.next_run().finish()
    assert after.result(WAIT_S).rows[0, 0] == 5
    assert "the device hangs" in caplog.text


def test_an_executor_that_takes_long_to_mend_is_not_taken_for_one_that_hangs(make: Make) -> None:
    maker = SlowToMend()
    house = make(make=maker, patience_s=1000.0)
    hung = []
    house.core.on_hang = lambda: hung.append(1)
    running = submit(house, words(1))
    house.next_run().fail(RuntimeError("boom"))
    with pytest.raises(InferenceFailed, match="boom"):
        running.result(WAIT_S)
    house.clock.now_s += 5000
    house.core.check_lanes()
    assert hung == []
    maker.may_mend.set()
    house.wait_until_ready()


def test_draining_finishes_what_was_admitted_and_refuses_the_rest(make: Make) -> None:
    house = make()
    running = submit(house, words(1, 1))
    run = house.next_run()
    waiting = submit_and_wait(house, words(1, 2))
    house.engine.drain()
    with pytest.raises(Unhealthy, match="draining"):
        submit(house, words(1))
    closing = threading.Thread(target=house.engine.close)
    closing.start()
    run.finish()
    house.next_run().finish()
    closing.join(WAIT_S)
    assert not closing.is_alive()
    assert [running.result(0).rows[0, 0], waiting.result(0).rows[0, 0]] == [1, 2]


def test_closing_while_the_executor_is_down_does_not_hang(make: Make) -> None:
    made = []

    def never_again(plain) -> FakeExecutor:
        if made:
            raise RuntimeError("gone for good")
        made.append(plain())
        return made[-1]

    house = make(make=never_again)
    running = submit(house, words(1))
    house.next_run().fail(RuntimeError("boom"))
    with pytest.raises(InferenceFailed):
        running.result(WAIT_S)
    closing = threading.Thread(target=house.engine.close)
    closing.start()
    closing.join(WAIT_S)
    assert not closing.is_alive()


def test_embed_takes_any_number_of_texts_in_order(make_here: Make) -> None:
    house = make_here(lane_tokens=50, max_concurrent_requests=64, max_client_batch_size=10)

    def finish_all() -> None:
        while (run := house.started.get(timeout=WAIT_S)) is not None:
            run.finish()

    worker = threading.Thread(target=finish_all)
    worker.start()
    texts = [words(1 + i % 7, i % VOCAB_SIZE) for i in range(500)]
    rows = house.engine.embed(texts, normalize=False)
    streamed = np.stack(list(house.engine.embed_stream(iter(texts), RAW, window=30)))
    house.started.put(None)
    worker.join(WAIT_S)
    want = [[i % VOCAB_SIZE, 1 + i % 7] for i in range(500)]
    assert rows[:, :2].tolist() == want
    assert streamed[:, :2].tolist() == want
    assert house.engine.embed([]).shape == (0, 4)
    assert house.engine.embed([], dimensions=2).shape == (0, 2)


@pytest.mark.parametrize(
    ("call", "args"),
    [("embed", ["fox"]), ("embed_tokens", ["fox"]), ("classify", ["fox"]), ("rerank", ["query", "fox"])],
)
def test_one_text_is_not_taken_for_a_list_of_its_letters(make_here: Make, call: str, args: list[str]) -> None:
    house = make_here()
    with pytest.raises(InvalidInput, match="put it in a list"):
        getattr(house.engine, call)(*args)
    assert house.idle()


@pytest.mark.parametrize(
    ("call", "args", "found"),
    [
        ("embed", [["fox", math.nan]], "input 1 is of type float; taken are texts"),
        ("embed", [[None]], "input 0 is of type NoneType"),
        ("embed", [[[3, -1]]], "input 0 is of type list"),
        ("classify", [[["fox", "hen"]]], "input 0 is of type list; .* Pairs of texts"),
        ("rerank", ["fox", ["hen", math.nan]], "input 1 is of type Pair"),
    ],
)
def test_what_is_no_input_is_refused_by_its_place(make_here: Make, call: str, args: list[Any], found: str) -> None:
    house = make_here()
    with pytest.raises(InvalidInput, match=found):
        getattr(house.engine, call)(*args)
    assert house.idle()


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({}, 100),
        ({"max_input_length": 7}, 7),
        ({"max_input_length": 1000}, 100),
        ({"max_input_length": 7, "max_batch_tokens": 5}, 5),
        ({"max_input_length": 7, "max_batch_tokens": 9, "auto_truncate": False}, 7),
    ],
)
def test_the_longest_input(make: Make, config: dict, limit: int) -> None:
    assert make(**config).engine.info.max_input_length == limit


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"default_prompt_name": "nope"}, "nope"),
        ({"max_batch_tokens": 10, "auto_truncate": False}, "max_batch_tokens 10 < max_input_length 100"),
        ({"default_prompt": "a", "default_prompt_name": "b"}, "exclude each other"),
        ({"dtype": "int8"}, "dtype must be one of auto, float32, .*, got 'int8'"),
        ({"pooling": "max"}, "pooling must be one of cls, .*, got 'max'"),
    ],
)
def test_a_wrong_config_is_refused_at_start(make: Make, config: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make(**config)


def test_there_is_a_tokenizer_thread_for_each_core_it_may_use(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openbei.engine.settle.count_cores", lambda: 3)
    assert make().engine.info.tokenization_workers == 3


def test_a_tokenizer_larger_than_the_model_is_refused_at_start(tmp_path: Path) -> None:
    source = checkpoint(tmp_path)
    smaller = replace(source, model=replace(source.model, spec=replace(source.model.spec, vocab_size=VOCAB_SIZE - 1)))
    before = threading.active_count()
    with pytest.raises(ModelError, match="50 tokens, the model embeds 49"):
        start_engine(smaller, EngineConfig(), lambda: FakeExecutor(Device("fake", "float32", 1, 10), Queue(), None))
    assert threading.active_count() == before
