"""The routes that load and unload models: a translation, and nothing else."""

from starlette.responses import Response

from openbei import errors
from openbei.server.answers import json_answer
from openbei.server.route import Call, Route
from openbei.server.routes.status import described
from openbei.wire.admin import LoadRequest, Unloaded, UnloadRequest
from openbei.wire.tei import Info

COMMON_ERRORS: tuple[type[errors.RequestError], ...] = (
    errors.MalformedBody,
    errors.Unauthorized,
    errors.Forbidden,
    errors.TooSlow,
    errors.PayloadTooLarge,
    errors.UnsupportedMediaType,
    errors.InvalidInput,
    errors.Conflict,
    errors.InternalError,
    errors.Unhealthy,
)


async def load(call: Call, body: LoadRequest) -> Response:
    """POST /models/load: the answer comes when the model answers."""
    info = await call.models.load(body.model, body.name, body.revision)
    return json_answer(described(call.models.named(info.served_model_name)))


async def unload(call: Call, body: UnloadRequest) -> Response:
    """POST /models/unload: the answer comes when its requests are answered and its memory is free."""
    await call.models.unload(body.model)
    return json_answer(Unloaded(body.model, list(call.models.names)))


ROUTES = (
    Route(
        path=("/models/load",),
        handler=load,
        summary="Serve one more model",
        method="POST",
        body=LoadRequest,
        answer=Info,
        needs_key=True,
        raises=(*COMMON_ERRORS, errors.LoadFailed, errors.OutOfMemory),
    ),
    Route(
        path=("/models/unload",),
        handler=unload,
        summary="Serve a model no longer",
        method="POST",
        body=UnloadRequest,
        answer=Unloaded,
        needs_key=True,
        raises=(*COMMON_ERRORS, errors.UnknownModel),
    ),
)
