"""The engine process's side of its frontends: jobs come in over a Unix socket, go to the core, and answers go back.

Everything but the core runs in one event loop. Owns the connections, and the jobs that wait for room; never touches
texts, batches or HTTP. A frontend that hangs up or dies takes its jobs with it; one that is slow to read holds up
nobody.
"""

import asyncio
from collections import OrderedDict
from concurrent.futures import Future
from pathlib import Path

from openbei.engine.admission import Status
from openbei.engine.core import LocalCore
from openbei.engine.job import Answer, Job
from openbei.engine.link import REQUESTS, Ask, Cancel, Link, Told, done, failed, frame, job_of
from openbei.errors import Overloaded, RequestError


class Host:
    """Lets frontends use a core."""

    def __init__(self, core: LocalCore) -> None:
        self.core = core
        self.frontends: set[_Frontend] = set()
        self._num_permits: dict[Job, int] = {}
        self._lines: tuple[OrderedDict[Job, None], ...] = (OrderedDict(), OrderedDict())  # interactive, bulk
        self._server: asyncio.Server | None = None

    async def listen(self, path: Path) -> None:
        """Take in frontends at this path, in the running loop, as long as the core stands. Raises OSError."""
        loop = asyncio.get_running_loop()

        def on_status(_: Status) -> None:
            loop.call_soon_threadsafe(self._tell)

        self.core.admission.on_status = on_status
        self.core.on_room = lambda: any(self._lines) and loop.call_soon_threadsafe(self._begin_waiting)
        # uvloop closes one that nobody holds
        self._server = await loop.create_unix_server(lambda: _Frontend(self), str(path))

    def begin(self, job: Job, wait: bool) -> None:
        """Give a job to the core: now or never, or when there is room and those who waited before it are in."""
        if not wait:
            self._begun(job, wait)
            return
        self._lines[job.bulk][job] = None  # first, or room that a lane makes meanwhile might be told to nobody
        self._begin_waiting()

    def done(self, job: Job) -> None:
        """A job is answered, failed or cancelled: others may have room now."""
        self.core.admission.give_back(self._num_permits.pop(job, 0))
        self._lines[job.bulk].pop(job, None)
        self._begin_waiting()

    def _begun(self, job: Job, wait: bool) -> bool:
        """False if there is no room and it may wait; else it is the core's, or has failed."""
        admission, num_permits = self.core.admission, 0
        try:
            num_permits = admission.take(len(job.ids), bulk=job.bulk)
            self.core.submit(job)
        except RequestError as error:
            admission.give_back(num_permits)
            if wait and isinstance(error, Overloaded):
                return False
            job.fail(error)
        else:
            self._num_permits[job] = num_permits
        return True

    def _begin_waiting(self) -> None:
        for line in self._lines:
            while line and self._begun(next(iter(line)), wait=True):
                line.popitem(last=False)

    def _tell(self) -> None:
        for frontend in self.frontends:
            frontend.tell()
        self._begin_waiting()


class _Frontend(Link):
    """One frontend's connection, and the jobs that it waits for. The host knows it as long as it stands."""

    def __init__(self, host: Host) -> None:
        super().__init__(REQUESTS, self._receive, self._lost)
        self._host, self._loop = host, asyncio.get_running_loop()
        self._jobs: dict[int, Job] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._host.frontends.add(self)
        self.tell()

    def tell(self) -> None:
        self.write(frame(Told(self._host.core.admission.status)))

    def _receive(self, message: Ask | Cancel) -> None:
        if isinstance(message, Ask):
            self._take(message)
        elif message.number in self._jobs:
            self._jobs[message.number].future.cancel()

    def _take(self, message: Ask) -> None:
        job, number = job_of(message), message.number
        self._jobs[number] = job
        self._host.begin(job, message.wait)
        job.future.add_done_callback(lambda future: self._loop.call_soon_threadsafe(self._answer, number, future))

    def _answer(self, number: int, future: Future[Answer]) -> None:
        self._host.done(self._jobs.pop(number))
        if future.cancelled():
            return
        error = future.exception()
        self.write(frame(done(number, future.result()) if error is None else failed(number, error)))

    def _lost(self, _: Link) -> None:
        self._host.frontends.discard(self)
        for job in self._jobs.values():
            job.future.cancel()
