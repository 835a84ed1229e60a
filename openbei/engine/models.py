"""The models of a server: an engine for each name, and which of them a request means.

Owns the table and the choice; never touches requests or HTTP. How a model comes in and leaves is up to those who derive
from it. Any thread may read: the table is replaced, never changed.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from openbei.engine.metrics import render_all
from openbei.engine.request import EngineInfo, Task
from openbei.errors import Conflict, Forbidden, UnknownModel

if TYPE_CHECKING:
    from openbei.engine.engine import Engine

T = TypeVar("T")
Asked = Task | Literal["any"]  # what a model must be able to do, if no name says which one is meant


class Models:
    """Engines by served name, in the order in which they came.

    several: there are or were more than one. Then names count: a name that no model has is refused. One model alone
    answers to any.
    """

    def __init__(self, *engines: "Engine") -> None:
        self._changing = threading.RLock()
        self._engines: Mapping[str, Engine] = {}
        self._leaving: dict[str, Engine] = {}
        self._ending: set[Future[None]] = set()
        self.several = False
        for engine in engines:
            self.add(engine)

    @property
    def all(self) -> "tuple[Engine, ...]":
        """Every engine."""
        return tuple(self._engines.values())

    @property
    def first(self) -> "Engine":
        """The engine that came first of those that are left."""
        return next(iter(self._engines.values()))

    @property
    def names(self) -> tuple[str, ...]:
        """Every name."""
        return tuple(self._engines)

    def get(self, name: str | None) -> "Engine | None":
        """The engine of that very name, if there is one."""
        return self._engines.get(name or "")

    def named(self, name: str) -> "Engine":
        """The engine of that very name. Raises UnknownModel."""
        engine = self._engines.get(name)
        if engine is None:
            raise unknown(name, self._engines)
        return engine

    def choose(self, name: str | None, asked: Asked) -> "Engine":
        """A request's name of a model, if it has one -> the engine that is meant. Raises UnknownModel.

        Without a name: the first whose own task is asked for, else the first that can do it, else the first of all.
        """
        if not self.several:
            return self.first
        if name:
            return self.named(name)
        engines = self.all
        own = [engine for engine in engines if engine.info.tasks[0] == asked]
        able = [engine for engine in engines if asked in engine.info.tasks]
        return (own or able or engines)[0]

    def add(self, engine: "Engine") -> None:
        """Take in one more. Raises Conflict if its name is taken."""
        name = engine.info.served_model_name
        with self._changing:
            if name in self._engines:
                raise Conflict(f"a model {name!r} is served already")
            self._engines = {**self._engines, name: engine}
            self.several |= len(self._engines) > 1

    def remove(self, name: str) -> "Engine":
        """Take one out; its requests are not its business. Raises UnknownModel, Conflict if it is the last one."""
        with self._changing:
            engine = self.named(name)
            if len(self._engines) == 1:
                raise Conflict(f"{name!r} is the only model: a server has at least one")
            self._engines = {other: one for other, one in self._engines.items() if other != name}
        return engine

    def troubles(self, *engines: "Engine") -> list[str]:
        """What keeps engines from being ready, with their names where there are several; empty if all are."""
        return [
            f"{engine.info.served_model_name} is {engine.status}" if self.several else engine.status
            for engine in engines
            if engine.status != "ready"
        ]

    def render(self) -> bytes:
        """All metrics -> Prometheus text; where there are several models, each series says whose it is."""
        if not self.several:
            return self.first.metrics.render()
        return render_all({name: engine.metrics for name, engine in self._engines.items()})

    async def load(self, model: str, name: str | None = None, revision: str | None = None) -> EngineInfo:
        """MODEL, as `bei serve` takes it, and the name to serve it under -> what it is, once it answers.

        Raises Conflict, LoadFailed, OutOfMemory, Unhealthy.
        """
        raise Forbidden("this server loads no models")

    async def unload(self, name: str) -> None:
        """Have one answer what it was asked, and free its memory. Raises UnknownModel, Conflict."""
        raise Forbidden("this server unloads no models")

    def let_go(self, name: str) -> "Future[None]":
        """Take one out; the future is done when it has answered what it was asked, and is gone.

        Raises UnknownModel, Conflict.
        """
        with self._changing:  # who closes finds it in one of the two places
            self._leaving[name] = self.remove(name)
            left = in_thread(self._end, name)
            self._ending.add(left)
        left.add_done_callback(self._ending.discard)
        return left

    def _end(self, name: str) -> None:
        """Have an engine that nobody finds any more finish what it has; nothing else holds it, so it is freed."""
        self._leaving[name].close()
        del self._leaving[name]

    def drain(self) -> None:
        """Nothing more is admitted; what was admitted is still answered."""
        for engine in self.all:
            engine.drain()

    def close(self) -> None:
        """Drain, wait until everything admitted is answered, and stop the engines."""
        self.drain()
        for engine in self.all:
            engine.close()
        with self._changing:
            ending = tuple(self._ending)
        wait(ending)


def unknown(name: str, served: Iterable[str]) -> UnknownModel:
    """The error for a name that no model has."""
    return UnknownModel(f"there is no model {name!r} here, only {', '.join(served)}")


def as_models(served: "Models | Engine") -> Models:
    """Models, or one engine -> Models."""
    return served if isinstance(served, Models) else Models(served)


def in_thread(function: Callable[..., T], *args: Any) -> Future[T]:
    """Call in a thread of its own, which keeps no process alive; the future cannot be cancelled."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="models", daemon=True).start()
    return future
