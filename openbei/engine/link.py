"""What a frontend and the engine process say to each other over a Unix socket, and how a message is framed.

One message a request each way, whatever the number of its texts: ids go out as int32, rows come back as float32, both
as they lie in memory. Owns the messages and the framing; never touches queues, permits or HTTP.
"""

import asyncio
import struct
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, pairwise
from typing import Any, cast

import msgspec
import numpy as np

from openbei import errors
from openbei.engine.admission import Status
from openbei.engine.job import Answer, Ids, Job
from openbei.model.spec import Output

SIZE = struct.Struct("<I")
MAX_ANSWER_BYTES = 1 << 31


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="ask"):
    """Compute a job. lengths: int32 tokens of each input; ids, types: int32 of all inputs, end to end.

    wait: until there is room for it, instead of being refused.
    """

    number: int
    output: Output
    deadline_s: float | None
    lengths: bytes
    ids: bytes
    types: bytes | None
    bulk: bool
    wait: bool


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag="cancel"):
    """Nobody waits for this job any more."""

    number: int


class Done(msgspec.Struct, frozen=True, array_like=True, tag="done"):
    """A job's rows: float32, width wide, end to end; spans: float64, two an input.

    lengths: int32 rows of each input, where it has not one but an array of them.
    """

    number: int
    rows: bytes
    width: int
    lengths: bytes | None
    spans: bytes


class Failed(msgspec.Struct, frozen=True, array_like=True, tag="failed"):
    """A job's error: the name of its class, which is one of errors.ANSWERS."""

    number: int
    error: str
    message: str
    retry_after_s: float


class Told(msgspec.Struct, frozen=True, array_like=True, tag="told"):
    """The status of the engine, when a frontend has come in and whenever it changes."""

    status: Status


REQUESTS: "msgspec.msgpack.Decoder[Ask | Cancel]" = msgspec.msgpack.Decoder(Ask | Cancel)
ANSWERS: "msgspec.msgpack.Decoder[Done | Failed | Told]" = msgspec.msgpack.Decoder(Done | Failed | Told)
ENCODER = msgspec.msgpack.Encoder()
CLASSES = {kind.__name__: kind for kind in errors.ANSWERS}


class Link(asyncio.Protocol):
    """One end of a connection: bytes -> messages, each given to on_message. on_lost: called once, at its end."""

    def __init__(
        self,
        decoder: "msgspec.msgpack.Decoder[Any]",
        on_message: Callable[[Any], None],
        on_lost: Callable[["Link"], None],
    ) -> None:
        self._decoder, self._on_message, self._on_lost = decoder, on_message, on_lost
        self._unread = bytearray()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's hook."""
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is one by its methods only

    def data_received(self, data: bytes) -> None:
        """asyncio's hook: cut what has come into messages."""
        self._unread += data
        start = 0
        while len(self._unread) >= start + SIZE.size:
            begin = start + SIZE.size
            end = begin + SIZE.unpack_from(self._unread, start)[0]
            if end > len(self._unread):
                break
            with memoryview(self._unread)[begin:end] as view:
                message = self._decoder.decode(view)
            start = end
            self._on_message(message)
        del self._unread[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's hook."""
        self._transport = None
        self._on_lost(self)

    @property
    def is_open(self) -> bool:
        """True between connection_made and connection_lost."""
        return self._transport is not None

    def write(self, message: bytes | bytearray) -> None:
        """Send what frame made. Never blocks: what the other side is slow to take waits in memory."""
        if self._transport is not None:
            self._transport.write(message)

    def close(self) -> None:
        """Hang up, when what was written has left."""
        if self._transport is not None:
            self._transport.close()


def frame(message: Ask | Cancel | Done | Failed | Told) -> bytearray:
    """A message -> its bytes, the size in front."""
    buffer = bytearray(SIZE.size)
    ENCODER.encode_into(message, buffer, SIZE.size)
    SIZE.pack_into(buffer, 0, len(buffer) - SIZE.size)
    return buffer


def ask(number: int, job: Job, wait: bool = False) -> Ask:
    """A job -> the message that asks for it."""
    types = None
    if any(one is not None for one in job.types):
        types = packed(one or [0] * len(ids) for one, ids in zip(job.types, job.ids, strict=True))
    lengths = packed([[len(ids) for ids in job.ids]])
    return Ask(number, job.output, job.deadline_s, lengths, packed(job.ids), types, job.bulk, wait)


def job_of(message: Ask) -> Job:
    """The message -> the job, on the engine's side."""
    lengths = memoryview(message.lengths).cast("i")
    ids = list(cut(message.ids, lengths))
    return Job(
        ids,
        list(cut(message.types, lengths)) if message.types is not None else [None] * len(ids),
        message.output,
        message.deadline_s,
        message.bulk,
    )


def done(number: int, answer: Answer) -> Done | Failed:
    """An Answer -> the message that holds it; Failed if it is larger than a message may be."""
    plain = answer.rows[0].ndim == 1
    rows = np.stack(answer.rows) if plain else np.concatenate(answer.rows)
    lengths = None if plain else packed([[len(row) for row in answer.rows]])
    if rows.nbytes > MAX_ANSWER_BYTES:
        limit = f"{rows.nbytes} bytes > {MAX_ANSWER_BYTES}, the most that a frontend is sent"
        return failed(number, errors.InferenceFailed(f"the answer has {limit}: ask for less at once"))
    spans = np.array(answer.spans, np.float64)
    return Done(number, np.ascontiguousarray(rows, np.float32).data, rows.shape[1], lengths, spans.tobytes())  # type: ignore[arg-type]


def answer_of(message: Done) -> Answer:
    """The message -> the Answer to a job, on the frontend's side."""
    rows = np.frombuffer(message.rows, np.float32).reshape(-1, message.width)
    spans = np.frombuffer(message.spans, np.float64).reshape(-1, 2)
    each = list(rows)
    if message.lengths is not None:
        each = np.split(rows, np.cumsum(np.frombuffer(message.lengths, np.int32))[:-1])
    return Answer(each, [(begin, end) for begin, end in spans.tolist()])


def failed(number: int, error: BaseException) -> Failed:
    """An error -> the message that holds it; one that is no RequestError becomes InternalError."""
    kind = type(error) if type(error) in errors.ANSWERS else errors.InternalError
    return Failed(number, kind.__name__, str(error), getattr(error, "retry_after_s", 1))


def error_of(message: Failed) -> errors.RequestError:
    """The message -> the error."""
    kind = CLASSES[message.error]
    if issubclass(kind, errors.Overloaded | errors.Unhealthy):
        return kind(message.message, message.retry_after_s)
    return kind(message.message)


def packed(lists: Iterable[Ids]) -> bytes:
    """Lists of int32 -> their bytes, end to end."""
    numbers = array("i")
    for one in lists:
        numbers.extend(one)
    return numbers.tobytes()


def cut(data: bytes, lengths: Iterable[int]) -> Iterator[Ids]:
    """Bytes of int32, and the length of each list -> the lists, as views."""
    numbers = memoryview(data).cast("i")
    for begin, end in pairwise(accumulate(lengths, initial=0)):
        yield numbers[begin:end]
