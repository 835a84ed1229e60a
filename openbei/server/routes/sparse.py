"""The routes of sparse vectors (TEI) and of multi-vectors (Jina): a translation, and nothing else."""

from dataclasses import replace
from typing import Any

from openbei.engine.request import Request
from openbei.server.answers import Outcome, measured, token_vectors
from openbei.server.intake import answered, engine_request
from openbei.server.route import INPUT_ERRORS, Call, Route
from openbei.wire.inputs import as_batch
from openbei.wire.openai import Usage
from openbei.wire.sparse import (
    EmbedSparseRequest,
    MultiVector,
    MultiVectorRequest,
    MultiVectors,
    SparseValue,
    SparseVectors,
)


async def embed_sparse(call: Call, body: EmbedSparseRequest) -> Outcome:
    """POST /embed_sparse."""
    request = engine_request(call, as_batch(body.inputs), body, "embed_sparse")
    if body.input_type is not None:
        request = _of_kind(call, request, body.input_type)
    result = await answered(call, request)
    rows: Any = result.rows
    lists = [
        [SparseValue(index, value) for index, value in zip(row.indices.tolist(), row.values, strict=True)]
        for row in rows
    ]
    return lists, result


async def multi_vector(call: Call, body: MultiVectorRequest) -> Outcome:
    """POST /v1/multi-vector."""
    request = engine_request(call, as_batch(body.input), body, "embed_multi")
    result = await answered(call, _of_kind(call, request, body.input_type or "document"))
    answer = MultiVectors(
        data=[MultiVector(index=index, embeddings=rows) for index, rows in enumerate(token_vectors(result))],
        model=call.engine.info.served_model_name,
        usage=Usage(prompt_tokens=result.usage.num_tokens, total_tokens=result.usage.num_tokens),
    )
    return answer, result


def _of_kind(call: Call, request: Request, kind: str) -> Request:
    """The request for queries or for documents, with the prompt of that name unless it names one itself."""
    options = request.options
    name = kind if options.prompt_name is None and kind in call.engine.info.prompts else options.prompt_name
    return replace(request, options=replace(options, is_query=kind == "query", prompt_name=name))


ROUTES = (
    Route(
        path=("/embed_sparse",),
        handler=measured(embed_sparse),
        summary="Embed texts as weights of words (TEI)",
        method="POST",
        body=EmbedSparseRequest,
        asks="embed_sparse",
        answer=SparseVectors,
        measured=True,
        raises=INPUT_ERRORS,
    ),
    Route(
        path=("/v1/multi-vector",),
        handler=measured(multi_vector),
        summary="Embed texts token by token, for late interaction (Jina)",
        method="POST",
        body=MultiVectorRequest,
        asks="embed_multi",
        answer=MultiVectors,
        dialect="cohere",
        measured=True,
        raises=INPUT_ERRORS,
    ),
)
