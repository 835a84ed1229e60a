"""What runs in each process of a server with frontends: an engine process a model, and the frontends.

Each imports only what it needs: a frontend neither a model's weights nor OpenVINO, the engine process no web framework.
Owns their starts and ends; the supervisor (supervisor.py) owns how many there are, and what happens when one dies.
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from openbei.config import EngineConfig, ServerConfig
from openbei.engine.request import EngineInfo
from openbei.errors import Forbidden, OpenBeiError
from openbei.server.child import LOOKS, follow, started
from openbei.server.messages import All, AskLoad, EngineAt, Runs, Wants

if TYPE_CHECKING:
    from openbei.engine.executor import Executor
    from openbei.engine.loading import Configure
    from openbei.weights.checkpoint import Checkpoint

HUNG = 70  # exit status
ENGINE_ROW = 0  # of the board with the metrics; a frontend has the row of its number, from 1

log = logging.getLogger(__name__)


def no_more(model: str, name: str | None, revision: str | None) -> EngineConfig:
    """The config of a model that is asked for later, where none is loaded then."""
    raise Forbidden("this server loads no models")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a server with frontends is to be. All of it is pickled.

    engine: the first model's. others: those beside it. set_up: called first in each process. describe: what a person
    wants to know of what is served. open_model: the config -> the model, and what makes an executor for it; None is
    engine.start.open_model. configure: what a model that is asked for later is loaded with. patience_s: a frontend
    that does nothing for as long hangs. Beside what its loop does it is long: the slowest, writing an answer of many
    megabytes, takes a second. engine_patience_s: the same for an engine process, which may wait for a disk.
    """

    engine: EngineConfig
    server: ServerConfig
    set_up: Callable[[], None]
    describe: "Callable[[Checkpoint, EngineConfig, EngineInfo], dict[str, Any]]"
    open_model: "Callable[[EngineConfig], tuple[Checkpoint, Callable[[], Executor]]] | None" = None
    others: tuple[EngineConfig, ...] = ()
    configure: "Configure" = no_more
    patience_s: float = 30.0
    engine_patience_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Place:
    """A frontend's own: its row of every board, and the file descriptor of its listening socket."""

    row: int
    listener: int


def run_engine(
    pipe: "Connection[Any, Any]", plan: Plan, wanted: EngineConfig | AskLoad, board: Path, path: Path
) -> None:
    """Be an engine process: read, ask whether there is room, compile, say an EngineAt or an error, and compute until
    told to end.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends after the frontends, who have work in it
    import uvloop

    loop = uvloop.new_event_loop()
    granted: SimpleQueue[None] = SimpleQueue()

    def on_message(message: Any) -> None:
        if message:
            granted.put(None)
        else:
            loop.call_soon_threadsafe(loop.stop)

    follow(pipe, on_message)
    plan.set_up()

    from openbei.engine import start
    from openbei.engine.board import Board
    from openbei.engine.host import Host
    from openbei.engine.metrics import Metrics
    from openbei.engine.settle import limited

    try:
        config = wanted
        if isinstance(config, AskLoad):
            config = plan.configure(config.model, config.name, config.revision)
            pipe.send(Wants(config.served_model_name or config.model_id or ""))
        checkpoint, make_executor = (plan.open_model or start.open_model)(config)
        name = config.served_model_name or checkpoint.model_id
        pipe.send(Wants(name, start.need_of(checkpoint, config)))
        granted.get()
        metrics = Metrics(limited(checkpoint.text, config).max_length, Board.open(board, ENGINE_ROW))
        core, served = start.start_core(checkpoint, config, make_executor, metrics)
        core.on_hang = partial(os._exit, HUNG)  # nothing else ends a call that hangs; the supervisor starts another
        loop.run_until_complete(Host(core).listen(path))
    except (OpenBeiError, OSError) as error:
        pipe.send(error)
        return
    started()
    pipe.send(EngineAt(path, served, plan.describe(checkpoint, config, served.info), board))
    keep_saying(pipe, loop, plan.engine_patience_s / LOOKS)
    loop.run_forever()
    core.close()


def keep_saying(pipe: "Connection[Any, Any]", loop: asyncio.AbstractEventLoop, pause_s: float) -> None:
    """Say that an event loop runs, from that loop, again and again."""
    pipe.send(Runs())
    loop.call_later(pause_s, keep_saying, pipe, loop, pause_s)


def obeyed(done: Future[None]) -> None:
    """A frontend that could not do what it was told is of no more use: it drains, and another is started."""
    if not done.cancelled() and (error := done.exception()) is not None:
        log.error("internal error", exc_info=error)
        os.kill(os.getpid(), signal.SIGTERM)


def run_frontend(pipe: "Connection[Any, Any]", plan: Plan, place: Place) -> None:
    """Be a frontend: wait for All, listen, say None or an error, and serve until SIGTERM.

    Each further EngineAt is a model that was loaded, or an engine that took over from one that died.
    """
    plan.set_up()
    from openbei.server.remote_models import RemoteModels
    from openbei.server.serve import run

    try:
        while not pipe.poll(plan.patience_s / LOOKS):  # the engines may take their time
            pipe.send(Runs())
        first: All = pipe.recv()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    models = RemoteModels(pipe.send, place.row)
    try:
        for at in first.engines:
            models.add(models.make(at))
    except OpenBeiError as error:
        pipe.send(error)
        return
    models.several = first.several

    async def before() -> None:
        for at in first.engines:
            await models.join(at)

    def on_ready() -> None:
        loop = asyncio.get_running_loop()

        def on_message(message: Any) -> None:
            asyncio.run_coroutine_threadsafe(models.hear(message), loop).add_done_callback(obeyed)

        follow(pipe, on_message)
        started()
        pipe.send(None)
        keep_saying(pipe, loop, plan.patience_s / LOOKS)

    with socket.socket(fileno=place.listener) as listener:
        run(models, plan.server, listener, on_ready, before)
