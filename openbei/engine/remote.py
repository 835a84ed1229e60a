"""The core as a frontend has it: it sends jobs to the engine process, and takes the answers.

Everything runs in one event loop, the frontend's own; other threads hand their jobs over to it. Owns the connection and
what waits for it; never touches batches or executors. When the connection ends, all that wait are told at once.
"""

import asyncio
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openbei.engine.admission import Admission
from openbei.engine.job import Job
from openbei.engine.link import ANSWERS, Cancel, Done, Failed, Link, Told, answer_of, ask, error_of, frame
from openbei.errors import Unhealthy


class RemoteCore:
    """The core of an engine process. Admits up to `limit` inputs itself, before they are tokenised.

    The engine process counts the inputs of all frontends, and may refuse more or let them wait. The status is "failed"
    until connect is through and the engine says that it is ready, and whenever either is no longer so.
    """

    def __init__(self, limit: int) -> None:
        self.admission = Admission(limit, down=True)
        self._numbers = itertools.count()
        self._jobs: dict[int, Job] = {}
        self._link: Link | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._told = asyncio.Event()  # that the engine is ready or not, or gone again

    async def connect(self, path: Path) -> None:
        """Speak to the engine that listens there, from the running loop; return when it has told its status.

        Raises OSError.
        """
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        if self._link is not None:
            self._lost(self._link)
        self._link = Link(ANSWERS, self._receive, self._lost)
        link = self._link
        self._told.clear()
        await self._loop.create_unix_connection(lambda: link, str(path))
        await self._told.wait()

    def submit(self, job: Job, wait: bool = False) -> None:
        """Send a job, and never block; all errors come through its future.

        wait: in the engine process, until that has room; it was admitted here, so no more wait there than permits are.
        """
        number = next(self._numbers)
        self._call(self._send, number, job, frame(ask(number, job, wait)))

    def close(self) -> None:
        """Hang up."""
        if self._loop is not None:
            self._call(self._hang_up)

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        """Run a function in the loop: now, if this is its thread."""
        if threading.get_ident() == self._thread:
            function(*args)
        elif self._loop is not None:
            self._loop.call_soon_threadsafe(function, *args)

    def _send(self, number: int, job: Job, message: bytearray) -> None:
        if job.future.done():
            return
        if self._link is None or not self._link.is_open:
            job.fail(Unhealthy("unhealthy: the engine is being restarted"))
            return
        self._jobs[number] = job
        job.future.add_done_callback(lambda future: self._call(self._cancel, number) if future.cancelled() else None)
        self._link.write(message)

    def _cancel(self, number: int) -> None:
        if self._jobs.pop(number, None) is not None and self._link is not None:
            self._link.write(frame(Cancel(number)))

    def _hang_up(self) -> None:
        if self._link is not None:
            self._link.close()

    def _receive(self, message: Done | Failed | Told) -> None:
        if isinstance(message, Told):
            self.admission.set_down(message.status != "ready")
            self._told.set()
            return
        job = self._jobs.pop(message.number, None)
        if job is None:  # cancelled meanwhile
            return
        if isinstance(message, Done):
            job.answer(answer_of(message))
        else:
            job.fail(error_of(message))

    def _lost(self, link: Link) -> None:
        if link is not self._link:  # an engine before the present one
            return
        self._link = None
        self.admission.set_down(True)
        self._told.set()
        lost, self._jobs = self._jobs, {}
        for job in lost.values():
            job.fail(Unhealthy("unhealthy: the engine stopped before it had answered"))
