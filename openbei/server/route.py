"""The words of the server: a Call (one request and what it may use) and a Route (one path, and how it is described).

Owns the table's shape, from which dispatch, validation and OpenAPI are all made; never touches sockets or bodies.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from starlette.requests import Request as HTTPRequest
from starlette.responses import Response

from openbei import errors
from openbei.config import ServerConfig
from openbei.engine.models import Asked, Models

if TYPE_CHECKING:
    from openbei.engine.engine import Engine

Dialect = Literal["tei", "openai", "cohere"]

INPUT_ERRORS: tuple[type[errors.RequestError], ...] = (
    errors.MalformedBody,
    errors.EmptyInput,
    errors.Unauthorized,
    errors.TooSlow,
    errors.PayloadTooLarge,
    errors.UnsupportedMediaType,
    errors.InvalidInput,
    errors.UnknownModel,
    errors.WrongTask,
    errors.InferenceFailed,
    errors.Overloaded,
    errors.InternalError,
    errors.Unhealthy,
    errors.DeadlineExceeded,
)


@dataclass(slots=True)
class Call:
    """One request from a client. path: less the prefix of a gateway. arrived_s: time.monotonic() when it began.

    chosen: the model that it means, once that is known.
    """

    models: Models
    config: ServerConfig
    http: HTTPRequest
    path: str
    arrived_s: float
    chosen: "Engine | None" = None

    @property
    def engine(self) -> "Engine":
        """The model that answers."""
        return self.chosen or self.models.first


Handler = Callable[[Call, Any], Awaitable[Response]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One path and method. The handler gets the call and its checked body (None for GET).

    path: the first is the one that is documented, all are served; `{id}` at the end takes the rest of the path.
    body, answer: the types of both sides, None where there is no JSON. keyed: asks for the API key, if one is set.
    needs_key: refused where none is set.
    asks: what the model must be able to do that answers, None where none is asked or the handler chooses it.
    measured: the answer's headers tell what it cost. raises: errors worth describing.
    """

    path: tuple[str, ...]
    handler: Handler
    summary: str
    method: Literal["GET", "POST"] = "GET"
    body: Any = None
    answer: Any = None
    media_type: str = "application/json"
    dialect: Dialect = "tei"
    keyed: bool = True
    needs_key: bool = False
    asks: Asked | None = None
    measured: bool = False
    raises: tuple[type[errors.RequestError], ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """What the Allow header says: HEAD works wherever GET does."""
        return ("GET", "HEAD") if self.method == "GET" else (self.method,)
