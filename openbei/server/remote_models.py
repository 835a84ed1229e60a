"""The models of a frontend: each computes in an engine process of its own, and the supervisor brings and takes them.

Owns what the supervisor is asked and what it says, and the connections to the engines; never starts or ends a process.
Everything but the reading of a tokenizer runs in the frontend's event loop.
"""

import asyncio
import logging
from collections.abc import Callable
from itertools import count
from typing import Any

from openbei.engine.board import Board
from openbei.engine.engine import Engine
from openbei.engine.metrics import Metrics
from openbei.engine.models import Models, in_thread
from openbei.engine.remote import RemoteCore
from openbei.engine.request import EngineInfo
from openbei.errors import OpenBeiError
from openbei.server.messages import Answer, AskLoad, AskUnload, EngineAt, Has, Leave, Left, Refused

JOIN_S = 5

log = logging.getLogger(__name__)


class RemoteModels(Models):
    """Engines over RemoteCores. tell: to the supervisor. row: of every board, this frontend's own."""

    def __init__(self, tell: Callable[[Any], None], row: int) -> None:
        super().__init__()
        self._tell, self._row = tell, row
        self._cores: dict[str, RemoteCore] = {}
        self._changing_table = asyncio.Lock()
        self._numbers = count()
        self._questions: dict[int, asyncio.Future[Answer]] = {}

    def make(self, at: EngineAt) -> Engine:
        """A model's process -> its engine here, not joined to it yet. Raises ModelError."""
        core = RemoteCore(at.served.config.max_concurrent_requests)
        metrics = Metrics(at.served.text.max_length, Board.open(at.board, self._row))
        engine = Engine(at.served, core, metrics)
        self._cores[at.name] = core
        return engine

    async def join(self, at: EngineAt) -> None:
        """Connect to an engine; where that fails it has just died, and the supervisor will tell of another.

        One that hangs says later how it is, or never: the other models are not to wait for that.
        """
        try:
            async with asyncio.timeout(JOIN_S):
                await self._cores[at.name].connect(at.path)
        except OSError as error:  # TimeoutError is one
            log.warning("the engine of %r cannot be reached: %s", at.name, str(error) or "it hangs")

    async def hear(self, message: EngineAt | Leave | Answer) -> None:
        """Do what the supervisor says, one after the other."""
        match message:
            case EngineAt():
                async with self._changing_table:
                    await self._take_in(message)
            case Leave(name):
                async with self._changing_table:
                    left = self.let_go(name) if name in self.names else None
                if left is not None:
                    await asyncio.wrap_future(left)
                self._tell(Left(name))
            case Answer(number):
                self._questions.pop(number).set_result(message)

    async def _take_in(self, at: EngineAt) -> None:
        try:
            engine = None if at.name in self.names else await asyncio.wrap_future(in_thread(self.make, at))
        except OpenBeiError as error:
            self._tell(Refused(at.name, error))
            return
        await self.join(at)
        if engine is not None:
            self.add(engine)
        self._tell(Has(at.name))

    def _end(self, name: str) -> None:
        super()._end(name)
        del self._cores[name]

    async def load(self, model: str, name: str | None = None, revision: str | None = None) -> EngineInfo:
        """As Models says; the answer comes when all frontends have it."""
        answer = await self._ask(AskLoad(next(self._numbers), model, name, revision))
        return self.named(answer.name).info

    async def unload(self, name: str) -> None:
        """As Models says; the answer comes when its process has ended."""
        await self._ask(AskUnload(next(self._numbers), name))

    async def _ask(self, question: AskLoad | AskUnload) -> Answer:
        future = self._questions[question.number] = asyncio.get_running_loop().create_future()
        self._tell(question)
        answer: Answer = await asyncio.shield(future)  # it comes, also when nobody waits any more
        if answer.error is not None:
            kind, words = answer.error
            raise kind(words)
        return answer
