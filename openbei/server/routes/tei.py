"""TEI's and BEI's routes: a translation between their bodies and the engine's words, and nothing else."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from openbei.engine.entities import Entity, find_entities
from openbei.engine.request import Chat, Input, Pair, Result, Token
from openbei.errors import EmptyInput
from openbei.server.answers import Compute, Outcome, best_first, measured, token_vectors, vectors
from openbei.server.intake import answered, engine_request
from openbei.server.route import INPUT_ERRORS, Call, Route
from openbei.wire.inputs import EmbedOptions, Message, as_batch, as_classified, as_texts
from openbei.wire.tei import (
    EmbedAllRequest,
    EmbedRequest,
    Prediction,
    Predictions,
    PredictRequest,
    PredictTokensRequest,
    Rank,
    RerankRequest,
    SimilarityOptions,
    SimilarityRequest,
    TextRank,
    TokenPrediction,
    TokenPredictions,
    TokenVectors,
    Vectors,
)


async def embed(call: Call, body: EmbedRequest) -> Outcome:
    """POST /embed."""
    result = await answered(call, engine_request(call, as_batch(body.inputs), body))
    return vectors(result), result


async def embed_all(call: Call, body: EmbedAllRequest) -> Outcome:
    """POST /embed_all."""
    result = await answered(call, engine_request(call, as_batch(body.inputs), body, "embed_tokens"))
    return token_vectors(result), result


async def predict(call: Call, body: PredictRequest) -> Outcome:
    """POST /predict."""
    batch, is_batch = as_classified(body.inputs)
    inputs = [classified_input(*one) for one in batch]
    result = await answered(call, engine_request(call, inputs, body, "classify"))
    rows: Any = result.rows
    names = call.engine.info.labels
    lists = [[Prediction(row[place], names[place]) for place in best_first(row)] for row in rows]
    return (lists if is_batch else lists[0]), result


def classified_input(first: str | Message, *others: Any) -> Input:
    """One or two texts, or messages -> the engine's input. Raises InvalidInput for a wrong message."""
    if not isinstance(first, str):
        return Chat((first, *others))
    return Pair(first, *others) if others else first


async def rerank(call: Call, body: RerankRequest) -> Outcome:
    """POST /rerank."""
    pairs = [Pair(body.query, text) for text in body.texts]
    result = await answered(call, engine_request(call, pairs, body, "rerank"))
    return ranks(result, body.texts if body.return_text else None), result


def ranks(result: Result, texts: Sequence[str] | None) -> list[Rank]:
    """Scores (N,) -> ranks, the best first, with the texts if they are given."""
    scores: Any = result.rows
    order = best_first(scores)
    if texts is None:
        return [Rank(place, scores[place]) for place in order]
    return [TextRank(place, scores[place], texts[place]) for place in order]


async def predict_tokens(call: Call, body: PredictTokensRequest) -> Outcome:
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
    return lists, result


def token_prediction(token: Token, row: Any, names: Sequence[str], body: PredictTokensRequest) -> TokenPrediction:
    """A token and its scores (L,) -> every label, the best first, if raw scores are asked for, else the best one."""
    places = best_first(row) if body.raw_scores else [row.argmax()]
    return TokenPrediction(token.text, token.id, token.start, token.end, {names[place]: row[place] for place in places})


def entity_prediction(entity: Entity, text: str) -> TokenPrediction:
    """An entity -> its answer, which looks like a token's."""
    score: Any = np.float32(entity.score)
    return TokenPrediction(text[entity.start : entity.end], 0, entity.start, entity.end, {entity.label: score})


async def similarity(call: Call, body: SimilarityRequest) -> Outcome:
    """POST /similarity."""
    source, sentences = body.inputs.source_sentence, body.inputs.sentences
    if not sentences:
        raise EmptyInput("sentences must not be empty")
    options = EmbedOptions(normalize=False, **structs.asdict(body.parameters or SimilarityOptions()))
    result = await answered(call, engine_request(call, [source, *sentences], options))
    return cosines(vectors(result)), result


def cosines(rows: NDArray[np.float32]) -> Any:
    """Vectors (1 + N, C) -> float32 (N,): the cosine of the first with each other, in float64; 0 beside a zero."""
    exact = rows.astype(np.float64)
    norms = np.linalg.norm(exact, axis=1)
    products = norms[1:] * norms[0]
    dots = exact[1:] @ exact[0]
    return np.divide(dots, products, out=np.zeros_like(dots), where=products > 0).astype(np.float32)


def post(path: str, compute: Compute, summary: str, body: type, answer: Any) -> Route:
    """A row of the table below, for models that embed."""
    return Route(
        path=(path,),
        handler=measured(compute),
        summary=summary,
        method="POST",
        body=body,
        answer=answer,
        asks="embed",
        measured=True,
        raises=INPUT_ERRORS,
    )


ROUTES = (
    post("/embed", embed, "Embed texts or token ids (TEI)", EmbedRequest, Vectors),
    replace(
        post("/embed_all", embed_all, "The last hidden state of every token (TEI)", EmbedAllRequest, TokenVectors),
        asks="embed_tokens",
    ),
    replace(
        post("/predict", predict, "Classify texts, pairs or chats (TEI)", PredictRequest, Predictions), asks="classify"
    ),
    replace(
        post("/rerank", rerank, "Order texts by how well they answer a query (TEI)", RerankRequest, list[Rank]),
        asks="rerank",
    ),
    post("/similarity", similarity, "Compare texts by their vectors (TEI)", SimilarityRequest, list[float]),
    replace(
        post(
            "/predict_tokens",
            predict_tokens,
            "Label tokens, or find entities (BEI)",
            PredictTokensRequest,
            TokenPredictions,
        ),
        asks="classify_tokens",
    ),
)
