"""Cohere's rerank and embed routes, and Jina's rerank: a translation to the engine's words, and nothing else."""

import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from openbei.engine.request import EngineInfo, Options, Pair, Result
from openbei.errors import InvalidInput
from openbei.server.answers import Compute, Outcome, base64_rows, vectors
from openbei.server.intake import answered, request_of
from openbei.server.route import Call, Route
from openbei.server.routes import tei
from openbei.wire.cohere import (
    AnswerMeta,
    ApiVersion,
    Document,
    Embedded,
    EmbeddingType,
    EmbedRequest,
    EmbedV1Request,
    EmbedV2Request,
    Ranked,
    RankedDocument,
    Reranked,
    RerankV1Request,
    RerankV2Request,
    as_documents,
    as_inputs,
)
from openbei.wire.openai import Usage

Version = Literal["1", "2"]
RERANK = "Order documents by how well they answer"

PROMPTS = {  # input_type -> the names that models give to its prompt, the first they have is taken
    "search_query": ("query",),
    "search_document": ("document", "passage"),
    "classification": ("classification",),
    "clustering": ("clustering",),
}


async def rerank_v1(call: Call, body: RerankV1Request) -> Outcome:
    """POST /v1/rerank."""
    return await rerank(call, body, "1")


async def rerank_v2(call: Call, body: RerankV2Request) -> Outcome:
    """POST /v2/rerank."""
    return await rerank(call, body, "2")


async def rerank(call: Call, body: RerankV1Request | RerankV2Request, version: Version) -> Outcome:
    """Either version: what is too long is cut, and of equal scores the earlier document comes first."""
    texts = as_documents(body.documents, body.rank_fields)
    limit = body.max_tokens_per_doc if isinstance(body, RerankV2Request) else None
    options = Options(truncate=True, max_second_tokens=limit)
    result = await answered(
        call, request_of(call, [Pair(body.query, text) for text in texts], options, "rerank", body.priority)
    )
    scores: Any = result.rows
    with_documents = version == "1" if body.return_documents is None else body.return_documents
    ranked = [
        RankedDocument(place, scores[place], as_object(body.documents[place]))
        if with_documents
        else Ranked(place, scores[place])
        for place in np.argsort(-scores, kind="stable")[: body.top_n].tolist()
    ]
    answer = Reranked(
        id=str(uuid.uuid4()),
        model=call.engine.info.served_model_name,
        results=ranked,
        usage=Usage(prompt_tokens=result.usage.num_tokens, total_tokens=result.usage.num_tokens),
        meta=AnswerMeta(ApiVersion(version), {"search_units": 1}),
    )
    return answer, result


def as_object(document: Document) -> dict[str, Any]:
    """A document as answers repeat it."""
    if isinstance(document, str):
        return {"text": document}
    return {name: orjson.Fragment(bytes(value)) for name, value in document.items()}


async def embed_v1(call: Call, body: EmbedV1Request) -> Outcome:
    """POST /v1/embed: without embedding_types a bare list of vectors."""
    answer, result = await embed(call, body, "1")
    if body.embedding_types is None:
        answer = replace(answer, response_type="embeddings_floats", embeddings=answer.embeddings["float"])
    return answer, result


async def embed_v2(call: Call, body: EmbedV2Request) -> Outcome:
    """POST /v2/embed."""
    return await embed(call, body, "2")


async def embed(call: Call, body: EmbedRequest, version: Version) -> tuple[Embedded, Result]:
    """Either version, by type."""
    texts = as_inputs(body)
    kinds: list[EmbeddingType] = body.embedding_types or ["float"]
    options = embed_options(body, call.engine.info)
    check_bits(kinds, options.dimensions or call.engine.info.embedding_dim)
    result = await answered(call, request_of(call, texts, options, priority=body.priority))
    rows = vectors(result)
    answer = Embedded(
        id=str(uuid.uuid4()),
        embeddings={kind: FORMS[kind](rows) for kind in kinds},
        texts=texts,
        meta=AnswerMeta(ApiVersion(version), {"input_tokens": result.usage.num_tokens}),
    )
    return answer, result


def embed_options(body: EmbedRequest, info: EngineInfo) -> Options:
    """The fields of either version -> the engine's options."""
    names = PROMPTS.get(body.input_type or "", ())
    return Options(
        truncate=body.truncate != "NONE",
        truncation_direction="left" if body.truncate == "START" else "right",
        prompt_name=next((name for name in names if name in info.prompts), None),
        dimensions=body.output_dimension if isinstance(body, EmbedV2Request) else None,
        max_tokens=body.max_tokens if isinstance(body, EmbedV2Request) else None,
    )


def check_bits(kinds: list[EmbeddingType], dimensions: int) -> None:
    """Raise InvalidInput if bits are asked for that do not fill their bytes."""
    if dimensions % 8 and {"binary", "ubinary"} & set(kinds):
        raise InvalidInput(f"binary and ubinary need dimensions that 8 divides, got {dimensions}")


def int8(rows: NDArray[np.float32]) -> Any:
    """Values from -1 to 1 -> the nearest 127th, as int8."""
    return np.clip(np.rint(rows * 127), -128, 127).astype(np.int8)


def ubinary(rows: NDArray[np.float32]) -> Any:
    """Values -> one bit each, 1 above 0, eight a byte, the first the highest."""
    return np.packbits(rows > 0, axis=1)


FORMS: dict[EmbeddingType, Callable[[Any], Any]] = {
    "float": lambda rows: rows,
    "int8": int8,
    "uint8": lambda rows: (int8(rows).astype(np.int16) + 128).astype(np.uint8),
    "binary": lambda rows: (ubinary(rows).astype(np.int16) - 128).astype(np.int8),
    "ubinary": ubinary,
    "base64": base64_rows,
}


def post(path: str, compute: Compute, summary: str, body: type, answer: Any) -> Route:
    """A row of the table below."""
    return replace(tei.post(path, compute, summary, body, answer), dialect="cohere")


ROUTES = (
    replace(post("/v1/rerank", rerank_v1, f"{RERANK} (Jina, Cohere v1)", RerankV1Request, Reranked), asks="rerank"),
    replace(post("/v2/rerank", rerank_v2, f"{RERANK} (Cohere v2)", RerankV2Request, Reranked), asks="rerank"),
    post("/v1/embed", embed_v1, "Embed texts (Cohere v1)", EmbedV1Request, Embedded),
    post("/v2/embed", embed_v2, "Embed texts (Cohere v2)", EmbedV2Request, Embedded),
)
