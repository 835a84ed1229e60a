"""`bei serve --frontends N`: starts one engine process and N frontends on one port, and mends what dies.

Owns the processes, the listening sockets and the private folder of the socket and the metrics between them; never
touches a request. Reads no model: the engine process tells what it serves.
"""

import logging
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from openbei.engine.board import Board
from openbei.errors import ConfigError, OpenBeiError
from openbei.server.child import Child
from openbei.server.listen import listen_shared, url
from openbei.server.processes import EngineAt, Place, Plan, run_engine, run_frontend

RESTART_PAUSES_S = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)

log = logging.getLogger(__name__)

OnReady = Callable[[str, EngineAt], None]


def supervise(plan: Plan, on_ready: OnReady) -> None:
    """Serve with plan.server.frontends frontends until SIGTERM or SIGINT; return when what was in flight is answered.

    on_ready: called once, with the URL and what is served, when the engine process and all frontends are ready. What
    dies after that is started again, with pauses; what cannot start before it is raised. A second signal does not
    wait. Call it in the main thread. Raises ConfigError, ModelError, OSError.
    """
    if sys.platform != "linux":
        raise ConfigError(
            f"frontends needs Linux, whose kernel shares a port's connections out; this is {sys.platform}"
        )
    with tempfile.TemporaryDirectory(prefix="openbei-") as folder:  # mode 0700
        supervisor = Supervisor(plan, Path(folder), on_ready)
        try:
            supervisor.run()
        finally:
            supervisor.kill()


@dataclass(eq=False)
class Post:
    """One of the processes that there shall be. child: the one that there is, if any; due_s: when else to start one."""

    name: str
    start: Callable[[], Child]
    child: Child | None = None
    ready: bool = False
    num_failures: int = 0
    due_s: float = 0.0


class Supervisor:
    """The posts, and the loop that watches them."""

    def __init__(self, plan: Plan, folder: Path, on_ready: OnReady) -> None:
        num_frontends = plan.server.frontends
        self._plan, self._folder, self._on_ready = plan, folder, on_ready
        self._board, self._numbers = folder / "metrics", count()
        Board.create(self._board, 1 + num_frontends)
        self._listeners = listen_shared(plan.server.hostname, plan.server.port, num_frontends)
        self._url = url(self._listeners[0])
        self._engine = Post("engine", self._start_engine)
        self._frontends = [
            Post(f"frontend-{row}", partial(self._start_frontend, row)) for row in range(1, num_frontends + 1)
        ]
        self._at: EngineAt | None = None
        self._announced = self._stopping = False

    def run(self) -> None:
        """Start everything, and watch it until all is over."""
        signals = self._hear_signals()
        posts = [self._engine, *self._frontends]
        while not self._stopping or any(post.child for post in posts):
            pause_s = None if self._stopping else self._start_due(posts)
            by_pipe: dict[Any, Post] = {post.child.pipe: post for post in posts if post.child}
            for source in wait([*by_pipe, signals], pause_s):
                if source is signals:
                    for _ in signals.recv(64):
                        self._stop()
                elif by_pipe[source].child is not None:
                    self._hear(by_pipe[source])

    def kill(self) -> None:
        """End every process that is left, at once, and close the port."""
        for listener in self._listeners:
            listener.close()
        children = [post.child for post in (self._engine, *self._frontends) if post.child is not None]
        for child in children:
            child.process.kill()
        for child in children:
            child.reap()
        for post in (self._engine, *self._frontends):
            post.child = None

    def _hear_signals(self) -> socket.socket:
        """A socket that gets a byte for every signal to stop."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        signal.set_wakeup_fd(theirs.detach())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        return ours

    # Start

    def _start_engine(self) -> Child:
        path = self._folder / f"engine-{next(self._numbers)}"
        return Child("engine", run_engine, (self._plan, self._board, path))

    def _start_frontend(self, row: int) -> Child:
        listener = self._listeners[row - 1].fileno()
        child = Child(f"frontend-{row}", run_frontend, (self._plan, Place(self._board, row, listener)), [listener])
        if self._at is not None:
            child.tell(self._at)
        return child

    def _start_due(self, posts: list[Post]) -> float | None:
        """Start what is due -> the seconds until the next one is, None if all run."""
        for post in posts:
            if post.child is None and post.due_s <= time.monotonic():
                post.child = post.start()
        waits_s = [post.due_s - time.monotonic() for post in posts if post.child is None]
        return max(0.0, min(waits_s)) if waits_s else None

    # Watch

    def _hear(self, post: Post) -> None:
        assert post.child is not None
        try:
            message = post.child.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._ended(post)
            return
        if isinstance(message, Exception):
            self._failed(message)
            return
        post.ready, post.num_failures = True, 0
        if isinstance(message, EngineAt):
            self._take_over(message)
        if self._at and not self._announced and all(one.ready for one in (self._engine, *self._frontends)):
            self._announced = True
            self._on_ready(self._url, self._at)

    def _take_over(self, at: EngineAt) -> None:
        """An engine is ready: tell the frontends, or replace them if it serves something else than the last one."""
        changed, self._at = self._at is not None and self._at.served != at.served, at
        for post in self._frontends:
            if post.child is not None and changed:
                post.child.process.terminate()
            elif post.child is not None:
                post.child.tell(at)

    def _failed(self, error: Exception) -> None:
        """A process says why it cannot start; it ends by itself."""
        if not self._announced:
            raise error
        log.error("%s", error)

    def _ended(self, post: Post) -> None:
        assert post.child is not None
        code, post.child, post.ready = post.child.reap(), None, False
        if self._stopping:
            self._let_engine_go()
            return
        if not self._announced:
            raise OpenBeiError(f"the {post.name} process ended with {code} before it was ready")
        pause_s = RESTART_PAUSES_S[min(post.num_failures, len(RESTART_PAUSES_S) - 1)]
        post.num_failures, post.due_s = post.num_failures + 1, time.monotonic() + pause_s
        log.error("the %s process ended with %d; starting another after %.1f s", post.name, code, pause_s)

    # Stop

    def _stop(self) -> None:
        """The first time: let the frontends drain, then the engine process end. The second time: end them all."""
        if self._stopping:
            self.kill()
            return
        self._stopping = True
        for listener in self._listeners:  # those that drain have it too, and then nobody listens
            listener.close()
        for post in self._frontends:
            if post.child is not None:
                post.child.process.terminate()
        self._let_engine_go()

    def _let_engine_go(self) -> None:
        """The frontends are through: so is the engine process."""
        if self._engine.child is not None and not any(post.child for post in self._frontends):
            if self._engine.ready:
                self._engine.child.tell(None)
            else:
                self.kill()
