"""`bei serve --frontends N`: starts an engine process a model and N frontends on one port, and mends what dies.

Owns the frontends' posts, the listening sockets, the private folder of the sockets and the metrics between processes,
and what follows when one ends; never touches a request. Reads no model: an engine process tells what it serves.
"""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from openbei.errors import ConfigError, Conflict, OpenBeiError, OutOfMemory
from openbei.server import posts
from openbei.server.child import Child
from openbei.server.listen import listen_shared, url
from openbei.server.messages import AskLoad, AskUnload, EngineAt, Has, Left, Refused, Runs, Wants
from openbei.server.model_posts import Model, ModelPosts
from openbei.server.posts import Ended, Post, Said, Signal
from openbei.server.processes import Place, Plan, run_frontend

log = logging.getLogger(__name__)

OnReady = Callable[..., None]


def supervise(plan: Plan, on_ready: OnReady) -> None:
    """Serve with plan.server.frontends frontends until SIGTERM or SIGINT; return when what was in flight is answered.

    on_ready: called once, with the URL and an EngineAt for each model, when all processes are ready. What dies after
    that is started again, with pauses; what cannot start before it is raised. A second signal does not wait. Call it
    in the main thread. Raises ConfigError, ModelError, OSError.
    """
    if sys.platform != "linux":
        raise ConfigError(
            f"frontends needs Linux, whose kernel shares a port's connections out; this is {sys.platform}"
        )
    with tempfile.TemporaryDirectory(prefix="openbei-") as folder, _kept(folder):  # mode 0700
        supervisor = Supervisor(plan, Path(folder), on_ready)
        try:
            supervisor.run()
        finally:
            supervisor.kill()


@contextlib.contextmanager
def _kept(folder: str) -> Iterator[None]:
    """Keep systemd-tmpfiles, which clears /tmp of what is old, from a folder: it passes over those that are locked."""
    import fcntl  # which not every system has

    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    try:
        yield
    finally:
        os.close(lock)


class Supervisor:
    """All posts of a server: what happens to them, and what follows."""

    def __init__(self, plan: Plan, folder: Path, on_ready: OnReady) -> None:
        num_frontends = plan.server.frontends
        self._plan, self._on_ready = plan, on_ready
        self._listeners = listen_shared(plan.server.hostname, plan.server.port, num_frontends)
        self._url = url(self._listeners[0])
        self._models = ModelPosts(plan, folder, self._children)
        self._frontends = [
            Post(f"frontend-{row}", partial(self._start_frontend, row), plan.patience_s)
            for row in range(1, num_frontends + 1)
        ]
        self._announced = self._stopping = False

    def run(self) -> None:
        """Start everything, and watch it until all is over."""
        signals = posts.hear_signals()
        while not self._stopping or any(post.child for post in self._posts):
            for event in posts.watch(self._posts, signals, starting=not self._stopping):
                match event:
                    case Signal():
                        self._stop()
                    case Said(post, child, message):
                        self._hear(post, child, message)
                        self._announce()
                    case Ended(post, child, code):
                        self._ended(post, child, code)

    def kill(self) -> None:
        """End every process that is left, at once, and close the port."""
        for listener in self._listeners:
            listener.close()
        posts.kill(self._posts)

    @property
    def _posts(self) -> list[Post]:
        return [*self._models.posts, *self._frontends]

    def _children(self) -> list[Child]:
        """The frontends that there are."""
        return [post.child for post in self._frontends if post.child is not None]

    def _start_frontend(self, row: int) -> Child:
        listener = self._listeners[row - 1].fileno()
        child = Child(f"frontend-{row}", run_frontend, (self._plan, Place(row, listener)), [listener])
        if self._models.introduced:
            child.tell(self._models.all())
        return child

    def _hear(self, post: Post, child: Child, message: Any) -> None:
        match post, message:
            case Model() as model, Wants():
                self._grant(model, message)
            case Model() as model, EngineAt():
                model.is_ready()
                self._models.take_over(model, message)
            case _, None:
                post.is_ready()
            case _, AskLoad() | AskUnload():
                self._models.asked(child, message)
            case _, Has() | Left() | Refused():
                self._models.told(child, message)
            case _, Exception():
                self._failed(post, message)
            case _, Runs():  # and its post has noted that it said something
                pass

    def _announce(self) -> None:
        """Once all processes are ready, say so."""
        if self._models.introduced and not self._announced and all(one.ready for one in self._posts):
            self._announced, self._models.closed = True, None
            self._on_ready(self._url, *self._models.all().engines)

    def _grant(self, model: Model, wants: Wants) -> None:
        """Let a model be loaded, or not."""
        try:
            self._models.grant(model, wants)
        except (Conflict, OutOfMemory) as error:
            if not self._announced:
                raise ConfigError(str(error)) from None
            model.end()
            self._failed(model, error)

    def _failed(self, post: Post, error: Exception) -> None:
        """A process says why it cannot start; it ends by itself."""
        if not self._announced:
            raise error
        if isinstance(post, Model) and post.at is None:
            post.not_loaded(error)
        else:
            log.error("%s", error)

    def _ended(self, post: Post, child: Child | None, code: int) -> None:
        if isinstance(post, Model):
            self._models.ended(post)
        elif child is not None:
            self._models.forget(child)
        if self._stopping:
            self._let_engines_go()
        elif isinstance(post, Model) and (post.leaving or (self._announced and post.at is None)):
            self._models.gone(post, code)
        elif not self._announced:
            raise OpenBeiError(f"the {post.name} process ended with {code} before it was ready")
        else:
            post.start_again(code)

    def _stop(self) -> None:
        """The first time: let the frontends drain, then the engine processes end. The second time: end them all."""
        if self._stopping:
            self.kill()
            return
        self._stopping = True
        for listener in self._listeners:  # those that drain have it too, and then nobody listens
            listener.close()
        self._models.drain()
        for child in self._children():
            child.process.terminate()
        self._let_engines_go()

    def _let_engines_go(self) -> None:
        """The frontends are through: so are the engine processes."""
        if self._children():
            return
        for model in self._models.posts:
            model.end()
