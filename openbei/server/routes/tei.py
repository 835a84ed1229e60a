"""TEI's routes: a translation between its bodies and the engine's words, and nothing else."""

from starlette.responses import Response

from openbei.server.answers import computed, json_answer, vectors
from openbei.server.intake import answered, engine_request
from openbei.server.route import EMBED_ERRORS, Call, Route
from openbei.wire.inputs import as_batch
from openbei.wire.tei import EmbedRequest, Vectors


async def embed(call: Call, body: EmbedRequest) -> Response:
    """POST /embed."""
    result = await answered(call, engine_request(call, as_batch(body.inputs), body))
    return json_answer(vectors(result), headers=computed(call, result))


ROUTES = (
    Route(
        path=("/embed",),
        handler=embed,
        summary="Embed texts or token ids (TEI)",
        method="POST",
        body=EmbedRequest,
        answer=Vectors,
        raises=EMBED_ERRORS,
    ),
)
