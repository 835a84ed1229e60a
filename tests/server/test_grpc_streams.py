"""gRPC in time: the order of streams, waiting for room, messages that fail, clients that leave, and the end."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

pytest.importorskip("grpc_tools", reason="grpcio-tools, of the test extra, is not installed")

import grpc
import grpc.aio

from openbei import errors
from openbei.config import ServerConfig
from openbei.engine.request import Request, Result
from openbei.server.grpc_calls import WAITING_THREADS, Answering, Call, Shared, in_order
from openbei.weights.checkpoint import Labels
from openbei.wire import tei_pb2 as pb
from tests.engine.fakes import Harness, harness, words
from tests.server.fakes import FakeEngine, vector
from tests.server.rpc import WAIT_S, failed, gathered, in_loop, served, until


def texts(count: int) -> list[pb.EmbedRequest]:
    return [pb.EmbedRequest(inputs=f"t{i}", normalize=False) for i in range(count)]


def answers(count: int) -> list[list[float]]:
    return [list(map(float, vector(f"t{i}"))) for i in range(count)]


def resolve(engine: FakeEngine, place: int) -> None:
    engine.resolve(engine.held[place], engine.requests[place])


# Order and limits


@in_loop
async def test_answers_keep_the_order_of_messages() -> None:
    engine = FakeEngine()
    engine.hold = True
    async with served(engine) as client:
        reading = asyncio.ensure_future(gathered(client.Embed.EmbedStream(iter(texts(5)))))
        await until(lambda: len(engine.held) == 5)
        for place in (4, 2, 0, 3, 1):
            resolve(engine, place)
        assert [list(one.embeddings) for one in await reading] == answers(5)


@in_loop
async def test_an_answer_does_not_wait_for_later_ones() -> None:
    engine = FakeEngine()
    engine.hold = True
    async with served(engine) as client:
        stream = client.Embed.EmbedStream()
        for place, message in enumerate(texts(3)):
            await stream.write(message)
            await until(lambda place=place: len(engine.held) == place + 1)
            resolve(engine, place)
            assert list((await stream.read()).embeddings) == answers(3)[place]
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF


class Counting(FakeEngine):
    """Notes how many requests waited at once, and how many came with wait."""

    def __init__(self) -> None:
        super().__init__()
        self.hold, self.most, self.num_waiting = True, 0, 0

    def submit(self, request: Request, wait: bool = False) -> Future[Result]:
        future = super().submit(request, wait)
        self.num_waiting += wait
        self.most = max(self.most, sum(not one.done() for one in self.held))
        return future


@pytest.mark.parametrize("limit", [1, 3])
@in_loop
async def test_so_many_messages_of_a_stream_are_in_work(limit: int) -> None:
    engine = Counting()
    async with served(engine, grpc_max_parallel_stream_requests=limit) as client:
        reading = asyncio.ensure_future(gathered(client.Embed.EmbedStream(iter(texts(20)))))
        for place in range(20):
            await until(lambda place=place: len(engine.held) >= min(place + limit, 20))
            resolve(engine, place)
        assert len(await reading) == 20
    assert engine.most == limit
    assert engine.num_waiting == 20


@in_loop
async def test_no_more_is_read_while_answers_are_not_taken() -> None:
    """So that a client that does not read its answers fills neither queue: its own messages stay with it."""
    engine, num_read = FakeEngine(), 0

    async def messages() -> AsyncIterator[pb.EmbedRequest]:
        nonlocal num_read
        for message in texts(9):
            num_read += 1
            yield message

    async def begin(call: Call, message: pb.EmbedRequest) -> asyncio.Future[Result]:
        return await call.submit(Request(inputs=[message.inputs]))

    shared = Shared(engine, ServerConfig(grpc_max_parallel_stream_requests=3))  # type: ignore[arg-type]
    async with aclosing(in_order(Call(shared, 0.0, None, waits=True), messages(), begin)) as answered:
        for num_taken in (1, 2, 3):
            await anext(answered)
            await until(lambda num_taken=num_taken: num_read == num_taken + 2)
            for _ in range(100):
                await asyncio.sleep(0)
            assert num_read == num_taken + 2
    shared.close()


# Waiting for room


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Harness]:
    """A real engine that admits two inputs at once and computes one at a time, when a test says so."""
    labels = Labels(("relevance",), "identity")
    made = harness(tmp_path, num_lanes=1, lane_tokens=2, labels=labels, max_concurrent_requests=2)
    yield made
    made.close()


def num_admitted(house: Harness) -> int:
    return house.core.admission.num_taken


def rank_request(word: int) -> pb.RerankStreamRequest:
    return pb.RerankStreamRequest(query=words(1, word), text=words(1, word), raw_scores=True)


@asynccontextmanager
async def computing(house: Harness) -> AsyncIterator[None]:
    """The executor finishes whatever it is given."""

    async def finish() -> None:
        while (run := await asyncio.to_thread(house.next_run)) is not None:
            run.finish()

    finishing = asyncio.ensure_future(finish())
    yield
    house.started.put(None)
    await finishing


@in_loop
async def test_streams_and_rerank_wait_where_other_calls_are_refused(house: Harness) -> None:
    async with served(house.engine) as client:
        streaming = asyncio.ensure_future(client.Rerank.RerankStream(rank_request(word) for word in range(1, 6)))
        await until(lambda: num_admitted(house) == 2)
        refused = client.Predict.PredictPair(pb.PredictPairRequest(inputs=["w1", "w1"]))
        assert (await failed(refused))[0] == "RESOURCE_EXHAUSTED"
        asked = pb.RerankRequest(query="w7", texts=["w7"], raw_scores=True)
        asking = asyncio.ensure_future(client.Rerank.Rerank(asked))
        async with computing(house):
            ranks = (await streaming).ranks
            assert (await asking).ranks[0].score == 7
        assert [(one.index, one.score) for one in ranks] == [(4, 5), (3, 4), (2, 3), (1, 2), (0, 1)]
        await until(lambda: num_admitted(house) == 0)


@in_loop
async def test_more_texts_than_may_be_admitted_take_all_the_room(house: Harness) -> None:
    async with served(house.engine) as client, computing(house):
        asked = pb.RerankRequest(query="w1", texts=["w1", "w2", "w3"], raw_scores=True)
        assert len((await client.Rerank.Rerank(asked)).ranks) == 3


@in_loop
async def test_a_client_that_leaves_while_it_waits_for_room_takes_none(
    house: Harness, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(house.engine) as client:
        first = asyncio.ensure_future(client.Rerank.RerankStream(rank_request(word) for word in (1, 2)))
        await until(lambda: num_admitted(house) == 2)
        leaving = [client.Rerank.Rerank(pb.RerankRequest(query="w3", texts=["w3"])) for _ in range(WAITING_THREADS + 9)]
        waiting = client.server._shared.waiting._work_queue
        await until(lambda: waiting.qsize() == 9)  # those that have no thread to wait in
        with caplog.at_level(logging.DEBUG, "openbei.server"):
            for one in leaving:
                one.cancel()
            await until(lambda: caplog.text.count("CANCELLED") == len(leaving))
        async with computing(house):
            assert len((await first).ranks) == 2
            await until(lambda: num_admitted(house) == 0)
            asked = pb.RerankRequest(query="w5", texts=["w5"], raw_scores=True)
            assert (await client.Rerank.Rerank(asked)).ranks[0].score == 5
            await until(lambda: num_admitted(house) == 0)
    assert sum(count for _, count in house.engine.metrics.request_count.samples()) <= 2 + WAITING_THREADS + 1


class Blocking(FakeEngine):
    """Whoever may wait waits until there is room."""

    def __init__(self) -> None:
        super().__init__("reranker")
        self.hold, self.asked, self.room = True, threading.Event(), threading.Event()

    def submit(self, request: Request, wait: bool = False) -> Future[Result]:
        self.asked.set()
        assert self.room.wait(WAIT_S)
        return super().submit(request, wait)


@in_loop
async def test_what_is_admitted_after_its_client_left_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    engine = Blocking()
    async with served(engine) as client:
        with caplog.at_level(logging.DEBUG, "openbei.server"):
            call = client.Rerank.Rerank(pb.RerankRequest(query="a", texts=["b"]))
            await until(engine.asked.is_set)
            call.cancel()
            await until(lambda: "CANCELLED" in caplog.text)
        engine.room.set()
        await until(lambda: engine.held and engine.held[0].cancelled())


# Messages that fail


@in_loop
async def test_a_message_that_fails_ends_its_stream() -> None:
    """What was before it is answered; what is behind it is dropped."""
    engine = FakeEngine()
    engine.hold = True
    async with served(engine) as client:
        stream = client.Embed.EmbedStream(iter([*texts(4), pb.EmbedRequest(), *texts(2)]))
        await until(lambda: len(engine.held) == 4)
        engine.held[1].set_exception(errors.InferenceFailed("no"))
        resolve(engine, 0)
        assert list((await stream.read()).embeddings) == answers(1)[0]
        assert await failed(stream.read()) == ("FAILED_PRECONDITION", "no")
        await until(lambda: engine.held[2].cancelled() and engine.held[3].cancelled())
    assert len(engine.requests) == 5  # the empty one was refused, and the two behind it were not asked for


@in_loop
async def test_a_refused_message_is_told_after_the_answers_before_it() -> None:
    engine = FakeEngine()
    engine.hold = True
    async with served(engine) as client:
        stream = client.Embed.EmbedStream(iter([*texts(2), pb.EmbedRequest(), *texts(2)]))
        await until(lambda: len(engine.held) == 2 and len(engine.requests) == 3)
        resolve(engine, 1)
        resolve(engine, 0)
        assert [list((await stream.read()).embeddings) for _ in range(2)] == answers(2)
        assert await failed(stream.read()) == ("INVALID_ARGUMENT", "input 0 is empty")


@in_loop
async def test_one_failure_ends_a_rerank_stream() -> None:
    engine = FakeEngine("reranker")
    async with served(engine) as client:
        messages = [pb.RerankStreamRequest(query="a", text="b"), pb.RerankStreamRequest()]
        assert (await failed(client.Rerank.RerankStream(iter(messages))))[0] == "INVALID_ARGUMENT"


# Clients that leave, and deadlines


@in_loop
async def test_a_cancelled_call_drops_its_requests() -> None:
    engine = FakeEngine()
    engine.hold = True
    async with served(engine) as client:
        calls = [client.Embed.Embed(texts(1)[0]), client.Embed.EmbedStream(iter(texts(3)))]
        await until(lambda: len(engine.held) == 4)
        for call in calls:
            call.cancel()
        await until(lambda: all(one.cancelled() for one in engine.held))
        assert dict(engine.metrics.request_failure.samples())['te_request_failure{err="dropped"}'] == 4


@in_loop
async def test_a_connection_that_breaks_drops_its_requests() -> None:
    engine = FakeEngine()
    engine.hold = True
    async with served(engine) as client:
        call = client.Embed.Embed(texts(1)[0])
        await until(lambda: len(engine.held) == 1)
        await client.channel.close()
        await until(engine.held[0].cancelled)
        assert call.cancelled()


@in_loop
async def test_the_client_s_deadline_is_the_request_s() -> None:
    engine = FakeEngine()
    async with served(engine) as client:
        before_s = time.monotonic()
        await client.Embed.Embed(texts(1)[0], timeout=30)
        await gathered(client.Embed.EmbedStream(iter(texts(1)), timeout=40))
        after_s = time.monotonic()
        for request, timeout in zip(engine.requests, (30, 40), strict=True):
            assert request.deadline_s is not None
            assert before_s + timeout - 0.1 <= request.deadline_s <= after_s + timeout + 0.1  # clocks of both kinds
        await client.Embed.Embed(texts(1)[0])
        assert engine.requests[-1].deadline_s is None


@in_loop
async def test_a_deadline_that_passes() -> None:
    """Whether the engine says so, or the client's own clock while the request waits."""
    engine = FakeEngine()
    async with served(engine) as client:
        engine.fail_with = errors.DeadlineExceeded("late")
        assert await failed(client.Embed.Embed(texts(1)[0], timeout=30)) == ("DEADLINE_EXCEEDED", "late")
        engine.fail_with, engine.hold = None, True
        for begin in (
            lambda **options: client.Embed.Embed(texts(1)[0], **options),
            lambda **options: client.Embed.EmbedStream(iter(texts(1)), **options),
        ):
            engine.held.clear()
            for timeout_s in (0.05, 1, 10):  # one so short may pass before the server has heard of it
                assert (await failed(begin(timeout=timeout_s)))[0] == "DEADLINE_EXCEEDED"
                if engine.held:
                    break
            await until(lambda: engine.held and all(one.cancelled() for one in engine.held))


@in_loop
async def test_clients_that_leave_are_nothing_for_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """Also where an answer is being written just then."""

    async def endless() -> AsyncIterator[pb.EmbedAllRequest]:
        while True:
            yield pb.EmbedAllRequest(inputs="a" * 5000, truncate=True)

    engine = FakeEngine()
    async with served(engine) as client:
        for _ in range(10):
            stream = client.Embed.EmbedAllStream(endless())
            await stream.read()
            stream.cancel()
        await until(lambda: not client.server._shared.readers)
    assert [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


class Gone:
    """The context of an rpc whose client has left: what is written to it raises."""

    def time_remaining(self) -> None:
        return None

    def invocation_metadata(self) -> tuple[()]:
        return ()


@in_loop
async def test_what_a_write_to_a_client_that_left_raises_is_a_cancel() -> None:
    """Or gRPC would log it with its trace."""
    shared = Shared(FakeEngine(), ServerConfig())  # type: ignore[arg-type]
    with pytest.raises(asyncio.CancelledError):
        async with Answering(shared, "Embed/EmbedStream", Gone(), waits=True):
            raise grpc.aio.InternalError("cannot write")
    shared.close()


# The end


@in_loop
async def test_stopping_answers_what_was_read_and_ends_streams_that_stay_open() -> None:
    engine = FakeEngine()
    engine.hold = True
    async with served(engine) as client:
        call = client.Embed.Embed(texts(1)[0])
        stream = client.Embed.EmbedStream()
        for message in texts(2):
            await stream.write(message)
        await until(lambda: len(engine.held) == 3)
        stopping = asyncio.ensure_future(client.server.stop(WAIT_S))
        await until(lambda: not client.server._shared.readers or engine.held)
        for one, request in zip(engine.held, engine.requests, strict=True):
            engine.resolve(one, request)
        assert list((await call).embeddings) == answers(1)[0]
        assert [list((await stream.read()).embeddings) for _ in range(2)] == answers(2)
        assert await failed(stream.read()) == ("UNAVAILABLE", "unhealthy: draining")
        await stopping
