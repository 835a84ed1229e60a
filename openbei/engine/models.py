"""The models of a server: an engine for each name, and which of them a request means.

Owns the table and the choice; never touches requests or HTTP. How a model comes in and leaves is up to those who derive
from it. Any thread may read: the table is replaced, never changed.
"""

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from openbei.engine.metrics import render_all
from openbei.engine.request import EngineInfo, Task
from openbei.errors import Conflict, Forbidden, UnknownModel

if TYPE_CHECKING:
    from openbei.engine.engine import Engine

Asked = Task | Literal["any"]  # what a model must be able to do, if no name says which one is meant


class Models:
    """Engines by served name, in the order in which they came.

    several: there are or were more than one. Then names count: a name that no model has is refused. One model alone
    answers to any.
    """

    def __init__(self, *engines: "Engine") -> None:
        self._changing = threading.Lock()
        self._engines: Mapping[str, Engine] = {}
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
            raise UnknownModel(f"no model {name!r} here; {', '.join(self._engines)} {self._verb()} served")
        return engine

    def _verb(self) -> str:
        return "is" if len(self._engines) == 1 else "are"

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

    def drain(self) -> None:
        """Nothing more is admitted; what was admitted is still answered."""
        for engine in self.all:
            engine.drain()

    def close(self) -> None:
        """Drain, wait until everything admitted is answered, and stop the engines."""
        self.drain()
        for engine in self.all:
            engine.close()


def as_models(served: "Models | Engine") -> Models:
    """Models, or one engine -> Models."""
    return served if isinstance(served, Models) else Models(served)
