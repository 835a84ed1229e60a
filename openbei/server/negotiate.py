"""The form of an answer: JSON, MessagePack or bare float32, as it is or compressed; and compressed bodies, read back.

Owns the reading of Accept, Accept-Encoding and Content-Encoding; never touches routes or what an answer means.
"""

import asyncio
import gzip
import math
import sys
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.responses import Response

from openbei.errors import MalformedBody, PayloadTooLarge, UnsupportedMediaType
from openbei.server.route import Call
from openbei.wire.openai import Embeddings

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

JSON, RAW = "application/json", "application/octet-stream"
MSGPACKS = ("application/msgpack", "application/x-msgpack", "application/vnd.msgpack")
SHAPE_HEADERS = ("x-shape", "x-dtype")
VARY = "accept, accept-encoding"

# By benchmarks/answers.py: to compress vectors as JSON text saves time on lines below 1,200 Mbit/s with zstd and below
# 400 with gzip, less for answers shorter than this. What keeps over 2/3 of its size (base64, MessagePack, float32) is
# left as it is: gzip would save time on it below 180 Mbit/s at best, and below 80 where it is long.
MIN_COMPRESSED_BYTES = 16_384
SAMPLE_BYTES = 4096
MAX_SAMPLE_RATIO = 2 / 3
FAST = 1

# RFC 9659: what is sent as zstd needs no more memory than this to be read.
MAX_ZSTD_WINDOW_LOG = 23


# Answers


def written(value: Any, accept: str) -> Response:
    """A value -> its answer in the best form that an Accept header names; JSON for all others, and for errors.

    MessagePack has the structure of the JSON, and vectors as float32. Of /embed and /v1/embeddings the bare form is
    the vectors alone, little-endian and row by row; x-shape and x-dtype say how to read them.
    """
    rows = vectors_of(value)
    form = best_form(accept, with_raw=rows is not None)
    if form == RAW and rows is not None:
        shape = ",".join(map(str, rows.shape))
        headers = dict(zip(SHAPE_HEADERS, (shape, "float32"), strict=True))
        return Response(rows.astype("<f4", copy=False).tobytes(), headers=headers, media_type=RAW)
    body = to_json(value) if form == JSON else to_msgpack(value)
    return Response(body, media_type=form)


def vectors_of(value: Any) -> NDArray[np.float32] | None:
    """An answer -> its float32 array (N, dimensions) or (N,), if it holds one and nothing else that matters."""
    if isinstance(value, Embeddings) and all(isinstance(one.embedding, np.ndarray) for one in value.data):
        return np.stack([one.embedding for one in value.data])
    return value if isinstance(value, np.ndarray) else None


def best_form(accept: str, with_raw: bool) -> str:
    """An Accept header -> the media type to write; one of equal weight with JSON wins, for it was named on purpose."""
    weights = weights_of(accept)
    everything = weights.get("*/*", 0.0 if weights else 1.0)
    offered = {JSON: weights.get(JSON, weights.get("application/*", everything))}
    offered |= {name: weights[name] for name in MSGPACKS if name in weights}
    if with_raw:
        offered |= {RAW: weights.get(RAW, 0.0)}
    best = max(offered.values())
    return [name for name, weight in offered.items() if weight == best][-1] if best > 0 else JSON


def weights_of(header: str) -> dict[str, float]:
    """An Accept or Accept-Encoding header -> what it names, each with its weight from 0 to 1; 1 where none is read."""
    weights = {}
    for item in header.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        weight = next((one[2:] for one in parameters if one.startswith("q=")), "1")
        if name:
            weights[name] = min(max(as_float(weight), 0.0), 1.0)
    return weights


def as_float(text: str) -> float:
    """A weight as it stands in a header; 1 if it cannot be read, or is no number."""
    try:
        number = float(text)
    except ValueError:
        return 1.0
    return 1.0 if math.isnan(number) else number


def to_json(value: Any) -> bytes:
    """Plain values, dataclasses and C-contiguous float32 arrays -> JSON; floats in their shortest float32 form."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


def to_msgpack(value: Any) -> bytes:
    """As to_json, in MessagePack: the same structure, with arrays as float32 and other floats as float64."""
    return ENCODER.encode(value)


def plain(value: Any) -> Any:
    """What MessagePack's writer does not know: NumPy's arrays and numbers."""
    if isinstance(value, np.ndarray) and value.dtype == np.float32 and value.ndim in {1, 2}:
        return msgspec.Raw(packed(value))
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no form in MessagePack")


def packed(array: NDArray[np.float32]) -> bytes:
    """A float32 array (D,) or (N, D) -> MessagePack's array of numbers, or of such arrays, without a loop over them."""
    rows = np.atleast_2d(array)
    head = array_head(rows.shape[1])
    cells = np.empty((len(rows), len(head) + 5 * rows.shape[1]), np.uint8)
    cells[:, : len(head)] = list(head)
    cells[:, len(head) :: 5] = 0xCA
    octets = np.ascontiguousarray(rows, ">f4").view(np.uint8)
    for place in range(4):
        cells[:, len(head) + 1 + place :: 5] = octets[:, place::4]
    return (array_head(len(rows)) if array.ndim == 2 else b"") + cells.tobytes()


def array_head(length: int) -> bytes:
    """The mark before an array of that length (MessagePack's specification, array format family)."""
    if length < 16:
        return bytes([0x90 | length])
    return b"\xdc" + length.to_bytes(2, "big") if length < 65536 else b"\xdd" + length.to_bytes(4, "big")


ENCODER = msgspec.msgpack.Encoder(enc_hook=plain)


# Compression


async def compressed(call: Call, response: Response) -> Response:
    """The answer, compressed where the client takes it and it pays; a thread of its own does the work."""
    response.headers.add_vary_header(VARY)
    coding = best_coding(", ".join(call.http.headers.getlist("accept-encoding"))) if call.config.compress else None
    if coding is not None and pays(bytes(response.body)):
        response.body = await asyncio.to_thread(COMPRESSORS[coding], bytes(response.body))
        response.headers["content-encoding"] = coding
        response.headers["content-length"] = str(len(response.body))
    return response


def best_coding(accept_encoding: str) -> str | None:
    """An Accept-Encoding header -> zstd before gzip, whichever it takes; None: as it is."""
    weights = weights_of(accept_encoding)
    return next((coding for coding in COMPRESSORS if weights.get(coding, 0.0) > 0), None)


def pays(body: bytes) -> bool:
    """True if a body is long enough, and what stands in its middle shrinks."""
    if len(body) < MIN_COMPRESSED_BYTES:
        return False
    middle = len(body) // 2
    sample = body[middle : middle + SAMPLE_BYTES]
    return len(zlib.compress(sample, FAST)) <= len(sample) * MAX_SAMPLE_RATIO


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "zstd": lambda body: zstd.compress(body, FAST),
    "gzip": lambda body: gzip.compress(body, FAST, mtime=0),
}


# Compressed bodies


def coding_of(headers: Mapping[str, str]) -> str | None:
    """The Content-Encoding of a body, None if it is as it is. Raises UnsupportedMediaType for one not read here."""
    coding = headers.get("content-encoding", "identity").strip().lower().removeprefix("x-")
    if coding == "identity":
        return None
    if coding not in DECOMPRESSORS:
        raise UnsupportedMediaType("the Content-Encoding must be zstd, gzip or identity")
    return coding


def inflate(body: bytes, coding: str, limit_bytes: int) -> bytes:
    """A compressed body -> its bytes; no more than the limit are ever written out, however small the body is.

    Raises PayloadTooLarge, and MalformedBody if it is broken, ends too soon or goes on after its end.
    """
    decompressor = DECOMPRESSORS[coding]()
    try:
        plain = decompressor.decompress(body, limit_bytes + 1)
    except (zlib.error, zstd.ZstdError) as error:
        raise MalformedBody(f"the body is not {coding}, as its Content-Encoding says: {error}") from None
    if len(plain) > limit_bytes:
        raise PayloadTooLarge(f"the body has more than {limit_bytes} bytes when it is unpacked, the most that is read")
    if not decompressor.eof:
        raise MalformedBody(f"the body is not {coding}, as its Content-Encoding says: it ends too soon")
    if decompressor.unused_data:
        raise MalformedBody(f"the body goes on after the end of its {coding}, which must be one piece")
    return bytes(plain)


DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    "zstd": lambda: zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: MAX_ZSTD_WINDOW_LOG}),
    "gzip": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),
}
