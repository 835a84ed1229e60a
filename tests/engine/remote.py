"""The two halves of an engine joined by a real Unix socket, each with its event loop in a thread of its own."""

import asyncio
import gc
import shutil
import tempfile
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from openbei.engine.core import LocalCore
from openbei.engine.engine import Engine
from openbei.engine.host import Host
from openbei.engine.metrics import Metrics
from openbei.engine.remote import RemoteCore
from openbei.engine.settle import Served
from tests.engine.fakes import WAIT_S, FakeClock, Harness, wait_until_ready

T = TypeVar("T")


async def until(claim: Callable[[], bool]) -> None:
    """Let the loop run until something is so; Loop.run bounds it."""
    while not claim():
        await asyncio.sleep(0)


class Loop:
    """An event loop that runs in a thread until it is closed."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(WAIT_S)

    def close(self) -> None:
        self.run(self.loop.shutdown_asyncgens())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(WAIT_S)
        self.loop.close()


class Hosting:
    """The engine process's side, in a loop of its own: `stop` is what its death looks like from outside."""

    def __init__(self, core: LocalCore, path: Path) -> None:
        self.side, self.host, self.path = Loop(), Host(core), path
        self.side.run(self.host.listen(path))
        gc.collect()  # what nobody holds must not be what listens

    def stop(self) -> None:
        async def stop() -> None:
            assert self.host._server is not None
            self.host.core.on_room = lambda: None
            self.host._server.close()
            for frontend in [*self.host.frontends]:
                frontend._transport.abort()  # type: ignore[union-attr]
            await until(lambda: not self.host.frontends)

        self.side.run(stop())
        self.side.close()


class Wires:
    """Makes engines whose core is at the other end of a socket, and takes everything down at the end."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.num_paths = 0
        self.hostings: list[Hosting] = []
        self.sides: list[Loop] = []
        self.remotes: list[RemoteCore] = []

    def __call__(self, core: LocalCore, served: Served, metrics: Metrics, clock: FakeClock) -> Engine:
        self.served = served
        return self.frontend(self.host(core), served, metrics, clock)

    def another(self, house: Harness) -> Engine:
        """One more frontend of the same core, which counts for itself."""
        return self.frontend(self.hostings[-1], self.served, Metrics(100), house.clock)

    def host(self, core: LocalCore) -> Hosting:
        self.num_paths += 1
        self.hostings.append(Hosting(core, self.folder / f"{self.num_paths}.sock"))
        return self.hostings[-1]

    def frontend(self, hosting: Hosting, served: Served, metrics: Metrics, clock: FakeClock) -> Engine:
        remote, side = RemoteCore(served.config.max_concurrent_requests), Loop()
        self.remotes.append(remote)
        self.sides.append(side)
        side.run(remote.connect(hosting.path))
        wait_until_ready(remote.admission)
        return Engine(served, remote, metrics, clock)

    def close(self) -> None:
        for remote, side in zip(self.remotes, self.sides, strict=True):
            remote.close()
            side.run(until(lambda remote=remote: remote._link is None))
        for hosting in self.hostings:
            if not hosting.side.loop.is_closed():
                hosting.stop()
        for side in self.sides:
            side.close()
        shutil.rmtree(self.folder)
