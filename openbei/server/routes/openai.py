"""OpenAI's routes: a translation between its bodies and the engine's words, and nothing else."""

import time
from typing import Any

from starlette.responses import Response

from openbei.errors import Unauthorized, UnknownModel
from openbei.server.answers import Outcome, base64_rows, json_answer, measured, vectors
from openbei.server.intake import answered, engine_request
from openbei.server.route import INPUT_ERRORS, Call, Route
from openbei.wire.inputs import as_batch
from openbei.wire.openai import Embedding, Embeddings, EmbeddingsRequest, Model, Models, Usage

STARTED_S = int(time.time())


async def embeddings(call: Call, body: EmbeddingsRequest) -> Outcome:
    """POST /v1/embeddings."""
    result = await answered(call, engine_request(call, as_batch(body.input), body))
    rows: Any = vectors(result)
    if body.encoding_format == "base64":
        rows = base64_rows(rows)
    answer = Embeddings(
        data=[Embedding(index=index, embedding=row) for index, row in enumerate(rows)],
        model=call.engine.info.served_model_name,
        usage=Usage(prompt_tokens=result.usage.num_tokens, total_tokens=result.usage.num_tokens),
    )
    return answer, result


async def models(call: Call, _: None) -> Response:
    """GET /v1/models."""
    return json_answer(Models(data=[described(name) for name in call.models.names]))


async def model(call: Call, _: None) -> Response:
    """GET /v1/models/{id}: the id may hold slashes, raw or as %2F."""
    engine = call.models.named(call.path.removeprefix("/v1/models/"))
    return json_answer(described(engine.info.served_model_name))


def described(name: str) -> Model:
    """A model of this server."""
    return Model(id=name, created=STARTED_S)


ROUTES = (
    Route(
        path=("/v1/embeddings", "/embeddings"),
        handler=measured(embeddings),
        measured=True,
        summary="Embed texts or token ids (OpenAI)",
        method="POST",
        body=EmbeddingsRequest,
        asks="embed",
        answer=Embeddings,
        dialect="openai",
        raises=INPUT_ERRORS,
    ),
    Route(
        path=("/v1/models",),
        handler=models,
        summary="List the served models",
        answer=Models,
        dialect="openai",
        raises=(Unauthorized,),
    ),
    Route(
        path=("/v1/models/{id}",),
        handler=model,
        summary="Describe a served model",
        answer=Model,
        dialect="openai",
        raises=(Unauthorized, UnknownModel),
    ),
)
