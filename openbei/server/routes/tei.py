"""TEI's and BEI's routes: a translation between their bodies and the engine's words, and nothing else."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import structs
from starlette.responses import Response

from openbei.engine.entities import Entity, find_entities
from openbei.engine.request import Chat, Input, Kind, Pair, Result, Token
from openbei.server.answers import best_first, computed, json_answer, token_vectors, vectors
from openbei.server.intake import answered, engine_request, read
from openbei.server.route import INPUT_ERRORS, Call, Handler, Route
from openbei.wire.inputs import Message, as_batch, as_classified, as_texts
from openbei.wire.tei import (
    EmbedAllRequest,
    EmbedRequest,
    Prediction,
    Predictions,
    PredictRequest,
    PredictTokensRequest,
    Rank,
    RerankRequest,
    TextRank,
    TokenPrediction,
    TokenPredictions,
    TokenVectors,
    Vectors,
)


async def embed(call: Call, body: EmbedRequest) -> Response:
    """POST /embed."""
    result = await answered(call, engine_request(call, as_batch(body.inputs), body))
    return json_answer(vectors(result), headers=computed(call, result))


async def embed_all(call: Call, body: EmbedAllRequest) -> Response:
    """POST /embed_all."""
    result = await answered(call, engine_request(call, as_batch(body.inputs), body, "embed_tokens"))
    return json_answer(token_vectors(result), headers=computed(call, result))


async def predict(call: Call, body: PredictRequest) -> Response:
    """POST /predict."""
    batch, is_batch = as_classified(body.inputs)
    inputs = [classified_input(*one) for one in batch]
    result = await answered(call, engine_request(call, inputs, body, "classify"))
    rows: Any = result.rows
    names = call.engine.info.labels
    lists = [[Prediction(row[place], names[place]) for place in best_first(row)] for row in rows]
    return json_answer(lists if is_batch else lists[0], headers=computed(call, result))


def classified_input(first: str | Message, *others: Any) -> Input:
    """One or two texts, or messages -> the engine's input. Raises InvalidInput for a wrong message."""
    if not isinstance(first, str):
        return Chat((first, *others))
    return Pair(first, *others) if others else first


async def rerank(call: Call, body: RerankRequest) -> Response:
    """POST /rerank."""
    pairs = [Pair(body.query, text) for text in body.texts]
    result = await answered(call, engine_request(call, pairs, body, "rerank"))
    return json_answer(ranks(result, body.texts if body.return_text else None), headers=computed(call, result))


def ranks(result: Result, texts: Sequence[str] | None) -> list[Rank]:
    """Scores (N,) -> ranks, the best first, with the texts if they are given."""
    scores: Any = result.rows
    order = best_first(scores)
    if texts is None:
        return [Rank(place, scores[place]) for place in order]
    return [TextRank(place, scores[place], texts[place]) for place in order]


async def predict_tokens(call: Call, body: PredictTokensRequest) -> Response:
    """POST /predict_tokens."""
    texts, strategy = as_texts(body.inputs), body.aggregation_strategy or "none"
    if strategy != "none":
        body = structs.replace(body, raw_scores=False)  # entities are made of probabilities
    result = await answered(call, engine_request(call, texts, body, "classify_tokens"))
    names = call.engine.info.labels
    lists: list[list[TokenPrediction]] = []
    for text, tokens, rows in zip(texts, result.tokens, result.rows, strict=True):
        if strategy == "none":
            lists.append([token_prediction(token, row, names, body) for token, row in zip(tokens, rows, strict=True)])
        else:
            entities = find_entities(tokens, rows, names, strategy)
            lists.append([entity_prediction(entity, text) for entity in entities])
    return json_answer(lists, headers=computed(call, result))


def token_prediction(token: Token, row: Any, names: Sequence[str], body: PredictTokensRequest) -> TokenPrediction:
    """A token and its scores (L,) -> every label, the best first, if raw scores are asked for, else the best one."""
    places = best_first(row) if body.raw_scores else [row.argmax()]
    return TokenPrediction(token.text, token.id, token.start, token.end, {names[place]: row[place] for place in places})


def entity_prediction(entity: Entity, text: str) -> TokenPrediction:
    """An entity -> its answer, which looks like a token's."""
    score: Any = np.float32(entity.score)
    return TokenPrediction(text[entity.start : entity.end], 0, entity.start, entity.end, {entity.label: score})


async def default(call: Call, _: None) -> Response:
    """POST /: what the model is for."""
    route = DEFAULTS[call.engine.info.kind]
    return await route.handler(call, await read(call.http, route.body, call.config.payload_limit))


def post(path: str, handler: Handler, summary: str, body: type, answer: Any) -> Route:
    """A row of the table below."""
    return Route(
        path=(path,), handler=handler, summary=summary, method="POST", body=body, answer=answer, raises=INPUT_ERRORS
    )


EMBED = post("/embed", embed, "Embed texts or token ids (TEI)", EmbedRequest, Vectors)
EMBED_ALL = post("/embed_all", embed_all, "The last hidden state of every token (TEI)", EmbedAllRequest, TokenVectors)
PREDICT = post("/predict", predict, "Classify texts, pairs or chats (TEI)", PredictRequest, Predictions)
RERANK = post("/rerank", rerank, "Order texts by how well they answer a query (TEI)", RerankRequest, list[Rank])
PREDICT_TOKENS = post(
    "/predict_tokens", predict_tokens, "Label tokens, or find entities (BEI)", PredictTokensRequest, TokenPredictions
)
DEFAULTS: dict[Kind, Route] = {
    "embedding": EMBED,
    "classifier": PREDICT,
    "reranker": RERANK,
    "token_classifier": PREDICT_TOKENS,
}
DEFAULT = Route(
    path=("/", "/invocations"),
    handler=default,
    summary="What the model is for: as /embed, /predict, /rerank or /predict_tokens",
    method="POST",
    answer=Any,
    raises=INPUT_ERRORS,
)
ROUTES = (EMBED, EMBED_ALL, PREDICT, RERANK, PREDICT_TOKENS, DEFAULT)
