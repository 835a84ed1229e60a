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
    TooSlow,
    Unauthorized,
    Unhealthy,
    UnsupportedMediaType,
)
from openbei.server.negotiate import coding_of, inflate
from openbei.server.route import Call
from openbei.server.trace import note
from openbei.wire.inputs import CutOptions, EmbedOptions, PromptOptions, ScoreOptions

# curl -d names the form type when it is told none, and so do published examples of BEI.
FORM_TYPE = "application/x-www-form-urlencoded"
JSON_TYPE = re.compile(r"application/([^/]+\+)?json")
MILLISECONDS = re.compile(r"[0-9]{1,15}")
POSITIVE = re.compile(r"\+?0*[1-9][0-9]*")
REQUEST_ID = "x-request-id"
CUSTOMER_REQUEST_ID = "x-baseten-customer-request-id"
MODEL_HEADER = "x-model"
BULK_WORDS = frozenset({"bulk", "batch", "low"})


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


def ids(headers: Mapping[str, str]) -> dict[str, str]:
    """Of a request's headers those that name it: a gateway's id, and the customer's."""
    return {name: headers[name] for name in (REQUEST_ID, CUSTOMER_REQUEST_ID) if name in headers}


def ids_text(headers: Mapping[str, str]) -> str:
    """The ids as the end of a line of the log."""
    return "".join(f" {name}={value!r}" for name, value in ids(headers).items())


def name_of(call: Call, body: Any) -> str | None:
    """The model that a call names, if any: its header x-model, else its body, or its query where there is no body."""
    named = call.http.query_params.get("model") if body is None else getattr(body, "model", None)
    return call.http.headers.get(MODEL_HEADER) or named


async def read(call: Call, shape: Any) -> Any:
    """Call -> its body as `shape`; raises E02, E04, TooSlow, E01, E03 and ClientDisconnect."""
    check_type(call.http.headers)
    coding, limit_bytes = coding_of(call.http.headers), call.config.payload_limit
    try:
        async with asyncio.timeout(call.config.read_timeout_ms / 1000):
            body = await read_bytes(call.http, limit_bytes)
    except TimeoutError:
        raise TooSlow(f"the body did not come in within {call.config.read_timeout_ms} ms") from None
    if coding is not None:
        body = await asyncio.to_thread(inflate, body, coding, limit_bytes)
    return decode(body, shape)


def check_type(headers: Mapping[str, str]) -> None:
    """Raise UnsupportedMediaType unless the body is plain JSON by its headers."""
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if not JSON_TYPE.fullmatch(kind) and kind != FORM_TYPE:
        raise UnsupportedMediaType("the Content-Type must be application/json")


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
    return request_of(call, inputs, engine_options(body), task, body.priority)


def request_of(
    call: Call, inputs: Sequence[Input], options: Options, task: Task = "embed", priority: int | None = None
) -> Request:
    """A batch and its options -> the engine's Request, with the deadline and the priority that the client set."""
    headers = call.http.headers
    return Request(
        inputs=inputs,
        task=task,
        options=options,
        deadline_s=deadline_s(headers, call.arrived_s),
        bulk=is_bulk(headers, priority),
    )


def is_bulk(headers: Mapping[str, str], priority: int | None) -> bool:
    """True if a request may wait for others: by its x-priority or x-baseten-priority, else by its body's number.

    Words for it are bulk, batch and low; of numbers, all above 0. The header is a hint: any other value means no.
    """
    word = headers.get("x-priority", headers.get("x-baseten-priority"))
    if word is None:
        return priority is not None and priority > 0
    return word.strip().lower() in BULK_WORDS or POSITIVE.fullmatch(word.strip()) is not None


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
    answer = result.result()
    note(call.http.scope, answer.timings)
    return answer


async def disconnected(http: HTTPRequest) -> None:
    """Wait until the client is gone; its body must have been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
