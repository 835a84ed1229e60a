"""The routes that hosting platforms call whatever the model is: POST / and /invocations, and Vertex AI's.

Owns the choice of the route that is meant; never touches what that route does.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
from starlette.responses import Response

from openbei.config import ServerConfig
from openbei.engine.request import Kind
from openbei.errors import BatchTooLarge, InvalidInput, Overloaded
from openbei.server.answers import Compute, json_answer, measured
from openbei.server.intake import decode, explain, name_of, read
from openbei.server.route import INPUT_ERRORS, Call, Route
from openbei.server.routes import sparse, status, tei
from openbei.wire.inputs import ModelName
from openbei.wire.sparse import EmbedSparseRequest, MultiVectorRequest
from openbei.wire.tei import (
    EmbedRequest,
    PredictRequest,
    PredictTokensRequest,
    RerankRequest,
    SimilarityRequest,
    VertexPredictions,
    VertexRequest,
)

Action = tuple[type, Compute]  # a body's shape, and what answers it

RERANK: Action = (RerankRequest, tei.rerank)
SIMILARITY: Action = (SimilarityRequest, tei.similarity)
ACTIONS: dict[Kind, Action] = {
    "embedding": (EmbedRequest, tei.embed),
    "sparse": (EmbedSparseRequest, sparse.embed_sparse),
    "multi_vector": (MultiVectorRequest, sparse.multi_vector),
    "classifier": (PredictRequest, tei.predict),
    "reranker": RERANK,
    "token_classifier": (PredictTokensRequest, tei.predict_tokens),
}


class Whom(msgspec.Struct):
    """As much of a body as tells which model it asks."""

    model: ModelName = None


class Meant(Whom):
    """And what it asks for."""

    inputs: msgspec.Raw = msgspec.Raw(b"null")


async def default(call: Call, _: None) -> Response:
    """POST /: what the model is for; of an embedding model, an object as inputs asks for similarities."""
    body = bytes(await read(call, msgspec.Raw))
    meant = decode(body, Meant)
    call.chosen = call.models.choose(name_of(call, meant), "any")
    shape, compute = ACTIONS[call.engine.info.kind]
    if call.engine.info.kind == "embedding" and bytes(meant.inputs).startswith(b"{"):
        shape, compute = SIMILARITY
    return await measured(compute)(call, decode(body, shape))


async def vertex(call: Call, body: VertexRequest) -> Response:
    """POST /vertex: each instance by the model that it names; the first that fails is the answer."""
    limit = call.engine.config.max_client_batch_size
    if len(body.instances) > limit:
        raise BatchTooLarge(f"batch size {len(body.instances)} > maximum allowed batch size {limit}")
    actions = [action(call, instance, index) for index, instance in enumerate(body.instances)]
    return json_answer(VertexPredictions(await values(actions)))


async def values(actions: Sequence[tuple[Compute, Call, Any]]) -> list[Any]:
    """What each comes to: all at once; those that find no room beside the others, once these have made some.

    Raises Overloaded where none finds room.
    """
    found: dict[int, Any] = {}

    async def attempt(index: int) -> Overloaded | None:
        compute, call, body = actions[index]
        try:
            found[index], _ = await compute(call, body)
        except Overloaded as error:
            return error
        return None

    while left := [index for index in range(len(actions)) if index not in found]:
        # If one fails, its error is the answer; once that is sent, intake.answered drops what the others wait for.
        refused = [error for error in await asyncio.gather(*map(attempt, left)) if error is not None]
        if len(refused) == len(left):
            raise refused[0]
    return [found[index] for index in range(len(actions))]


def action(call: Call, instance: Mapping[str, Any], index: int) -> tuple[Compute, Call, Any]:
    """One instance -> what answers it, and the call and the body for that. Raises InvalidInput, UnknownModel."""
    ranks, name = {"query", "texts"} <= instance.keys(), name_of(call, converted(instance, Whom, index))
    chosen = call.models.choose(name, "rerank" if ranks else "any")
    kind = chosen.info.kind
    shape, compute = RERANK if ranks else ACTIONS[VERTEX_KINDS.get(kind, kind)]
    return compute, replace(call, chosen=chosen), converted(instance, shape, index)


def converted(instance: Mapping[str, Any], shape: Any, index: int) -> Any:
    """One instance -> that shape. Raises InvalidInput."""
    try:
        return msgspec.convert(instance, shape)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"instance {index}: {explain(error, shape)}") from None


VERTEX_KINDS: dict[Kind, Kind] = {"reranker": "classifier"}  # without query and texts it is asked to predict

ROUTES = (
    Route(
        path=("/", "/invocations"),
        handler=default,
        summary="What the model is for: as /embed or /similarity, /embed_sparse, /v1/multi-vector, /predict and so on",
        method="POST",
        answer=Any,
        measured=True,
        raises=INPUT_ERRORS,
    ),
)


def vertex_routes(config: ServerConfig) -> tuple[Route, ...]:
    """The routes of Vertex AI, at its own paths too where the environment names them."""
    predict = Route(
        path=("/vertex", *filter(None, [config.aip_predict_route])),
        handler=vertex,
        summary="A list of bodies of other routes (Vertex AI)",
        method="POST",
        body=VertexRequest,
        answer=VertexPredictions,
        raises=INPUT_ERRORS,
    )
    if config.aip_health_route is None:
        return (predict,)
    return predict, status.health_route((config.aip_health_route,))
