"""uvicorn's reader of HTTP, made impatient: a head that dawdles is answered 408, one that never ends 413, and what is
no HTTP in JSON.

Owns a connection until a request's head is whole, and after an answer that did not wait for the body; never touches
what is read or said between the two.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from openbei.errors import ANSWERS, MalformedBody, PayloadTooLarge, RequestError, TooSlow
from openbei.server.negotiate import to_json
from openbei.wire.tei import TEIError

REASONS = {400: b"Bad Request", 408: b"Request Timeout", 413: b"Request Entity Too Large"}
FIRST_S = 1  # how long a server that stops waits for those who have connected and not asked yet
MAX_HEAD_BYTES = 65_536  # a head is kept whole until it ends, before anybody is asked for a key


class Connection(HttpToolsProtocol):
    """One client's connection. read_timeout_ms: for a head from its first byte, for a body's rest from the answer.

    is_stopping: says whether the server is about to end.
    """

    def __init__(self, *args: Any, read_timeout_ms: int, is_stopping: Callable[[], bool], **options: Any) -> None:
        super().__init__(*args, **options)
        self.read_timeout_ms, self.is_stopping = read_timeout_ms, is_stopping
        self.head_timer: asyncio.TimerHandle | None = None
        self.rest_timer: asyncio.TimerHandle | None = None
        self.num_head_bytes = 0
        self.deaf = self.leaving = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client that says nothing at all may do so for as long as one that is between two requests."""
        super().connection_made(transport)
        self.be_idle()
        if self.is_stopping():  # uvicorn may have told those that it has, and waits for this one too
            self.shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's hook."""
        self.stop_timer()
        self.stop_rest_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """asyncio's hook. A head is looked at when some of it has come and more is to come."""
        if self.deaf:
            return
        super().data_received(data)
        if self.head_timer is None:
            self.be_idle()
            return
        self.num_head_bytes += len(data)
        if self.num_head_bytes > MAX_HEAD_BYTES:
            self.stop_timer()
            self.give_up(PayloadTooLarge(f"the head of the request has more than {MAX_HEAD_BYTES} bytes"))

    def on_message_begin(self) -> None:
        """httptools' hook: the first byte of a head."""
        super().on_message_begin()
        self.stop_timer()
        late = TooSlow(f"the head of the request did not come in within {self.read_timeout_ms} ms")
        self.head_timer = self.loop.call_later(self.read_timeout_ms / 1000, self.give_up, late)
        self.num_head_bytes = 0

    def on_headers_complete(self) -> None:
        """httptools' hook."""
        self.stop_timer()
        super().on_headers_complete()
        if self.leaving:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        """uvicorn's hook. A client may send the rest of a body that was refused, and keep its connection."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body:
            self.rest_timer = self.loop.call_later(self.read_timeout_ms / 1000, self.transport.close)

    def shutdown(self) -> None:
        """uvicorn's hook. A request that is on its way, as far as can be told, is answered as the last one."""
        if self.cycle is None or self.head_timer is not None:
            self.leaving = True
            self.loop.call_later(FIRST_S, super().shutdown)
        else:
            super().shutdown()

    def on_message_complete(self) -> None:
        """httptools' hook."""
        self.stop_rest_timer()
        super().on_message_complete()

    def be_idle(self) -> None:
        """Wait for the next request as long as uvicorn does, which forgets that when anything comes in between."""
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self.rest_timer is None and self.timeout_keep_alive_task is None:
            wait_s, hang_up = self.timeout_keep_alive, self.timeout_keep_alive_handler
            self.timeout_keep_alive_task = self.loop.call_later(wait_s, hang_up)

    def stop_rest_timer(self) -> None:
        """The body is whole, or nobody waits for it."""
        if self.rest_timer is not None:
            self.rest_timer.cancel()
            self.rest_timer = None

    def stop_timer(self) -> None:
        """The head is whole, or nobody waits for it."""
        if self.head_timer is not None:
            self.head_timer.cancel()
            self.head_timer = None

    def give_up(self, error: RequestError) -> None:
        """Answer an error; behind a request that is still being answered, listen to nothing but its end."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
            self.deaf = True
        else:
            self.refuse(error)

    def send_400_response(self, msg: str) -> None:
        """uvicorn's hook for what is no HTTP."""
        self.stop_timer()
        self.refuse(MalformedBody("the request is not HTTP that can be read"))

    def refuse(self, error: RequestError) -> None:
        """Answer an error, and hang up."""
        row = ANSWERS[type(error)]
        body = to_json(TEIError(str(error), row.type))
        head = b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (row.status, REASONS[row.status], len(body)) + body)
        self.transport.close()


def impatient(read_timeout_ms: int, is_stopping: Callable[[], bool]) -> Any:
    """What uvicorn calls for each connection."""
    return partial(Connection, read_timeout_ms=read_timeout_ms, is_stopping=is_stopping)
