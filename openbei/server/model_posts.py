"""The models of a server with frontends: a post for each, and how they come and go while others are served.

Owns the table, the weights that are counted, what the frontends are told of models, and the answers to those that
asked; never waits for anything, and never decides whether what ended is started again.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Literal

from openbei.config import EngineConfig
from openbei.engine.board import Board
from openbei.engine.budget import Budget
from openbei.engine.loading import as_answer
from openbei.engine.models import unknown
from openbei.errors import Conflict, InternalError, LoadFailed, OpenBeiError, RequestError, Unhealthy
from openbei.server.child import Child
from openbei.server.messages import All, Answer, AskLoad, AskUnload, EngineAt, Has, Leave, Left, Refused, Wants
from openbei.server.posts import Post
from openbei.server.processes import Plan, run_engine

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Model(Post):
    """The post of an engine process. served_as: the name of its model, which no other has; "" until it is known.

    board: where its metrics lie. path: the socket of its process. at: the process that was ready last. asker: the
    frontend, and its question, that waits for it to come or to go. unheard: the frontends that have not said yet that
    they have it, or have it no more. error: why it did not come.
    """

    served_as: str = ""
    board: Path = Path()
    path: Path = Path()
    at: EngineAt | None = None
    asker: tuple[Child, int] | None = None
    unheard: set[Child] = field(default_factory=set)
    error: RequestError | None = None

    @property
    def is_served(self) -> bool:
        """True while every frontend has it."""
        return self.at is not None and not self.leaving and not self.unheard

    def not_loaded(self, error: Exception) -> None:
        """Keep why it cannot be had; whoever asked is told once it is gone."""
        log.warning("the %s process loads nothing: %s", self.name, error)
        self.error = as_answer(error)

    def end(self) -> None:
        """Have its process end, if there is one: at once if it has nothing to finish."""
        if self.child is not None and self.ready:
            self.child.tell(None)
        elif self.child is not None:
            self.child.process.kill()

    def answer(self, error: RequestError | None = None) -> None:
        """Answer whoever asked for it, if anybody still does."""
        if self.asker is not None:
            (child, number), self.asker = self.asker, None
            child.tell(Answer(number, self.served_as) if error is None else answer_of(number, error))


class ModelPosts:
    """The posts of the engine processes.

    frontends: gives the frontends that there are. introduced: all of the plan's models were ready, so that the
    frontends know them; they are told of each later one. closed: why none comes or goes now, if so.
    """

    def __init__(self, plan: Plan, folder: Path, frontends: Callable[[], list[Child]]) -> None:
        self._plan, self._folder, self._frontends = plan, folder, frontends
        self._numbers, self._budget = count(), Budget(plan.server.max_model_bytes)
        self._several = len(plan.others) > 0
        self.introduced = False
        self.closed: Literal["starting", "draining"] | None = "starting"
        self.posts: list[Model] = []
        for config in (plan.engine, *plan.others):
            asked = config.served_model_name or config.model_id or ""
            self._add(config, f"engine-{asked}" if self._several else "engine", asked)

    def _add(self, wanted: EngineConfig | AskLoad, name: str, served_as: str) -> Model:
        """One more. name: of its process."""
        board = self._folder / f"metrics-{next(self._numbers)}"
        Board.create(board, 1 + self._plan.server.frontends)
        patience_s = self._plan.engine_patience_s
        model = Model(name, lambda: self._start(model, wanted), patience_s, served_as=served_as, board=board)
        self.posts.append(model)
        return model

    def _start(self, model: Model, wanted: EngineConfig | AskLoad) -> Child:
        wanted = model.at.served.config if model.at else wanted  # whatever its files say by now
        model.path = self._folder / f"engine-{next(self._numbers)}"
        return Child(model.name, run_engine, (self._plan, wanted, model.board, model.path))

    def all(self) -> All:
        """What a frontend that starts is told."""
        return All(tuple(one.at for one in self.posts if one.at and not one.leaving), self._several)

    # What an engine process says

    def grant(self, model: Model, wants: Wants) -> None:
        """A model has a name, and once it was read a size: let it be loaded. Raises Conflict, OutOfMemory."""
        self._check_name(wants.name, but=model)
        if wants.name != model.served_as:
            self._budget.give_back(model.served_as)
            model.served_as = wants.name
        if wants.need is not None:
            self._budget.take(wants.name, wants.need)
            assert model.child is not None
            model.child.tell(True)

    def _check_name(self, name: str, but: Model | None = None) -> None:
        if any(one.served_as == name for one in self.posts if one is not but):
            raise Conflict(f"there is a model {name!r} already, or it is being loaded or unloaded")

    def take_over(self, model: Model, at: EngineAt) -> None:
        """An engine is ready: tell the frontends, or replace them if it serves something else than the last one."""
        new, changed, model.at = model.at is None, model.at is not None and model.at.served != at.served, at
        self._budget.loaded(model.served_as)
        if not self.introduced:
            self.introduced = all(one.at for one in self.posts)
            for child in self._frontends() if self.introduced else []:
                child.tell(self.all())
            return
        for child in self._frontends():
            if changed:
                child.process.terminate()
            elif not model.leaving:
                child.tell(at)
        if new:
            self._several = True
            model.unheard = {*self._frontends()}

    def ended(self, model: Model) -> None:
        """Its process ended: whatever that had taken is free again."""
        model.path.unlink(missing_ok=True)
        self._budget.loaded(model.served_as)

    def gone(self, model: Model, code: int) -> None:
        """A model that was to go has gone, or one that was to come has not; code: its process's."""
        if model.unheard:
            return
        self.posts.remove(model)
        self._budget.give_back(model.served_as)
        model.board.unlink()
        came_and_went = model.leaving and model.error is None
        model.answer(None if came_and_went else model.error or LoadFailed(f"its process ended with {code}"))
        if came_and_went:
            log.info("unloaded %r", model.served_as)

    # What a frontend says

    def asked(self, child: Child, question: AskLoad | AskUnload) -> None:
        """A frontend asks for a model, or for its end: begin, or say why not."""
        try:
            if self.closed is not None:
                raise Unhealthy(f"unhealthy: {self.closed}")
            model = self._let_in(question) if isinstance(question, AskLoad) else self._let_go(question.name)
            model.asker = child, question.number
        except Exception as error:  # a bug must not take the whole server along
            if not isinstance(error, OpenBeiError | OSError):
                log.exception("internal error")
                error = InternalError("internal error")
            child.tell(answer_of(question.number, as_answer(error)))

    def _let_in(self, question: AskLoad) -> Model:
        if question.name:
            self._check_name(question.name)
        return self._add(question, f"engine-{question.name or question.model}", question.name or "")

    def _let_go(self, name: str) -> Model:
        served = {one.served_as: one for one in self.posts if one.is_served}
        if name not in served:
            raise unknown(name, served)
        if len(served) == 1:
            raise Conflict(f"{name!r} is the only model: a server has at least one")
        self._dismiss(served[name])
        return served[name]

    def _dismiss(self, model: Model) -> None:
        """Have all frontends let go of a model, and then its process end."""
        model.leaving, model.unheard = True, {*self._frontends()}
        for child in model.unheard:
            child.tell(Leave(model.served_as))
        self._end_if_left(model)

    def told(self, child: Child, message: Has | Left | Refused) -> None:
        """A frontend has a model, or has it no more, or cannot read texts for it."""
        for model in [one for one in self.posts if one.served_as == message.name]:
            if isinstance(message, Refused):
                model.not_loaded(message.error)
                if not model.leaving:
                    self._dismiss(model)
            elif model.leaving == isinstance(message, Left):
                self._heard(model, child)

    def forget(self, child: Child) -> None:
        """A frontend ended: it takes its questions along, and has nothing any more."""
        for model in [*self.posts]:
            if model.asker is not None and model.asker[0] is child:
                model.asker = None
            self._heard(model, child)

    def _heard(self, model: Model, child: Child) -> None:
        """One frontend less that has not said that it has a model, or has it no more."""
        if child not in model.unheard:
            return
        model.unheard.discard(child)
        if model.leaving:
            self._end_if_left(model)
        elif not model.unheard:
            log.info("loaded %r", model.served_as)
            model.answer()

    def _end_if_left(self, model: Model) -> None:
        """Every frontend has let go of a model: so it ends, even one that was about to come back."""
        if model.unheard:
            return
        if model.child is None:
            self.gone(model, 0)
        else:
            model.end()

    def drain(self) -> None:
        """Nothing comes or goes any more; those that asked are told so."""
        self.closed = "draining"
        for model in self.posts:
            model.answer(Unhealthy("unhealthy: draining"))


def answer_of(number: int, error: RequestError) -> Answer:
    """An error -> the answer that says so."""
    return Answer(number, error=(type(error), str(error)))
