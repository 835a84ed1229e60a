"""What runs in each process of a server with frontends: one engine process, and the frontends.

Each imports only what it needs: a frontend neither a model's weights nor OpenVINO, the engine process no web framework.
Owns their starts and ends; the supervisor (supervisor.py) owns how many there are, and what happens when one dies.
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openbei.config import EngineConfig, ServerConfig
from openbei.engine.request import EngineInfo
from openbei.errors import OpenBeiError
from openbei.server.child import follow

if TYPE_CHECKING:
    from openbei.engine.executor import Executor
    from openbei.engine.remote import RemoteCore
    from openbei.engine.settle import Served
    from openbei.weights.checkpoint import Checkpoint

HUNG = 70  # exit status
ENGINE_ROW = 0  # of the board with the metrics; a frontend has the row of its number, from 1

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a server with frontends is to be. All of it is pickled.

    set_up: called first in each process. describe: what a person wants to know of what is served. open_model: the
    config -> the model, and what makes an executor for it; None is engine.start.open_model.
    """

    engine: EngineConfig
    server: ServerConfig
    set_up: Callable[[], None]
    describe: "Callable[[Checkpoint, EngineConfig, EngineInfo], dict[str, Any]]"
    open_model: "Callable[[EngineConfig], tuple[Checkpoint, Callable[[], Executor]]] | None" = None


@dataclass(frozen=True, slots=True)
class EngineAt:
    """An engine process that is ready, the socket that it listens on, and what it serves. facts: Plan.describe's."""

    path: Path
    served: "Served"
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """A frontend's own: its row of the board in that file, and the file descriptor of its listening socket."""

    board: Path
    row: int
    listener: int


def run_engine(pipe: "Connection[Any, Any]", plan: Plan, board: Path, path: Path) -> None:
    """Be the engine process: load, compile, say an EngineAt or an error, and compute until told to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends after the frontends, who have work in it
    import uvloop

    loop = uvloop.new_event_loop()
    follow(pipe, lambda _: loop.call_soon_threadsafe(loop.stop))
    plan.set_up()

    from openbei.engine import start
    from openbei.engine.board import Board
    from openbei.engine.host import Host
    from openbei.engine.metrics import Metrics
    from openbei.engine.settle import limited

    try:
        checkpoint, make_executor = (plan.open_model or start.open_model)(plan.engine)
        metrics = Metrics(limited(checkpoint.text, plan.engine).max_length, Board.open(board, ENGINE_ROW))
        core, served = start.start_core(checkpoint, plan.engine, make_executor, metrics)
        core.on_hang = partial(os._exit, HUNG)  # nothing else ends a call that hangs; the supervisor starts another
        loop.run_until_complete(Host(core).listen(path))
    except (OpenBeiError, OSError) as error:
        pipe.send(error)
        return
    pipe.send(EngineAt(path, served, plan.describe(checkpoint, plan.engine, served.info)))
    loop.run_forever()
    core.close()


def run_frontend(pipe: "Connection[Any, Any]", plan: Plan, place: Place) -> None:
    """Be a frontend: wait for an EngineAt, listen, say None or an error, and serve until SIGTERM.

    Each further EngineAt is an engine that took over from one that died.
    """
    plan.set_up()
    from openbei.engine.board import Board
    from openbei.engine.engine import Engine
    from openbei.engine.metrics import Metrics
    from openbei.engine.remote import RemoteCore
    from openbei.server.serve import run

    remote = RemoteCore(plan.engine.max_concurrent_requests)
    try:
        first: EngineAt = pipe.recv()
    except EOFError:
        return
    try:
        metrics = Metrics(first.served.text.max_length, Board.open(place.board, place.row))
        engine = Engine(first.served, remote, metrics)
    except OpenBeiError as error:
        pipe.send(error)
        return

    def on_ready() -> None:
        loop = asyncio.get_running_loop()
        follow(pipe, lambda at: asyncio.run_coroutine_threadsafe(_join(remote, at.path), loop))
        pipe.send(None)

    with socket.socket(fileno=place.listener) as listener:
        run(engine, plan.server, listener, on_ready, lambda: _join(remote, first.path))


async def _join(remote: "RemoteCore", path: Path) -> None:
    """Connect to an engine; where that fails it has just died, and the supervisor will tell of another."""
    try:
        await remote.connect(path)
    except OSError as error:
        log.warning("the engine cannot be reached: %s", error)
