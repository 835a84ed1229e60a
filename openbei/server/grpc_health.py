"""grpc.health.v1: which services answer now. Asks for no key, and never waits for the engine.

Owns that one service; what it says follows from the models' status and from what they can do.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health_pb2 as pb

if TYPE_CHECKING:
    from openbei.engine.models import Models

WATCH_S = 1.0  # between two looks at the engine, for as long as somebody watches

# The service "" is the server itself. A service with a task serves while a model is ready that can do it.
TASKS: dict[str, str | None] = {"": None, "tei.v1.Info": None, "tei.v1.Tokenize": None} | {
    "tei.v1.Embed": "embed",
    "tei.v1.Predict": "classify",
    "tei.v1.Rerank": "rerank",
}


SERVICE = "grpc.health.v1.Health"
Status = pb.HealthCheckResponse


def handler(models: "Models") -> Any:
    """The service, for all models of a server."""

    def status(service: str) -> int:
        task = TASKS[service]
        serves = task is None or any(one.status == "ready" and task in one.info.tasks for one in models.all)
        return int(Status.SERVING if serves else Status.NOT_SERVING)

    async def check(request: Any, context: Any) -> Any:
        if request.service not in TASKS:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return Status(status=status(request.service))

    async def listed(_: Any, __: Any) -> Any:
        return pb.HealthListResponse(statuses={name: Status(status=status(name)) for name in TASKS})

    async def watch(request: Any, _: Any) -> AsyncIterator[Any]:
        last = None
        while True:
            now = status(request.service) if request.service in TASKS else Status.SERVICE_UNKNOWN
            if now != last:
                yield Status(status=now)
                last = now
            await asyncio.sleep(WATCH_S)

    asked = {"request_deserializer": pb.HealthCheckRequest.FromString, "response_serializer": Status.SerializeToString}
    rpcs = {
        "Check": grpc.unary_unary_rpc_method_handler(check, **asked),
        "List": grpc.unary_unary_rpc_method_handler(
            listed, pb.HealthListRequest.FromString, pb.HealthListResponse.SerializeToString
        ),
        "Watch": grpc.unary_stream_rpc_method_handler(watch, **asked),
    }
    return grpc.method_handlers_generic_handler(SERVICE, rpcs)
