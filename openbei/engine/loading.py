"""Models that are loaded into this process, and leave it again while others are served.

Owns the steps of both, and the names that are being loaded; never touches HTTP or requests. Each load and each end has
a thread of its own, so that whoever serves goes on; one executor is started at a time.
"""

import asyncio
import contextlib
import gc
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from openbei.config import EngineConfig
from openbei.engine.budget import Budget
from openbei.engine.models import Models, in_thread
from openbei.engine.request import EngineInfo
from openbei.errors import ConfigError, Conflict, LoadFailed, ModelError, OutOfMemory, RequestError, Unhealthy

if TYPE_CHECKING:
    from openbei.weights.checkpoint import Checkpoint

Configure = Callable[[str, str | None, str | None], EngineConfig]  # a model, its name and its revision

log = logging.getLogger(__name__)


class LoadedModels(Models):
    """Engines of this process. configure: what a model that is asked for later is loaded with. Raises ConfigError."""

    def __init__(self, budget: Budget, configure: Configure) -> None:
        super().__init__()
        self._budget, self._configure = budget, configure
        self._loading: set[str] = set()
        self._starting = threading.Lock()  # guards _closed too
        self._closed = False

    def start(self, checkpoint: "Checkpoint", config: EngineConfig) -> EngineInfo:
        """See that a model that was read fits, start it and take it in.

        Raises ConfigError, ModelError; Conflict and OutOfMemory are ConfigErrors here.
        """
        try:
            return self._start(checkpoint, config)
        except (Conflict, OutOfMemory) as error:
            raise ConfigError(str(error)) from None

    def _start(self, checkpoint: "Checkpoint", config: EngineConfig) -> EngineInfo:
        from openbei.engine.start import need_of, start

        name = config.served_model_name or checkpoint.model_id
        with self._starting:
            if self._closed:
                raise Unhealthy("unhealthy: draining")
            if name in self.names:
                raise Conflict(f"two models are named {name!r}")
            self._budget.take(name, need_of(checkpoint, config))
            try:
                engine = start(checkpoint, config)
            except BaseException:
                self._budget.give_back(name)
                raise
            self._budget.loaded(name)
            self.add(engine)
        return engine.info

    @contextlib.contextmanager
    def _claim(self, name: str) -> Iterator[None]:
        """Keep a name for whoever holds this. Raises Conflict if a model has it, or another load wants it."""
        with self._changing:
            if name in self._loading or name in self._leaving:
                raise Conflict(f"a model {name!r} is being {'loaded' if name in self._loading else 'unloaded'}")
            if name in self.names:
                raise Conflict(f"a model {name!r} is served already")
            self._loading.add(name)
        try:
            yield
        finally:
            with self._changing:
                self._loading.discard(name)

    async def load(self, model: str, name: str | None = None, revision: str | None = None) -> EngineInfo:
        """As Models says; a caller that is cancelled does not stop it."""
        return await asyncio.wrap_future(in_thread(self._load, model, name, revision))

    def _load(self, model: str, name: str | None, revision: str | None) -> EngineInfo:
        try:
            info = self._read_and_start(self._configure(model, name, revision))
            log.info("loaded %r from %r", info.served_model_name, model)
            return info
        except (ModelError, ConfigError, OSError) as error:
            raise as_answer(error) from None

    def _read_and_start(self, config: EngineConfig) -> EngineInfo:
        from openbei.engine.start import read_model

        asked = config.served_model_name or config.model_id or ""
        with contextlib.ExitStack() as claims:
            claims.enter_context(self._claim(asked))
            checkpoint = read_model(config)
            name = config.served_model_name or checkpoint.model_id
            if name != asked:
                claims.enter_context(self._claim(name))
            return self._start(checkpoint, config)

    async def unload(self, name: str) -> None:
        """As Models says; a caller that is cancelled does not stop it."""
        await asyncio.wrap_future(self.let_go(name))

    def _end(self, name: str) -> None:
        super()._end(name)
        give_memory_back()
        self._budget.give_back(name)
        log.info("unloaded %r", name)

    def close(self) -> None:
        """As Models says; what is being unloaded finishes too, and what is being loaded does not come any more."""
        self.drain()
        with self._starting:  # a start that is under way is waited for, because OpenVINO cannot be interrupted
            self._closed = True
        super().close()


def as_answer(error: Exception) -> RequestError:
    """Why a model did not come -> what whoever asked for it is told, in the words of the command line."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return LoadFailed(f"{where}{error.strerror or error}")
    return LoadFailed(str(error))


def give_memory_back() -> None:
    """What nothing refers to any more goes back to the system at once: engines and their threads form cycles."""
    gc.unfreeze()  # what was there when the server began to serve may be garbage now
    gc.collect()
    gc.freeze()
    if machine := sys.modules.get("openbei.engine.machine"):  # that is, if a GPU computes
        machine.give_back_cached()
