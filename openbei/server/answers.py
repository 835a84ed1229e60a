"""What a client gets: JSON, the compute headers, and the one place that turns any exception into a body.

Owns status codes and response headers; never touches what was asked or how it was computed.
"""

import base64
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from openbei import errors
from openbei.engine.request import EngineInfo, Result
from openbei.server.negotiate import to_json, written
from openbei.server.route import Call, Dialect, Handler
from openbei.wire.cohere import CohereError
from openbei.wire.openai import OpenAIError
from openbei.wire.tei import TEIError

logger = logging.getLogger("openbei.server")

CLIENT_GONE = 499  # never sent; it is what the log says of a client that hung up
MAX_RETRY_AFTER_S = 30

COMPUTE_HEADERS = (
    "x-compute-type",
    "x-compute-time",
    "x-compute-characters",
    "x-compute-tokens",
    "x-total-time",
    "x-tokenization-time",
    "x-queue-time",
    "x-inference-time",
)

Outcome = tuple[Any, Result]  # what to write, and what it cost
Compute = Callable[[Call, Any], Awaitable[Outcome]]


def measured(compute: Compute) -> Handler:
    """What computes an answer -> a handler that writes it in the form asked for, and what it cost in headers."""

    async def handler(call: Call, body: Any) -> Response:
        value, result = await compute(call, body)
        response = written(value, ", ".join(call.http.headers.getlist("accept")))
        response.headers.update(computed(call, result))
        return response

    return handler


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A value -> its JSON answer."""
    return Response(to_json(value), status, headers, media_type="application/json")


def vectors(result: Result) -> Any:
    """Result -> its float32 (N, dimensions) array with rows end to end, as the JSON writer needs them."""
    return np.ascontiguousarray(result.rows, np.float32)


def token_vectors(result: Result) -> Any:
    """Result -> its N float32 arrays (n, C), each with rows end to end."""
    return [np.ascontiguousarray(states, np.float32) for states in result.rows]


def best_first(scores: NDArray[np.float32]) -> list[int]:
    """Scores -> their places, the highest score first; of equal ones the later place, as TEI's sort does."""
    return [int(place) for place in np.argsort(scores, kind="stable")[::-1]]


def base64_rows(rows: NDArray[np.float32]) -> list[str]:
    """Float32 rows (N, C) -> base64 of each one's little-endian bytes."""
    return [base64.b64encode(row).decode("ascii") for row in rows.astype("<f4", copy=False)]


def computed(call: Call, result: Result) -> dict[str, str]:
    """What an answer to this call cost, as headers."""
    return cost(call.engine.info, call.arrived_s, result)


def cost(info: EngineInfo, arrived_s: float, result: Result) -> dict[str, str]:
    """The headers that tell what an answer cost: whole milliseconds, rounded down. arrived_s: time.monotonic()."""
    times, usage = result.timings, result.usage
    total_ms = str(int((time.monotonic() - arrived_s) * 1000))
    device = "cpu" if info.device.startswith("cpu") else "gpu"
    steps_s = (times.tokenization_s, times.queue_s, times.inference_s)
    values = (
        f"{device}+optimized",
        total_ms,
        str(usage.num_characters),
        str(usage.num_tokens),
        total_ms,
        *(str(int(seconds * 1000)) for seconds in steps_s),
    )
    return dict(zip(COMPUTE_HEADERS, values, strict=True))


def failed(error: Exception, dialect: Dialect) -> Response:
    """Any exception -> its answer in the route's dialect; the message of a bug stays in the log."""
    row = errors.answer(error)
    bug = row is errors.ANSWERS[errors.InternalError]
    if bug:
        logger.error("internal error", exc_info=error)
    message = "internal error" if bug else str(error)
    return json_answer(ERROR_BODIES[dialect](message, row), row.status, error_headers(error))


ERROR_BODIES: dict[Dialect, Callable[[str, errors.Answer], Any]] = {
    "tei": lambda message, row: TEIError(message, row.type),
    "openai": lambda message, row: OpenAIError(message=message, code=row.code or row.status, type=row.type),
    "cohere": lambda message, _: CohereError(str(uuid.uuid4()), message, message),
}


def error_headers(error: Exception) -> dict[str, str]:
    """What some errors say beside their body: how to authorize, what is allowed, when to come again."""
    match error:
        case errors.Unauthorized():
            return {"www-authenticate": "Bearer"}
        case errors.MethodNotAllowed():
            return {"allow": ", ".join(error.allow)}
        case errors.PayloadTooLarge() | errors.TooSlow():
            return {"connection": "close"}  # or the server would read the rest of the body, however long
        case errors.Overloaded() | errors.Unhealthy():
            wait_s = min(max(1, error.retry_after_s), MAX_RETRY_AFTER_S)
            return {"retry-after": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(wait_s * 1000))}
        case _:
            return {}
