"""The form of an answer, by what the client accepts; and bodies that come compressed."""

import base64
import gzip
import json
import zlib
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from backports import zstd

from openbei.server.negotiate import MIN_COMPRESSED_BYTES, best_coding, best_form, packed, pays, to_json, to_msgpack
from tests.server.fakes import DIM, FakeEngine
from tests.server.wire import JSON, Wire, error

MSGPACK, RAW = "application/msgpack", "application/octet-stream"
BASETEN = "application/json, application/msgpack"  # what baseten-performance-client sends
LONG = {"inputs": [["text", str(i)] for i in range(600)]}  # labels by name: an answer that shrinks
BODY = {"inputs": ["red fox", "blue"]}


def long_wire(**config: Any) -> Wire:
    return Wire(FakeEngine("classifier", max_client_batch_size=10_000), **config)


# Accept


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("text/html", "application/json"),
        (";;,,q=", "application/json"),
        (BASETEN, MSGPACK),
        ("application/msgpack, application/json", MSGPACK),
        ("Application/MsgPack; Q=0.5", MSGPACK),
        ("application/x-msgpack", "application/x-msgpack"),
        ("application/msgpack;q=0.9, application/json", "application/json"),
        ("application/msgpack;q=0.9, */*", "application/json"),
        ("application/msgpack, */*;q=0.1", MSGPACK),
        ("application/msgpack;q=0", "application/json"),
        ("application/json;q=0, application/msgpack;q=nan", MSGPACK),
        ("application/msgpack;q=2;v=1", MSGPACK),
        (RAW, RAW),
        (f"{RAW};q=0.5, {MSGPACK};q=0.7", MSGPACK),
    ],
)
def test_the_best_form_that_is_named(accept: str, form: str) -> None:
    assert best_form(accept, with_raw=True) == form


def test_bare_float32_only_where_the_answer_is_that() -> None:
    assert best_form(f"{RAW}, {MSGPACK};q=0.5", with_raw=False) == MSGPACK
    assert best_form(RAW, with_raw=False) == "application/json"


ROUTES = [
    ("/embed", "embedding", BODY),
    ("/embed_all", "embedding", BODY),
    ("/v1/embeddings", "embedding", {"input": ["red fox", "blue"]}),
    ("/v1/embeddings", "embedding", {"input": "red fox", "encoding_format": "base64"}),
    ("/similarity", "embedding", {"inputs": {"source_sentence": "a", "sentences": ["b", "c"]}}),
    ("/v2/embed", "embedding", {"texts": ["a"], "embedding_types": ["float", "int8", "ubinary", "base64"]}),
    ("/predict", "classifier", BODY),
    ("/rerank", "reranker", {"query": "q", "texts": ["a", "b"], "return_text": True}),
    ("/v2/rerank", "reranker", {"query": "q", "documents": ["a", "b"]}),
    ("/predict_tokens", "token_classifier", {"inputs": "Ann lives"}),
]


def same(one: Any, other: Any) -> bool:
    """Equal in structure, with numbers of the same float32."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(key == "id" or same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return isinstance(other, float) and np.float32(one) == np.float32(other)
    return type(one) is type(other) and one == other


@pytest.mark.parametrize(("path", "kind", "body"), ROUTES, ids=str)
def test_messagepack_has_the_structure_of_the_json(path: str, kind: Any, body: dict[str, Any]) -> None:
    wire = Wire(FakeEngine(kind))
    plain, answer = wire.post(path, body), wire.post(path, body, headers={"accept": BASETEN})
    assert (plain.headers["content-type"], answer.headers["content-type"]) == ("application/json", MSGPACK)
    assert same(plain.json(), msgspec.msgpack.decode(answer.content))
    assert answer.headers["x-compute-tokens"] == plain.headers["x-compute-tokens"]
    assert answer.headers["vary"].startswith("accept, accept-encoding")


@pytest.mark.parametrize("shape", [(3, 4), (20,), (17, 16), (0, 3), (2, 70_000), (70_000, 1)])
def test_arrays_in_messagepack_are_float32(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert msgspec.msgpack.decode(packed(array)) == array.tolist()
    assert len(packed(array)) >= 5 * array.size
    assert packed(np.asfortranarray(array)) == packed(array)


def test_what_messagepack_cannot_hold_is_a_bug_and_not_a_guess() -> None:
    with pytest.raises(TypeError, match="object has no form in MessagePack"):
        to_msgpack(object())


@pytest.mark.parametrize(
    ("path", "field", "shape"),
    [("/embed", "inputs", "2,8"), ("/v1/embeddings", "input", "2,8"), ("/", "inputs", "2,8")],
)
def test_bare_float32(wire: Wire, path: str, field: str, shape: str) -> None:
    body = {field: ["red fox", "blue"]}
    response = wire.post(path, body, headers={"accept": RAW})
    assert [response.headers[name] for name in ("content-type", "x-shape", "x-dtype")] == [RAW, shape, "float32"]
    rows = np.frombuffer(response.content, "<f4").reshape(2, DIM)
    answer = wire.post(path, body).json()
    wanted = [one["embedding"] for one in answer["data"]] if isinstance(answer, dict) else answer
    assert rows.tolist() == np.array(wanted, np.float32).tolist()
    assert len(response.content) == int(response.headers["content-length"]) == 2 * DIM * 4


def test_base64_was_asked_for_in_the_body_and_so_goes_before_the_bare_form(wire: Wire) -> None:
    response = wire.post("/v1/embeddings", {"input": "a", "encoding_format": "base64"}, headers={"accept": RAW})
    assert isinstance(response.json()["data"][0]["embedding"], str)


@pytest.mark.parametrize("accept", [MSGPACK, RAW])
@pytest.mark.parametrize("path", ["/embed", "/nowhere", "/v1/embeddings"])
def test_errors_are_json_whatever_is_accepted(wire: Wire, path: str, accept: str) -> None:
    response = wire.post(path, {"inputs": "", "input": ""}, headers={"accept": accept})
    assert response.headers["content-type"] == "application/json"
    assert response.json()


# Accept-Encoding


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [
        ("", None),
        ("identity", None),
        ("deflate, br", None),
        ("gzip, deflate", "gzip"),
        ("gzip, deflate, zstd", "zstd"),
        ("zstd", "zstd"),
        ("ZSTD;q=0, GZIP;q=0.1", "gzip"),
        ("*", None),
    ],
)
def test_the_coding_that_is_named(accepted: str, coding: str | None) -> None:
    assert best_coding(accepted) == coding


@pytest.mark.parametrize("coding", ["zstd", "gzip"])
@pytest.mark.parametrize("accept", ["*/*", MSGPACK])
def test_a_long_answer_is_compressed(coding: str, accept: str) -> None:
    wire, headers = long_wire(), {"accept": accept, "accept-encoding": "identity"}
    plain = wire.post("/predict", LONG, headers=headers)
    response = wire.post("/predict", LONG, headers={**headers, "accept-encoding": coding})
    assert response.headers["content-encoding"] == coding
    assert int(response.headers["content-length"]) < len(plain.content) / 2
    assert response.content == plain.content  # httpx has unpacked it
    assert len(plain.content) > MIN_COMPRESSED_BYTES
    assert "content-encoding" not in plain.headers


def test_short_answers_and_those_that_do_not_shrink_stay_as_they_are() -> None:
    wire, zipped = long_wire(), {"accept-encoding": "gzip, zstd"}
    assert "content-encoding" not in wire.post("/predict", BODY, headers=zipped).headers
    texts = [f"text {i}" for i in range(1000)]
    wire = Wire(FakeEngine(max_client_batch_size=10_000))
    for accept, shrinks in ((MSGPACK, False), (RAW, False), ("*/*", True)):
        response = wire.post("/embed", {"inputs": texts}, headers={**zipped, "accept": accept})
        assert len(response.content) > MIN_COMPRESSED_BYTES
        assert ("content-encoding" in response.headers) == shrinks


def test_base64_does_not_pay_and_text_does() -> None:
    rows = np.random.default_rng(0).standard_normal((16, 384)).astype(np.float32)
    assert not pays(base64.b64encode(rows))
    assert pays(to_json(rows))
    assert not pays(to_json(rows)[: MIN_COMPRESSED_BYTES - 1])


def test_a_server_may_be_told_not_to_compress() -> None:
    response = long_wire(compress=False).post("/predict", LONG, headers={"accept-encoding": "zstd"})
    assert "content-encoding" not in response.headers


# Content-Encoding


def send(wire: Wire, body: bytes, coding: str) -> httpx.Response:
    return wire.post("/embed", body, headers={**JSON, "content-encoding": coding})


def unframed(text: bytes) -> bytes:
    """zstd without the size of what is inside, as a client writes it that streams."""
    return zstd.compress(text, options={zstd.CompressionParameter.content_size_flag: 0})


@pytest.mark.parametrize(
    ("coding", "pack"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", gzip.compress),
        ("GZIP ", gzip.compress),
        ("zstd", zstd.compress),
        ("zstd", unframed),
        ("identity", bytes),
    ],
)
def test_a_compressed_body_is_read(wire: Wire, coding: str, pack: Any) -> None:
    assert send(wire, pack(json.dumps(BODY).encode()), coding).json() == wire.post("/embed", BODY).json()


@pytest.mark.parametrize("coding", ["deflate", "br", "gzip, zstd", "", "zip"])
def test_another_coding_is_refused(wire: Wire, coding: str) -> None:
    assert error(send(wire, b"{}", coding)) == (415, "Validation")


@pytest.mark.parametrize(
    ("coding", "body", "message"),
    [
        ("gzip", b"", "ends too soon"),
        ("gzip", b'{"inputs": "a"}', "not gzip"),
        ("gzip", gzip.compress(b'{"inputs": "a"}', mtime=0)[:-3], "ends too soon"),
        ("gzip", gzip.compress(b'{"inputs": "a"}', mtime=0) * 2, "one piece"),
        ("gzip", zlib.compress(b'{"inputs": "a"}'), "not gzip"),
        ("zstd", b"", "ends too soon"),
        ("zstd", b'{"inputs": "a"}', "not zstd"),
        ("zstd", zstd.compress(b'{"inputs": "a"}')[:-1], "ends too soon"),
        ("zstd", zstd.compress(b'{"inputs": "a"}') + b" ", "one piece"),
        ("zstd", unframed(b" " * 10)[:4] + b"\x88" + unframed(b" " * 10)[6:], "not zstd"),
    ],
)
def test_a_broken_body_is_a_clear_error(wire: Wire, coding: str, body: bytes, message: str) -> None:
    response = send(wire, body, coding)
    assert error(response) == (400, "Validation")
    assert message in response.json()["error"]
    assert wire.engine.requests == []


def test_a_window_larger_than_rfc_9659_allows_is_refused(wire: Wire) -> None:
    options = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.content_size_flag: 0}
    packer = zstd.ZstdCompressor(options=options)  # it knows no size, and so says that it may need the whole window
    body = packer.compress(b'{"inputs": "a"}') + packer.flush()
    assert "too much memory" in send(wire, body, "zstd").json()["error"]


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("zstd", zstd.compress)])
def test_the_payload_limit_counts_what_is_inside(engine: FakeEngine, coding: str, pack: Any) -> None:
    wire = Wire(engine, payload_limit=1000)
    text = b'{"inputs": "a"}'
    assert send(wire, pack(text + b" " * (1000 - len(text))), coding).status_code == 200
    assert error(send(wire, pack(text + b" " * (1001 - len(text))), coding)) == (413, "Validation")
    bomb = pack(b" " * 100_000_000)
    wire = Wire(engine, payload_limit=len(bomb))
    assert error(send(wire, bomb, coding)) == (413, "Validation")
