"""Results -> the bytes of tei.v1's responses.

Owns the writing of messages; never touches what was asked, how it was computed, or the rpc.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from openbei import __version__
from openbei.engine.request import Result, Tokenized
from openbei.server.answers import best_first
from openbei.server.routes.tokens import simple_tokens
from openbei.wire import tei_pb2 as pb

if TYPE_CHECKING:
    from openbei.server.grpc_calls import Call

Floats = NDArray[np.float32]


def embedding(_: "Call", __: pb.EmbedRequest, result: Result) -> bytes:
    """The vector of one text -> EmbedResponse."""
    rows: Any = result.rows
    return floats(1, rows[0]) + encoded(pb.EmbedResponse(metadata=cost(result)))


def token_embeddings(_: "Call", __: pb.EmbedAllRequest, result: Result) -> bytes:
    """The states (n, C) of one text's tokens -> EmbedAllResponse."""
    rows: Any = result.rows
    tokens = (chunk(1, floats(1, row)) for row in rows[0])
    return b"".join(tokens) + encoded(pb.EmbedAllResponse(metadata=cost(result)))


def sparse(_: "Call", __: pb.EmbedSparseRequest, result: Result) -> bytes:
    """The weights of one text's words -> EmbedSparseResponse."""
    rows: Any = result.rows
    pairs = zip(rows[0].indices.tolist(), rows[0].values.tolist(), strict=True)
    values = [pb.SparseValue(index=index, value=value) for index, value in pairs]
    return encoded(pb.EmbedSparseResponse(sparse_embeddings=values, metadata=cost(result)))


def predictions(call: "Call", _: pb.PredictRequest | pb.PredictPairRequest, result: Result) -> bytes:
    """The scores (L,) of one text or pair -> PredictResponse, the best label first."""
    rows: Any = result.rows
    scores, labels = rows[0], call.info.labels
    found = [pb.Prediction(score=scores[place], label=labels[place]) for place in best_first(scores)]
    return encoded(pb.PredictResponse(predictions=found, metadata=cost(result)))


def rerank(_: "Call", message: pb.RerankRequest, result: Result) -> bytes:
    """The scores (N,) of a RerankRequest -> RerankResponse."""
    return ranks(result, message.texts if message.return_text else None)


def ranks(result: Result, texts: Sequence[str] | None) -> bytes:
    """Scores (N,) -> RerankResponse, the best first, with the texts if they are given."""
    scores: Any = result.rows
    found = [
        pb.Rank(index=place, score=scores[place], text=None if texts is None else texts[place])
        for place in best_first(scores)
    ]
    return encoded(pb.RerankResponse(ranks=found, metadata=cost(result)))


def tokens(_: "Call", __: pb.EncodeRequest, found: Sequence[Tokenized]) -> bytes:
    """The tokens of one text -> EncodeResponse."""
    made = [
        pb.SimpleToken(id=token.id, text=token.text, special=token.special, start=token.start, stop=token.stop)
        for token in simple_tokens(found[0])
    ]
    return encoded(pb.EncodeResponse(tokens=made))


def text(_: "Call", __: pb.DecodeRequest, found: Sequence[str]) -> bytes:
    """The text of one id list -> DecodeResponse."""
    return encoded(pb.DecodeResponse(text=found[0]))


def info(call: "Call", _: pb.InfoRequest, __: None) -> bytes:
    """What is served -> InfoResponse; a token classifier is called a classifier, as TEI would."""
    config, facts = call.engine.config, call.info
    kind = pb.MODEL_TYPE_CLASSIFIER if facts.labels else pb.MODEL_TYPE_EMBEDDING
    response = pb.InfoResponse(
        version=__version__,
        model_id=facts.model_id,
        model_sha=facts.revision,
        model_dtype=facts.dtype,
        model_type=pb.MODEL_TYPE_RERANKER if facts.kind == "reranker" else kind,
        max_concurrent_requests=config.max_concurrent_requests,
        max_input_length=facts.max_input_length,
        max_batch_tokens=facts.max_batch_tokens,
        max_batch_requests=config.max_batch_requests,
        max_client_batch_size=config.max_client_batch_size,
        tokenization_workers=facts.tokenization_workers,
    )
    return encoded(response)


def encoded(message: Any) -> bytes:
    """A message -> its bytes."""
    data: bytes = message.SerializeToString()
    return data


def floats(field: int, row: Floats) -> bytes:
    """float32 (n,) -> a packed repeated field; the message library would take ten times as long for each value."""
    return chunk(field, row.astype("<f4", copy=False).tobytes())


def chunk(field: int, content: bytes) -> bytes:
    """Bytes -> a field of them, as protobuf writes it: its number and kind, the length, the bytes.

    Such fields joined to a message's bytes are one message. https://protobuf.dev/programming-guides/encoding/
    """
    return varint(field << 3 | 2) + varint(len(content)) + content


def varint(number: int) -> bytes:
    """A number in groups of seven bits, the lowest first; the top bit says that more follow."""
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes((*groups, number))


def cost(result: Result) -> pb.Metadata:
    """What the engine tells of an answer; seconds become whole nanoseconds."""
    times, usage = result.timings, result.usage
    return pb.Metadata(
        compute_chars=usage.num_characters,
        compute_tokens=usage.num_tokens,
        total_time_ns=int(times.total_s * 1e9),
        tokenization_time_ns=int(times.tokenization_s * 1e9),
        queue_time_ns=int(times.queue_s * 1e9),
        inference_time_ns=int(times.inference_s * 1e9),
    )
