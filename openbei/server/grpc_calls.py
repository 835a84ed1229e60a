"""One rpc on its way: whose it is, how its messages reach the engine, and in which order their answers leave.

Owns waiting, order, cancelling, the statuses of errors, and what metadata asks for; never touches the fields of a
message. The span of an rpc is named, and fails, as OpenTelemetry's conventions for gRPC have it
(https://opentelemetry.io/docs/specs/semconv/rpc/grpc); there, a stream is one rpc, and its messages have none.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio

from openbei import errors
from openbei.engine.models import Asked, Models, as_models
from openbei.engine.request import EngineInfo, Request, Result
from openbei.server.answers import cost, error_headers
from openbei.server.intake import MODEL_HEADER, check_key, ids, ids_text, is_bulk
from openbei.server.trace import RequestSpan, Spans, spans_of, steps_of

if TYPE_CHECKING:
    from openbei.config import ServerConfig
    from openbei.engine.engine import Engine

logger = logging.getLogger("openbei.server")

WAITING_THREADS = 16
UNTRACED = "Info/"  # as over HTTP, where it is a GET
SERVER_FAILED = {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}

Begin = Callable[["Call", Any], Awaitable[asyncio.Future[Any]]]
Context = Any  # grpc.aio.ServicerContext


class Shared:
    """What the rpcs of one server share: the models, threads for those who wait for room, the streams being read.

    spans: makes their spans, if they are traced; the config's if it is not given.
    """

    def __init__(self, served: "Models | Engine", config: "ServerConfig", spans: Spans | None = None) -> None:
        self.models, self.config = as_models(served), config
        self.spans = spans or spans_of(config)
        self.waiting = ThreadPoolExecutor(WAITING_THREADS, "grpc-wait")
        self.readers: set[asyncio.Task[None]] = set()

    def stop_reading(self) -> None:
        """End all streams after the answers to what was read of them."""
        for reader in self.readers:
            reader.cancel()

    def close(self) -> None:
        """Let the threads go; they wait for nothing when the engine is drained."""
        self.waiting.shutdown(wait=False)


@dataclass(frozen=True, slots=True)
class Call:
    """One rpc. waits: for room in the engine, instead of being refused. Times are those of time.monotonic().

    headers: its metadata. span: None where it is not traced. chosen: the model that it means, once that is known. An
    rpc keeps no engine: one that is unloaded must not live as long as a stream does.
    """

    shared: Shared
    arrived_s: float
    deadline_s: float | None
    waits: bool
    headers: Mapping[str, str] = field(default_factory=dict)
    span: RequestSpan | None = None
    chosen: EngineInfo | None = None

    @property
    def info(self) -> EngineInfo:
        """The model that answers."""
        return self.chosen or self.shared.models.first.info

    @property
    def engine(self) -> "Engine":
        """Its engine. Raises UnknownModel where it has been unloaded."""
        return self.shared.models.choose(self.info.served_model_name, "any")

    async def submit(self, request: Request) -> asyncio.Future[Result]:
        """A Request, once it is admitted -> the future of its Result; cancelling that reaches the engine.

        Raises what Engine.submit does.
        """
        request = replace(request, deadline_s=self.deadline_s, bulk=is_bulk(self.headers, None))
        if not self.waits:
            return asyncio.wrap_future(self.engine.submit(request))
        admitted: Future[Any] = self.shared.waiting.submit(self.engine.submit, request, wait=True)
        try:
            return asyncio.wrap_future(await asyncio.wrap_future(admitted))
        except asyncio.CancelledError:
            admitted.add_done_callback(drop)
            raise

    def told(self, result: Result) -> tuple[tuple[str, str], ...]:
        """What the rpc's one answer cost, as over HTTP: for its initial metadata, and for its span."""
        headers = cost(self.info, self.arrived_s, result)
        if self.span is not None:
            self.span.tell(headers)
            self.span.steps.extend(steps_of(result.timings))
        return tuple(headers.items())

    def count(self, result: Result) -> None:
        """Add one of a stream's answers to its span."""
        if self.span is not None:
            usage = result.usage
            found = {"x-compute-characters": usage.num_characters, "x-compute-tokens": usage.num_tokens}
            self.span.counts.update({"openbei.messages": 1} | found)


class Answering:
    """The frame of an rpc: its Call, when key and model are right; and whatever is raised in it becomes its status.

    asks: what a model must be able to do that is meant without a name.
    """

    def __init__(self, shared: Shared, path: str, context: Context, waits: bool, asks: Asked = "any") -> None:
        now_s, left_s, headers = time.monotonic(), context.time_remaining(), dict(context.invocation_metadata())
        self._path, self._context, self._asks = path, context, asks
        span = None if shared.spans is None or path.startswith(UNTRACED) else begun(shared.spans, path, headers)
        self._call = Call(shared, now_s, None if left_s is None else now_s + left_s, waits, headers, span)

    async def __aenter__(self) -> Call:
        try:
            shared, headers = self._call.shared, self._call.headers
            check_key(headers, shared.config.api_key)
            chosen = shared.models.choose(headers.get(MODEL_HEADER), self._asks)
            self._call = replace(self._call, chosen=chosen.info)
        except errors.RequestError as error:
            await self._fail(error)
        return self._call

    async def __aexit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, grpc.aio.InternalError):
            await self._fail(error)
        self._end(logging.DEBUG, "OK" if error is None else "CANCELLED")
        if isinstance(error, Exception):  # the client left while an answer was being written
            raise asyncio.CancelledError from error

    async def _fail(self, error: Exception) -> NoReturn:
        """End the rpc; the message of a bug stays in the log."""
        row = errors.answer(error)
        bug = row is errors.ANSWERS[errors.InternalError]
        if bug:
            logger.error("internal error", exc_info=error)
        self._end(logging.INFO if row.status < 500 else logging.WARNING, row.grpc)
        retry_s = error_headers(error).get("retry-after")
        trailing = (
            () if retry_s is None else (("grpc-retry-pushback-ms", f"{retry_s}000"),)
        )  # as gRPC's clients read it
        await self._context.abort(grpc.StatusCode[row.grpc], "internal error" if bug else str(error), trailing)
        raise AssertionError("abort always raises")

    def _end(self, level: int, status: str) -> None:
        """Log the rpc, and end its span."""
        call, span = self._call, self._call.span
        if logger.isEnabledFor(level):
            elapsed_ms = (time.monotonic() - call.arrived_s) * 1000
            model = f" model={call.info.served_model_name!r}" if call.shared.models.several and call.chosen else ""
            logger.log(level, "gRPC %s %s %.1f ms%s%s", self._path, status, elapsed_ms, ids_text(call.headers), model)
        if span is not None:
            span.tell({"rpc.response.status_code": status} | ({} if status == "OK" else {"error.type": status}))
            if status in SERVER_FAILED:
                span.fail()
            span.end()


def begun(spans: Spans, path: str, headers: Mapping[str, str]) -> RequestSpan:
    """The span of an rpc that begins."""
    method = f"tei.v1.{path}"
    return spans.begin(method, headers, {"rpc.system.name": "grpc", "rpc.method": method} | ids(headers))


def drop(admitted: Future[Future[Result]]) -> None:
    """Cancel a request whose client left while it waited to be admitted."""
    if not admitted.cancelled() and admitted.exception() is None:
        admitted.result().cancel()


async def in_order(call: Call, messages: AsyncIterable[Any], begin: Begin) -> AsyncGenerator[tuple[Any, Any], None]:
    """Messages of a stream -> each with its result, in order, until one fails.

    The next message is read when the last one is admitted, and fewer than grpc_max_parallel_stream_requests are not
    yet taken from here. Close it (contextlib.aclosing), so that what is left is cancelled.
    """
    slots = asyncio.Semaphore(call.shared.config.grpc_max_parallel_stream_requests)
    begun: asyncio.Queue[tuple[Any, asyncio.Future[Any]] | Exception | None] = asyncio.Queue()

    async def read() -> None:
        try:
            await slots.acquire()
            async for message in messages:
                begun.put_nowait((message, await begin(call, message)))
                await slots.acquire()
            begun.put_nowait(None)
        except asyncio.CancelledError:  # by stop_reading; in_order itself no longer listens when it cancels this
            begun.put_nowait(errors.Unhealthy("unhealthy: draining"))
        except Exception as error:
            begun.put_nowait(error)

    reader = asyncio.create_task(read())
    call.shared.readers.add(reader)
    try:
        while (item := await begun.get()) is not None:
            if isinstance(item, Exception):
                raise item
            message, result = item
            yield message, await result
            slots.release()
    finally:
        call.shared.readers.discard(reader)
        reader.cancel()
        while not begun.empty():
            if isinstance(item := begun.get_nowait(), tuple):
                forget(item[1])


def forget(result: asyncio.Future[Any]) -> None:
    """Cancel what nobody waits for; an error that it already has is not worth a line in the log."""
    if not result.cancel() and not result.cancelled():
        result.exception()
