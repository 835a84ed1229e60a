"""TEI's /tokenize and /decode: text to tokens and back, without the model."""

import asyncio
from typing import Any

import numpy as np
from starlette.responses import Response

from openbei.engine.request import Tokenized
from openbei.server.answers import json_answer
from openbei.server.route import INPUT_ERRORS, Call, Route
from openbei.wire.inputs import as_id_lists
from openbei.wire.tei import DecodeRequest, SimpleToken, TokenizeRequest


async def tokenize(call: Call, body: TokenizeRequest) -> Response:
    """POST /tokenize."""
    texts = [body.inputs] if isinstance(body.inputs, str) else body.inputs
    future = call.engine.tokenize(texts, body.add_special_tokens is not False, body.prompt_name)
    return json_answer([simple_tokens(one) for one in await asyncio.wrap_future(future)])


def simple_tokens(tokenized: Tokenized) -> list[SimpleToken]:
    """A text's tokens -> TEI's, whose places are counted in UTF-8 bytes."""
    places = byte_places(tokenized.text)
    return [
        SimpleToken(token.id, token.text, True, None, None)
        if token.special
        else SimpleToken(token.id, token.text, False, places[token.start], places[token.end])
        for token in tokenized.tokens
    ]


def byte_places(text: str) -> list[int]:
    """A text of n code points -> the UTF-8 byte at which each begins, and the last one ends: n + 1 places."""
    points: Any = np.frombuffer(text.encode("utf-32-le"), "<u4")
    widths = 1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)
    places: list[int] = [0, *np.cumsum(widths).tolist()]
    return places


async def decode(call: Call, body: DecodeRequest) -> Response:
    """POST /decode."""
    future = call.engine.decode(as_id_lists(body.ids), body.skip_special_tokens is not False)
    return json_answer(await asyncio.wrap_future(future))


ROUTES = (
    Route(
        path=("/tokenize",),
        handler=tokenize,
        summary="Cut texts into tokens (TEI)",
        method="POST",
        body=TokenizeRequest,
        asks="any",
        answer=list[list[SimpleToken]],
        raises=INPUT_ERRORS,
    ),
    Route(
        path=("/decode",),
        handler=decode,
        summary="Turn token ids into texts (TEI)",
        method="POST",
        body=DecodeRequest,
        asks="any",
        answer=list[str],
        raises=INPUT_ERRORS,
    ),
)
