"""The routes that hosting platforms call whatever the model is: POST / and /invocations, and Vertex AI's.

Owns the choice of the route that is meant; never touches what that route does.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from openbei.config import ServerConfig
from openbei.engine.request import Kind
from openbei.errors import BatchTooLarge, InvalidInput
from openbei.server.answers import Compute, json_answer, measured
from openbei.server.intake import decode, explain, read
from openbei.server.route import INPUT_ERRORS, Call, Route
from openbei.server.routes import sparse, status, tei
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


class Inputs(msgspec.Struct):
    """As much of a body as tells what it asks for."""

    inputs: msgspec.Raw


async def default(call: Call, _: None) -> Response:
    """POST /: what the model is for; of an embedding model, an object as inputs asks for similarities."""
    body = bytes(await read(call, msgspec.Raw))
    shape, compute = ACTIONS[call.engine.info.kind]
    if call.engine.info.kind == "embedding" and bytes(decode(body, Inputs).inputs).startswith(b"{"):
        shape, compute = SIMILARITY
    return await measured(compute)(call, decode(body, shape))


async def vertex(call: Call, body: VertexRequest) -> Response:
    """POST /vertex: all instances at once; the first that fails is the answer."""
    limit = call.engine.config.max_client_batch_size
    if len(body.instances) > limit:
        raise BatchTooLarge(f"batch size {len(body.instances)} > maximum allowed batch size {limit}")
    actions = [action(call, instance, index) for index, instance in enumerate(body.instances)]
    # If one fails, its error is the answer; once that is sent, intake.answered drops what the others still wait for.
    outcomes = await asyncio.gather(*(compute(call, shaped) for compute, shaped in actions))
    return json_answer(VertexPredictions([value for value, _ in outcomes]))


def action(call: Call, instance: Mapping[str, Any], index: int) -> tuple[Compute, Any]:
    """One instance -> what answers it, and its body. Raises InvalidInput."""
    kind = call.engine.info.kind
    shape, compute = RERANK if {"query", "texts"} <= instance.keys() else ACTIONS[VERTEX_KINDS.get(kind, kind)]
    try:
        return compute, msgspec.convert(instance, shape)
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
