"""What the server says of itself: /info, /health, /metrics. Never waits for the engine."""

from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from openbei import __version__
from openbei.engine.metrics import CONTENT_TYPE
from openbei.engine.request import EngineInfo
from openbei.errors import Unauthorized, Unhealthy, UnknownModel
from openbei.server.answers import json_answer
from openbei.server.intake import name_of
from openbei.server.route import Call, Route
from openbei.wire.tei import Health, Info, ModelType

if TYPE_CHECKING:
    from openbei.engine.engine import Engine


async def info(call: Call, _: None) -> Response:
    """GET /info."""
    return json_answer(described(call.engine))


def described(engine: "Engine") -> Info:
    """An engine -> its facts, and the limits in force."""
    config, facts = engine.config, engine.info
    return Info(
        model_id=facts.model_id,
        model_sha=facts.revision,
        model_dtype=facts.dtype,
        served_model_name=facts.served_model_name,
        model_type=model_type(facts),
        max_concurrent_requests=config.max_concurrent_requests,
        max_input_length=facts.max_input_length,
        max_batch_tokens=facts.max_batch_tokens,
        max_batch_requests=config.max_batch_requests,
        max_client_batch_size=config.max_client_batch_size,
        auto_truncate=config.auto_truncate,
        tokenization_workers=facts.tokenization_workers,
        version=__version__,
    )


def model_type(facts: EngineInfo) -> ModelType:
    """The kind of the model as the one key, with what TEI tells of that kind: whatever embeds is one to it."""
    if facts.kind in ("embedding", "sparse", "multi_vector"):
        return {"embedding": {"pooling": facts.pooling}}
    kind: Any = facts.kind
    id2label = {str(number): name for number, name in enumerate(facts.labels)}
    return {kind: {"id2label": id2label, "label2id": {name: number for number, name in enumerate(facts.labels)}}}


async def health(call: Call, _: None) -> Response:
    """GET /health, of all models or of the one that is named; BEI's own client cannot read an empty body."""
    name, models = name_of(call, None), call.models
    troubles = models.troubles(*[models.choose(name, "any")] if name else models.all)
    if troubles:
        raise Unhealthy(f"unhealthy: {', '.join(troubles)}")
    return json_answer(Health())


async def metrics(call: Call, _: None) -> Response:
    """GET /metrics."""
    return Response(call.models.render(), headers={"content-type": CONTENT_TYPE})


def health_route(path: tuple[str, ...]) -> Route:
    """The health check at some paths."""
    return Route(
        path=path,
        handler=health,
        summary="Whether requests are answered",
        answer=Health,
        keyed=False,
        raises=(Unhealthy, UnknownModel),
    )


ROUTES = (
    Route(
        path=("/info",),
        handler=info,
        asks="any",
        summary="What is served, within which limits",
        answer=Info,
        raises=(Unauthorized, UnknownModel),
    ),
    health_route(("/health", "/ping", "/")),
    Route(path=("/metrics",), handler=metrics, summary="Prometheus metrics", media_type="text/plain", keyed=False),
)
