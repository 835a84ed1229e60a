"""`bei serve --frontends N`: starts an engine process a model and N frontends on one port, and mends what dies.

Owns the processes, the listening sockets and the private folder of the sockets and the metrics between them; never
touches a request. Reads no model: an engine process tells what it serves. Models come and go while it runs: a frontend
asks for it on behalf of a client, and is told when all frontends have it, or have it no more.
"""

import logging
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from openbei.config import EngineConfig
from openbei.engine.board import Board
from openbei.engine.budget import Budget
from openbei.engine.executor import RESTART_PAUSES_S
from openbei.engine.loading import Configure, as_answer
from openbei.engine.models import unknown
from openbei.errors import (
    ConfigError,
    Conflict,
    Forbidden,
    InternalError,
    LoadFailed,
    OpenBeiError,
    OutOfMemory,
    RequestError,
    Unhealthy,
)
from openbei.server.child import Child
from openbei.server.listen import listen_shared, url
from openbei.server.processes import (
    All,
    Answer,
    AskLoad,
    AskUnload,
    EngineAt,
    Has,
    Leave,
    Left,
    Place,
    Plan,
    Refused,
    Runs,
    Wants,
    run_engine,
    run_frontend,
)

log = logging.getLogger(__name__)

OnReady = Callable[..., None]


def no_more(model: str, name: str | None, revision: str | None) -> EngineConfig:
    """The configs of a server that loads nothing after its start."""
    raise Forbidden("this server loads no models")


def supervise(plan: Plan, on_ready: OnReady, configure: Configure = no_more) -> None:
    """Serve with plan.server.frontends frontends until SIGTERM or SIGINT; return when what was in flight is answered.

    on_ready: called once, with the URL and an EngineAt for each model, when all processes are ready. What dies after
    that is started again, with pauses; what cannot start before it is raised. A second signal does not wait.
    configure: what a model that is asked for later is loaded with. Call it in the main thread. Raises ConfigError,
    ModelError, OSError.
    """
    if sys.platform != "linux":
        raise ConfigError(
            f"frontends needs Linux, whose kernel shares a port's connections out; this is {sys.platform}"
        )
    with tempfile.TemporaryDirectory(prefix="openbei-") as folder:  # mode 0700
        supervisor = Supervisor(plan, Path(folder), on_ready, configure)
        try:
            supervisor.run()
        finally:
            supervisor.kill()


@dataclass(eq=False)
class Post:
    """One of the processes that there shall be. child: the one that there is, if any; due_s: when else to start one.

    heard_s: when it said something last.
    """

    name: str
    start: Callable[[], Child]
    child: Child | None = None
    ready: bool = False
    num_failures: int = 0
    due_s: float = 0.0
    heard_s: float = 0.0


@dataclass(eq=False)
class Model(Post):
    """The post of an engine process. served_as: its name, once that is known, till then what was asked for.

    at: the process that was ready last. board: where its metrics lie. asker: the frontend, and its question, that waits
    for it to come or to go. unheard: the frontends that have not said yet that they have it, or have it no more.
    error: why it did not come.
    """

    served_as: str = ""
    board: Path = Path()
    at: EngineAt | None = None
    leaving: bool = False
    asker: tuple[Child, int] | None = None
    unheard: set[Child] = field(default_factory=set)
    error: RequestError | None = None

    @property
    def is_served(self) -> bool:
        """True while every frontend has it."""
        return self.at is not None and not self.leaving and not self.unheard


class Supervisor:
    """The posts, and the loop that watches them."""

    def __init__(self, plan: Plan, folder: Path, on_ready: OnReady, configure: Configure) -> None:
        num_frontends = plan.server.frontends
        self._plan, self._folder, self._on_ready, self._configure = plan, folder, on_ready, configure
        self._numbers, self._budget = count(), Budget(plan.server.max_model_bytes)
        self._listeners = listen_shared(plan.server.hostname, plan.server.port, num_frontends)
        self._url = url(self._listeners[0])
        self._several = len(plan.others) > 0
        name = None if self._several else "engine"
        self._models = [self._model(config, name) for config in (plan.engine, *plan.others)]
        self._frontends = [
            Post(f"frontend-{row}", partial(self._start_frontend, row)) for row in range(1, num_frontends + 1)
        ]
        self._introduced = self._announced = self._stopping = False

    def run(self) -> None:
        """Start everything, and watch it until all is over."""
        signals = self._hear_signals()
        while not self._stopping or any(post.child for post in self._posts):
            pauses_s = self._end_hanging(), None if self._stopping else self._start_due()
            pause_s = min((one for one in pauses_s if one is not None), default=None)
            by_pipe: dict[Any, Post] = {post.child.pipe: post for post in self._posts if post.child}
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
        children = [post.child for post in self._posts if post.child is not None]
        for child in children:
            child.process.kill()
        for child in children:
            child.reap()
        for post in self._posts:
            post.child = None

    @property
    def _posts(self) -> list[Post]:
        return [*self._models, *self._frontends]

    def _children(self) -> list[Child]:
        """The frontends that there are."""
        return [post.child for post in self._frontends if post.child is not None]

    def _hear_signals(self) -> socket.socket:
        """A socket that gets a byte for every signal to stop."""
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        signal.set_wakeup_fd(theirs.detach())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        return ours

    # Start

    def _model(self, config: EngineConfig, name: str | None = None) -> Model:
        """The post of one more model. name: of its process."""
        asked = config.served_model_name or config.model_id or ""
        board = self._folder / f"metrics-{next(self._numbers)}"
        Board.create(board, 1 + self._plan.server.frontends)
        plan = replace(self._plan, engine=config, others=())
        name = name or f"engine-{asked}"
        return Model(name, partial(self._start_engine, name, plan, board), served_as=asked, board=board)

    def _start_engine(self, name: str, plan: Plan, board: Path) -> Child:
        path = self._folder / f"engine-{next(self._numbers)}"
        return Child(name, run_engine, (plan, board, path))

    def _start_frontend(self, row: int) -> Child:
        listener = self._listeners[row - 1].fileno()
        child = Child(f"frontend-{row}", run_frontend, (self._plan, Place(row, listener)), [listener])
        if self._introduced:
            child.tell(self._all())
        return child

    def _all(self) -> All:
        return All(tuple(one.at for one in self._models if one.at and not one.leaving), self._several)

    def _start_due(self) -> float | None:
        """Start what is due -> the seconds until the next one is, None if all run."""
        absent = [post for post in self._posts if post.child is None and not (isinstance(post, Model) and post.leaving)]
        for post in absent:
            if post.due_s <= time.monotonic():
                post.child = post.start()
        waits_s = [post.due_s - time.monotonic() for post in absent if post.child is None]
        return max(0.0, min(waits_s)) if waits_s else None

    # Watch

    def _end_hanging(self) -> float | None:
        """Kill the frontends that hang: they will be missed -> the seconds until another might, None if none can."""
        left_s = []
        for post in self._frontends:
            if post.child is None or not post.ready or post.child.pipe.poll():
                continue
            left_s.append(post.heard_s + self._plan.patience_s - time.monotonic())
            if left_s[-1] <= 0:
                log.error("the %s process has said nothing for %g s: it hangs", post.name, self._plan.patience_s)
                post.child.process.kill()
                post.ready = False
        return max(0.0, min(left_s)) if left_s else None

    def _hear(self, post: Post) -> None:
        assert post.child is not None
        try:
            message, post.heard_s = post.child.pipe.recv(), time.monotonic()
        except (EOFError, ConnectionResetError):
            self._ended(post)
            return
        if isinstance(post, Model):
            self._hear_engine(post, message)
        else:
            self._hear_frontend(post, post.child, message)
        ready = all(one.ready for one in self._posts)
        if self._introduced and not self._announced and ready:
            self._announced = True
            self._on_ready(self._url, *self._all().engines)

    def _hear_engine(self, model: Model, message: Wants | EngineAt | Exception) -> None:
        match message:
            case Wants():
                self._grant(model, message)
            case EngineAt():
                model.ready, model.num_failures = True, 0
                self._take_over(model, message)
            case _:
                self._failed(model, message)

    def _hear_frontend(self, post: Post, child: Child, message: Any) -> None:
        match message:
            case None:
                post.ready, post.num_failures = True, 0
            case Runs():
                return
            case AskLoad() | AskUnload():
                self._asked(child, message)
            case Exception():
                self._failed(None, message)
            case _:
                for model in [one for one in self._models if one.served_as == message.name]:
                    self._told(model, child, message)

    def _told(self, model: Model, child: Child, message: Has | Left | Refused) -> None:
        """A frontend has a model, or has it no more, or cannot have it."""
        if isinstance(message, Refused):
            self._failed_in_frontend(model, message.error)
        elif model.leaving == isinstance(message, Left):
            self._heard(model, child)

    def _grant(self, model: Model, wants: Wants) -> None:
        """A model was read, so that its name and its size are known: let it be loaded, or not."""
        try:
            self._check_name(wants.name, but=model)
            model.served_as = wants.name
            self._budget.take(wants.name, wants.need)
        except (Conflict, OutOfMemory) as error:
            if not self._announced:
                raise ConfigError(str(error)) from None
            assert model.child is not None
            model.child.process.kill()
            self._failed(model, error)
            return
        assert model.child is not None
        model.child.tell(True)

    def _check_name(self, name: str, but: Model | None = None) -> None:
        if any(one.served_as == name for one in self._models if one is not but):
            raise Conflict(f"there is a model {name!r} already, or it is being loaded or unloaded")

    def _take_over(self, model: Model, at: EngineAt) -> None:
        """An engine is ready: tell the frontends, or replace them if it serves something else than the last one."""
        new, changed, model.at = model.at is None, model.at is not None and model.at.served != at.served, at
        self._budget.loaded(model.served_as)
        if not self._introduced:
            self._introduced = all(one.at for one in self._models)
            for child in self._children() if self._introduced else []:
                child.tell(self._all())
            return
        for child in self._children():
            if changed:
                child.process.terminate()
            elif not model.leaving:
                child.tell(at)
        if new:
            self._several = True
            model.unheard = {*self._children()}

    def _failed(self, model: Model | None, error: Exception) -> None:
        """A process says why it cannot start; it ends by itself."""
        if not self._announced:
            raise error
        if model is not None and model.at is None:
            log.warning("not loaded: %r: %s", model.served_as, error)
            model.error = as_answer(error)  # told once it is gone
        else:
            log.error("%s", error)

    def _ended(self, post: Post) -> None:
        assert post.child is not None
        child, post.child, post.ready = post.child, None, False
        code = child.reap()
        if isinstance(post, Model):
            self._budget.loaded(post.served_as)  # whatever it had taken is free again
        else:
            self._frontend_ended(child)
        if self._stopping:
            self._let_engines_go()
        elif isinstance(post, Model) and (post.leaving or (self._announced and post.at is None)):
            self._engine_gone(post, code)
        else:
            self._start_again(post, code)

    def _start_again(self, post: Post, code: int) -> None:
        if not self._announced:
            raise OpenBeiError(f"the {post.name} process ended with {code} before it was ready")
        pause_s = RESTART_PAUSES_S[min(post.num_failures, len(RESTART_PAUSES_S) - 1)]
        post.num_failures, post.due_s = post.num_failures + 1, time.monotonic() + pause_s
        log.error("the %s process ended with %d; starting another after %.1f s", post.name, code, pause_s)

    def _frontend_ended(self, child: Child) -> None:
        """It takes its questions along, and has nothing any more."""
        for model in [*self._models]:
            if model.asker is not None and model.asker[0] is child:
                model.asker = None
            self._heard(model, child)

    # Come and go

    def _asked(self, child: Child, question: AskLoad | AskUnload) -> None:
        """A frontend asks for a model, or for its end: begin, or say why not."""
        try:
            if self._stopping:
                raise Unhealthy("unhealthy: draining")
            model = self._let_in(question) if isinstance(question, AskLoad) else self._let_go(question.name)
            model.asker = child, question.number
        except Exception as error:  # a bug must not take the whole server along
            if not isinstance(error, OpenBeiError | OSError):
                log.exception("internal error")
                error = InternalError("internal error")
            child.tell(answer_of(question.number, as_answer(error)))

    def _let_in(self, question: AskLoad) -> Model:
        config = self._configure(question.model, question.name, question.revision)
        self._check_name(config.served_model_name or config.model_id or "")
        model = self._model(config)
        self._models.append(model)
        return model

    def _let_go(self, name: str) -> Model:
        served = {one.served_as: one for one in self._models if one.is_served}
        if name not in served:
            raise unknown(name, served)
        if len(served) == 1:
            raise Conflict(f"{name!r} is the only model: a server has at least one")
        self._dismiss(served[name])
        return served[name]

    def _dismiss(self, model: Model) -> None:
        """Have all frontends let go of a model, and then its process end."""
        model.leaving, model.unheard = True, {*self._children()}
        for child in model.unheard:
            child.tell(Leave(model.served_as))
        self._end_if_left(model)

    def _failed_in_frontend(self, model: Model, error: OpenBeiError) -> None:
        """A model came that a frontend cannot read texts for."""
        log.warning("not loaded: %r: %s", model.served_as, error)
        model.error = as_answer(error)
        if not model.leaving:
            self._dismiss(model)

    def _heard(self, model: Model, child: Child) -> None:
        """One frontend less that has not said that it has a model, or has it no more."""
        if child not in model.unheard:
            return
        model.unheard.discard(child)
        if model.leaving:
            self._end_if_left(model)
        elif not model.unheard:
            log.info("loaded %r", model.served_as)
            self._answer(model)

    def _end_if_left(self, model: Model) -> None:
        if model.unheard:
            return
        if model.child is None:
            self._engine_gone(model, 0)
        elif model.ready:
            model.child.tell(None)
        else:  # it was about to come back
            model.child.process.kill()

    def _engine_gone(self, model: Model, code: int) -> None:
        """A model that was to go has gone, or one that was to come has not."""
        if model.unheard:
            return
        self._models.remove(model)
        self._budget.give_back(model.served_as)
        model.board.unlink()
        came_and_went = model.leaving and model.error is None
        self._answer(model, None if came_and_went else model.error or LoadFailed(f"its process ended with {code}"))
        if came_and_went:
            log.info("unloaded %r", model.served_as)

    def _answer(self, model: Model, error: RequestError | None = None) -> None:
        """Answer whoever asked for a model, if anybody still does."""
        if model.asker is not None:
            (child, number), model.asker = model.asker, None
            child.tell(Answer(number, model.served_as) if error is None else answer_of(number, error))

    # Stop

    def _stop(self) -> None:
        """The first time: let the frontends drain, then the engine processes end. The second time: end them all."""
        if self._stopping:
            self.kill()
            return
        self._stopping = True
        for listener in self._listeners:  # those that drain have it too, and then nobody listens
            listener.close()
        for model in self._models:
            self._answer(model, Unhealthy("unhealthy: draining"))
        for child in self._children():
            child.process.terminate()
        self._let_engines_go()

    def _let_engines_go(self) -> None:
        """The frontends are through: so are the engine processes."""
        if self._children():
            return
        for model in self._models:
            if model.child is not None and model.ready:
                model.child.tell(None)
            elif model.child is not None:
                model.child.process.kill()


def answer_of(number: int, error: RequestError) -> Answer:
    """An error -> the answer that says so."""
    return Answer(number, error=(type(error), str(error)))
