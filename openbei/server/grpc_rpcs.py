"""tei.v1's rpcs: a translation between its messages and the engine's words, and nothing else.

An rpc is a row of RPCS: how a message begins its way (to a future of what the engine says), and how that becomes the
response. Its stream is made of the same row. Differences from HTTP: one text a message, and what is unset is false.
"""

import asyncio
import time
from collections.abc import AsyncIterable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np

from openbei.engine.models import Asked
from openbei.engine.request import Direction, Options, Pair, Request, Result, Timings, Usage
from openbei.errors import EmptyInput, InvalidInput
from openbei.server import grpc_answers as answers
from openbei.server.grpc_calls import Begin, Call, in_order
from openbei.wire import tei_pb2 as pb

Future = asyncio.Future[Any]

DIRECTIONS: dict[int, Direction] = {pb.TRUNCATION_DIRECTION_RIGHT: "right", pb.TRUNCATION_DIRECTION_LEFT: "left"}


@dataclass(frozen=True, slots=True)
class Rpc:
    """A unary rpc, and with `stream` the one of the same name and "Stream" behind it, a response a message.

    answer: the call, a message and the engine's result -> the bytes of the response. asks: as Models.choose has it.
    waits: the unary rpc waits for room in the engine; streams always do.
    """

    service: str
    name: str
    begin: Begin
    answer: Callable[[Call, Any, Any], bytes]
    asks: Asked = "any"
    waits: bool = False
    stream: bool = True


def asking(request: Callable[[Any], Request]) -> Begin:
    """A message -> Request translation -> the beginning of its rpc."""

    async def begin(call: Call, message: Any) -> asyncio.Future[Result]:
        return await call.submit(request(message))

    return begin


# Embed


def embed_request(message: pb.EmbedRequest) -> Request:
    """EmbedRequest -> Request."""
    options = Options(
        truncate=message.truncate,
        truncation_direction=direction(message.truncation_direction),
        prompt_name=optional(message, "prompt_name"),
        normalize=optional(message, "normalize") is not False,
        dimensions=optional(message, "dimensions"),
    )
    return Request(inputs=[message.inputs], options=options)


def embed_all_request(message: pb.EmbedAllRequest) -> Request:
    """EmbedAllRequest -> Request."""
    return Request(inputs=[message.inputs], task="embed_tokens", options=prompt_options(message))


def embed_sparse_request(message: pb.EmbedSparseRequest) -> Request:
    """EmbedSparseRequest -> Request."""
    return Request(inputs=[message.inputs], task="embed_sparse", options=prompt_options(message))


def prompt_options(message: pb.EmbedAllRequest | pb.EmbedSparseRequest) -> Options:
    """The options that these messages share."""
    return Options(
        truncate=message.truncate,
        truncation_direction=direction(message.truncation_direction),
        prompt_name=optional(message, "prompt_name"),
    )


# Predict and Rerank


def predict_request(message: pb.PredictRequest) -> Request:
    """PredictRequest -> Request."""
    return Request(inputs=[message.inputs], task="classify", options=score_options(message))


def predict_pair_request(message: pb.PredictPairRequest) -> Request:
    """PredictPairRequest -> Request; one text is no pair but is taken too."""
    inputs = list(message.inputs)
    if len(inputs) not in {1, 2}:
        raise InvalidInput(f"inputs must hold one or two texts, got {len(inputs)}")
    return Request(
        inputs=[Pair(*inputs) if len(inputs) == 2 else inputs[0]], task="classify", options=score_options(message)
    )


def rerank_request(message: pb.RerankRequest) -> Request:
    """RerankRequest -> Request."""
    pairs = [Pair(message.query, text) for text in message.texts]
    return Request(inputs=pairs, task="rerank", options=score_options(message))


def score_options(message: pb.PredictRequest | pb.PredictPairRequest | pb.RerankRequest) -> Options:
    """The options that these messages share."""
    return Options(
        truncate=message.truncate,
        truncation_direction=direction(message.truncation_direction),
        raw_scores=message.raw_scores,
    )


async def rerank_stream(call: Call, messages: AsyncIterable[pb.RerankStreamRequest]) -> tuple[bytes, Result]:
    """A whole stream -> RerankResponse, and a Result for its cost. raw_scores and return_text: the first message's."""
    first: list[pb.RerankStreamRequest] = []
    texts: list[str] = []
    results: list[Result] = []

    async def begin(call: Call, message: pb.RerankStreamRequest) -> asyncio.Future[Result]:
        first[:] = first or [message]
        options = Options(
            truncate=message.truncate,
            truncation_direction=direction(message.truncation_direction),
            raw_scores=first[0].raw_scores,
        )
        return await call.submit(Request(inputs=[Pair(message.query, message.text)], task="rerank", options=options))

    async with aclosing(in_order(call, messages, begin)) as answered:
        async for message, result in answered:
            texts.append(message.text)
            results.append(result)
    if not results:
        raise EmptyInput("the stream must hold at least one message")
    whole = joined(results, time.monotonic() - call.arrived_s)
    return answers.ranks(whole, texts if first[0].return_text else None), whole


def joined(results: list[Result], total_s: float) -> Result:
    """Results of one score each -> one, with the means of their times."""
    times = [(one.timings.tokenization_s, one.timings.queue_s, one.timings.inference_s) for one in results]
    num_tokens = sum(one.usage.num_tokens for one in results)
    num_characters = sum(one.usage.num_characters for one in results)
    rows = np.array([one.rows[0] for one in results], np.float32)
    tokenization_s, queue_s, inference_s = map(float, np.mean(times, axis=0))
    timings = Timings(total_s, tokenization_s, queue_s, inference_s)
    return Result(rows, Usage(num_tokens, num_characters), timings)


# Tokenize


async def tokenize(call: Call, message: pb.EncodeRequest) -> Future:
    """EncodeRequest -> the future of its tokens."""
    found = call.engine.tokenize([message.inputs], message.add_special_tokens, optional(message, "prompt_name"))
    return asyncio.wrap_future(found)


async def decode(call: Call, message: pb.DecodeRequest) -> Future:
    """DecodeRequest -> the future of its text."""
    return asyncio.wrap_future(call.engine.decode([list(message.ids)], message.skip_special_tokens))


# Info


async def info(call: Call, _: pb.InfoRequest) -> Future:
    """InfoRequest -> what is known already."""
    known: Future = asyncio.get_running_loop().create_future()
    known.set_result(None)
    return known


# Fields


def direction(number: int) -> Direction:
    """TruncationDirection -> the engine's word. Raises InvalidInput for a number without a name."""
    found = DIRECTIONS.get(number)
    if found is None:
        raise InvalidInput(f"truncation_direction must be one of {sorted(DIRECTIONS)}, got {number}")
    return found


def optional(message: Any, field: str) -> Any:
    """The value of a field with presence, None if it is not set."""
    return getattr(message, field) if message.HasField(field) else None


RPCS = (
    Rpc("Info", "Info", info, answers.info, stream=False),
    Rpc("Embed", "Embed", asking(embed_request), answers.embedding, "embed"),
    Rpc("Embed", "EmbedSparse", asking(embed_sparse_request), answers.sparse, "embed_sparse"),
    Rpc("Embed", "EmbedAll", asking(embed_all_request), answers.token_embeddings, "embed_tokens"),
    Rpc("Predict", "Predict", asking(predict_request), answers.predictions, "classify"),
    Rpc("Predict", "PredictPair", asking(predict_pair_request), answers.predictions, "classify"),
    Rpc("Rerank", "Rerank", asking(rerank_request), answers.rerank, "rerank", waits=True, stream=False),
    Rpc("Tokenize", "Tokenize", tokenize, answers.tokens),
    Rpc("Tokenize", "Decode", decode, answers.text),
)
