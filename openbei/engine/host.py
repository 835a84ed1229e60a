"""The engine process's side of its frontends: jobs come in over a Unix socket, go to the core, and answers go back.

Everything but the core runs in one event loop. Owns the connections; never touches texts, batches or HTTP. A frontend
that hangs up or dies takes its jobs with it; one that is slow to read holds up nobody.
"""

import asyncio
from concurrent.futures import Future
from pathlib import Path

from openbei.engine.admission import Status
from openbei.engine.job import Answer, Core, Job
from openbei.engine.link import REQUESTS, Ask, Cancel, Link, Told, done, failed, frame, job_of
from openbei.errors import RequestError


class Host:
    """Lets frontends use a core."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._frontends: set[_Frontend] = set()
        self._server: asyncio.Server | None = None

    async def listen(self, path: Path) -> None:
        """Take in frontends at this path, in the running loop, as long as the core stands. Raises OSError."""
        loop = asyncio.get_running_loop()

        def on_status(_: Status) -> None:
            loop.call_soon_threadsafe(self._tell)

        self._core.admission.on_status = on_status
        self._server = await loop.create_unix_server(  # uvloop closes one that nobody holds
            lambda: _Frontend(self._core, self._frontends), str(path)
        )

    def _tell(self) -> None:
        for frontend in self._frontends:
            frontend.tell()


class _Frontend(Link):
    """One frontend's connection, and the jobs that it waits for. It is in `others` as long as it stands."""

    def __init__(self, core: Core, others: "set[_Frontend]") -> None:
        super().__init__(REQUESTS, self._receive, self._lost)
        self._core, self._others = core, others
        self._loop = asyncio.get_running_loop()
        self._jobs: dict[int, Job] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._others.add(self)
        self.tell()

    def tell(self) -> None:
        self.write(frame(Told(self._core.admission.status)))

    def _receive(self, message: Ask | Cancel) -> None:
        if isinstance(message, Ask):
            self._take(message)
        elif message.number in self._jobs:
            self._jobs[message.number].future.cancel()

    def _take(self, message: Ask) -> None:
        job, number = job_of(message), message.number
        try:
            num_permits = self._core.admission.take(len(job.ids), bulk=job.bulk)
        except RequestError as error:
            self.write(frame(failed(number, error)))
            return
        self._jobs[number] = job
        job.future.add_done_callback(lambda _: self._core.admission.give_back(num_permits))
        job.future.add_done_callback(lambda future: self._loop.call_soon_threadsafe(self._answer, number, future))
        try:
            self._core.submit(job)
        except RequestError as error:
            job.fail(error)

    def _answer(self, number: int, future: Future[Answer]) -> None:
        del self._jobs[number]
        if future.cancelled():
            return
        error = future.exception()
        self.write(frame(done(number, future.result()) if error is None else failed(number, error)))

    def _lost(self, _: Link) -> None:
        self._others.discard(self)
        for job in self._jobs.values():
            job.future.cancel()
