"""What the processes of a server with frontends say to each other over their pipes.

Owns the messages, which are pickled; never knows what is done about one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openbei.engine.budget import Need
from openbei.errors import OpenBeiError, RequestError

if TYPE_CHECKING:
    from openbei.engine.settle import Served

# An engine process -> the supervisor: Wants, once it knows its name and once it has read its model, then an EngineAt or
# an error, then Runs again and again; to it: True, when it has asked for room, and None for the end.


@dataclass(frozen=True, slots=True)
class Wants:
    """A model says its name; once it was read it also asks whether there is room, and waits for the answer, True."""

    name: str
    need: Need | None = None


@dataclass(frozen=True, slots=True)
class EngineAt:
    """An engine process that is ready, the socket that it listens on, and what it serves. facts: Plan.describe's.

    board: where the metrics of that model lie.
    """

    path: Path
    served: "Served"
    facts: dict[str, Any]
    board: Path = Path()

    @property
    def name(self) -> str:
        """The name under which it is served."""
        return self.served.info.served_model_name


# The supervisor -> a frontend: All, then each EngineAt that comes or comes back, Leave, and Answer.
# A frontend -> the supervisor: Runs again and again; None when it listens, Has, Refused and Left, and AskLoad and
# AskUnload for its clients.


@dataclass(frozen=True, slots=True)
class All:
    """Every model there is. several: there are or were more than one."""

    engines: tuple[EngineAt, ...]
    several: bool


@dataclass(frozen=True, slots=True)
class Leave:
    """Let go of a model, once its requests are answered."""

    name: str


@dataclass(frozen=True, slots=True)
class Runs:
    """A process runs: its event loop, or it waits for what it is to be told."""


@dataclass(frozen=True, slots=True)
class Has:
    """A frontend serves a model."""

    name: str


@dataclass(frozen=True, slots=True)
class Refused:
    """A frontend cannot serve a model."""

    name: str
    error: OpenBeiError


@dataclass(frozen=True, slots=True)
class Left:
    """A frontend serves a model no longer."""

    name: str


@dataclass(frozen=True, slots=True)
class AskLoad:
    """A client wants a model; its engine process is told so. number: of the question, of that frontend's."""

    number: int
    model: str
    name: str | None
    revision: str | None


@dataclass(frozen=True, slots=True)
class AskUnload:
    """A client wants a model to go."""

    number: int
    name: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a question: the model's name, or an error's class and words."""

    number: int
    name: str = ""
    error: "tuple[type[RequestError], str] | None" = None
