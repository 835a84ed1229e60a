"""What a client sends, read and refused: key, body, deadline; and its translation into an engine's Request.

Owns every check that comes before the engine's, in the order of the contract: key (E05), content type (E02),
size (E04), JSON (E01), shape (E03). Never touches answers.
"""

import asyncio
import functools
import hmac
import re
import time
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest

from openbei.engine.request import Input, Options, Request, Result, Task
from openbei.errors import (
    InvalidInput,
    MalformedBody,
    PayloadTooLarge,
    Unauthorized,
    Unhealthy,
    UnsupportedMediaType,
)
from openbei.server.route import Call
from openbei.wire.inputs import CutOptions, EmbedOptions, PromptOptions, ScoreOptions

# curl -d names the form type when it is told none, and so do published examples of BEI.
FORM_TYPE = "application/x-www-form-urlencoded"
JSON_TYPE = re.compile(r"application/([^/]+\+)?json")
MILLISECONDS = re.compile(r"[0-9]{1,15}")


def check_key(headers: Mapping[str, str], api_key: str | None) -> None:
    """Raise Unauthorized unless the Authorization header holds the key, as `Bearer K` or `Api-Key K`."""
    if api_key is None:
        return
    scheme, _, key = headers.get("authorization", "").partition(" ")
    known = scheme.lower() in {"bearer", "api-key"}
    # Header text is latin-1 by the HTTP standard, so this is the byte string that was sent.
    same = hmac.compare_digest(key.strip().encode("latin-1", "replace"), api_key.encode())
    if not (known and same):
        raise Unauthorized("an API key is required: send it as `Authorization: Bearer KEY`")


async def read(http: HTTPRequest, shape: Any, limit_bytes: int) -> Any:
    """Request -> its body as `shape`; raises E02, E04, E01, E03 and ClientDisconnect."""
    check_type(http.headers)
    return decode(await read_bytes(http, limit_bytes), shape)


def check_type(headers: Mapping[str, str]) -> None:
    """Raise UnsupportedMediaType unless the body is plain JSON by its headers."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if not JSON_TYPE.fullmatch(kind) and kind != FORM_TYPE:
        raise UnsupportedMediaType("the Content-Type must be application/json")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("a Content-Encoding is not supported; send the body as it is")


async def read_bytes(http: HTTPRequest, limit_bytes: int) -> bytes:
    """The whole body; refused as soon as its header, or what has come in, is larger than the limit."""
    length = http.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limit_bytes:
        raise too_large(length, limit_bytes)
    chunks, size = [], 0
    async for chunk in http.stream():
        size += len(chunk)
        if size > limit_bytes:
            raise too_large(f"at least {size}", limit_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def too_large(size: str, limit_bytes: int) -> PayloadTooLarge:
    """The error for a body over the limit."""
    return PayloadTooLarge(f"the body has {size[:20]} bytes > maximum of {limit_bytes}")


def decode(body: bytes, shape: Any) -> Any:
    """JSON bytes -> `shape`; raises MalformedBody (not JSON, not UTF-8, too deep) or InvalidInput (another shape)."""
    try:
        text = body.decode()  # unknown fields are skipped unread, so their bytes are checked here
        try:
            return decoder(shape).decode(text)
        except msgspec.ValidationError as error:
            decoder(msgspec.Raw).decode(text)  # the shape fails on the way, and bad JSON further on comes first
            raise InvalidInput(explain(error, shape)) from None
    except UnicodeDecodeError as error:
        raise MalformedBody(f"the body is not UTF-8: byte {error.start} cannot be read") from None
    except msgspec.DecodeError as error:
        raise MalformedBody(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise MalformedBody("the body is not JSON that can be read: it is nested too deeply") from None


@functools.cache
def decoder(shape: Any) -> msgspec.json.Decoder[Any]:
    """The reader of one shape, made once."""
    return msgspec.json.Decoder(shape)


def explain(error: msgspec.ValidationError, shape: Any) -> str:
    """The reader's message, which names the field; where it would echo the value, the allowed ones instead."""
    message = str(error)
    if not message.startswith("Invalid enum value"):
        return message
    path = message.rpartition("`")[0].rpartition("`$")[2]
    allowed = literals(shape, re.findall(r"\[[^]]*\]|\w+", path))
    return f"Expected one of {', '.join(map(repr, allowed))} - at `${path}`"


def literals(hint: Any, path: Sequence[str]) -> list[Any]:
    """A type, and a path below it -> the values of the Literal types there. Steps are field names, or as "[0]"."""
    kinds = get_args(hint) if get_origin(hint) in {Union, types.UnionType} else (hint,)
    if not path:
        return [value for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    if path[0].startswith("["):
        below = [get_args(kind)[0] for kind in kinds if get_origin(kind) is list]
    else:
        below = [get_type_hints(kind)[path[0]] for kind in kinds if path[0] in getattr(kind, "__struct_fields__", ())]
    return [value for kind in below for value in literals(kind, path[1:])]


def deadline_s(headers: Mapping[str, str], arrived_s: float) -> float | None:
    """The client's deadline on the clock of time.monotonic(), None if it set none; unreadable values are ignored.

    request-timeout-ms counts from arrival, request-deadline-ms is an epoch time of the client's clock. Of both the
    earlier counts; a deadline already past beside a timeout is a wrong clock, and is ignored.
    """
    timeout_ms = milliseconds(headers.get("request-timeout-ms", ""))
    deadline_ms = milliseconds(headers.get("request-deadline-ms", ""))
    left_ms = [] if timeout_ms is None else [timeout_ms]
    if deadline_ms is not None:
        remaining_ms = deadline_ms - time.time() * 1000
        if remaining_ms >= 0 or timeout_ms is None:
            left_ms.append(remaining_ms)
    return arrived_s + min(left_ms) / 1000 if left_ms else None


def milliseconds(text: str) -> float | None:
    """A header's whole number, None if it is not one."""
    return float(text) if MILLISECONDS.fullmatch(text) else None


def engine_request(call: Call, inputs: Sequence[Input], body: CutOptions, task: Task = "embed") -> Request:
    """A batch and the options that its body holds -> the engine's Request."""
    return request_of(call, inputs, engine_options(body), task)


def request_of(call: Call, inputs: Sequence[Input], options: Options, task: Task = "embed") -> Request:
    """A batch and its options -> the engine's Request, with the deadline that the client set."""
    return Request(inputs=inputs, task=task, options=options, deadline_s=deadline_s(call.http.headers, call.arrived_s))


def engine_options(body: CutOptions) -> Options:
    """The options as sent -> the engine's; null becomes the default."""
    embed = body if isinstance(body, EmbedOptions) else EmbedOptions()
    return Options(
        truncate=body.truncate,
        truncation_direction="left" if body.truncation_direction in {"Left", "left"} else "right",
        prompt_name=body.prompt_name if isinstance(body, PromptOptions) else None,
        normalize=embed.normalize is not False,
        dimensions=embed.dimensions,
        raw_scores=isinstance(body, ScoreOptions) and body.raw_scores is True,
    )


async def answered(call: Call, request: Request) -> Result:
    """Request -> the engine's Result; a client that hangs up meanwhile cancels it and raises ClientDisconnect."""
    result = asyncio.wrap_future(call.engine.submit(request))
    hung_up = asyncio.ensure_future(disconnected(call.http))
    try:
        await asyncio.wait((result, hung_up), return_when=asyncio.FIRST_COMPLETED)
        if not result.done():
            raise ClientDisconnect
    finally:
        hung_up.cancel()
        result.cancel()  # reaches the engine's future; does nothing to one that is done
    if result.cancelled():
        raise Unhealthy("the request was dropped by the server")
    return result.result()


async def disconnected(http: HTTPRequest) -> None:
    """Wait until the client is gone; its body must have been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
