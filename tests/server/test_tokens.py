"""/tokenize and /decode: every form, the byte places, and that neither takes a permit or counts."""

from typing import Any

import pytest

from openbei.server.routes.tokens import byte_places
from tests.server.fakes import FakeEngine
from tests.server.wire import Wire, error

E03, E08 = (422, "Validation"), (400, "Empty")
CLS = {"id": 1, "text": "[CLS]", "special": True, "start": None, "stop": None}
SEP = {"id": 2, "text": "[SEP]", "special": True, "start": None, "stop": None}


def word(text: str, start: int, stop: int) -> dict[str, Any]:
    return {"id": 7, "text": text, "special": False, "start": start, "stop": stop}


def test_places_are_bytes_of_utf_8(wire: Wire) -> None:
    body = wire.post("/tokenize", {"inputs": "né 漢 🦊 a\u0301"}).json()
    assert body == [[CLS, word("né", 0, 3), word("漢", 4, 7), word("🦊", 8, 12), word("a\u0301", 13, 16), SEP]]
    source = "né 漢 🦊 a\u0301".encode()
    assert [source[one["start"] : one["stop"]].decode() for one in body[0][1:-1]] == [
        one["text"] for one in body[0][1:-1]
    ]


@pytest.mark.parametrize("text", ["", "abc", "né", "\x7f\x80\u07ff\u0800\uffff\U00010000\U0010ffff"])
def test_byte_places(text: str) -> None:
    assert byte_places(text) == [len(text[:end].encode()) for end in range(len(text) + 1)]


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({"inputs": "a"}, [[CLS, word("a", 0, 1), SEP]]),
        ({"inputs": ["a", "b"]}, [[CLS, word("a", 0, 1), SEP], [CLS, word("b", 0, 1), SEP]]),
        ({"inputs": "a", "add_special_tokens": False}, [[word("a", 0, 1)]]),
        ({"inputs": "a", "add_special_tokens": None}, [[CLS, word("a", 0, 1), SEP]]),
        ({"inputs": "a", "prompt_name": "query"}, [[CLS, word("query:", 0, 6), word("a", 7, 8), SEP]]),
        ({"inputs": "a", "prompt_name": None, "truncate": True}, [[CLS, word("a", 0, 1), SEP]]),
    ],
)
def test_tokenize_forms(wire: Wire, fields: Any, want: Any) -> None:
    assert wire.post("/tokenize", fields).json() == want


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, E03),
        ({"inputs": []}, E08),
        ({"inputs": ""}, E08),
        ({"inputs": ["a", ""]}, E08),
        ({"inputs": [5]}, E03),
        ({"inputs": [["a"]]}, E03),
        ({"inputs": ["a"] * 5}, E03),
        ({"inputs": "a", "add_special_tokens": "no"}, E03),
        ({"inputs": "a", "prompt_name": "nobody"}, E03),
        ({"inputs": "x" * 4001}, E03),
    ],
)
def test_wrong_tokenize_requests(wire: Wire, fields: Any, expected: tuple[int, str]) -> None:
    assert error(wire.post("/tokenize", fields)) == expected


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({"ids": [1, 7, 2]}, ["7"]),
        ({"ids": [[1, 7, 2], [8]]}, ["7", "8"]),
        ({"ids": [1, 7, 2], "skip_special_tokens": False}, ["1 7 2"]),
        ({"ids": [1, 7, 2], "skip_special_tokens": None}, ["7"]),
        ({"ids": [1, 2]}, [""]),
    ],
)
def test_decode_forms(wire: Wire, fields: Any, want: Any) -> None:
    assert wire.post("/decode", fields).json() == want


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, E03),
        ({"ids": []}, E08),
        ({"ids": [[]]}, E08),
        ({"ids": [[5], []]}, E08),
        ({"ids": 5}, E03),
        ({"ids": ["a"]}, E03),
        ({"ids": [5, [5]]}, E03),
        ({"ids": [-1]}, E03),
        ({"ids": [1.0]}, E03),
        ({"ids": [1000]}, E03),
        ({"ids": [2**32]}, E03),
        ({"ids": [[5]] * 5}, E03),
        ({"ids": [5], "skip_special_tokens": 1}, E03),
    ],
)
def test_wrong_decode_requests(wire: Wire, fields: Any, expected: tuple[int, str]) -> None:
    assert error(wire.post("/decode", fields)) == expected


@pytest.mark.parametrize("kind", ["embedding", "classifier", "reranker", "token_classifier"])
def test_every_model_has_tokens_and_they_cost_nothing(kind: Any) -> None:
    wire = Wire(FakeEngine(kind))
    for path, body in (("/tokenize", {"inputs": "a"}), ("/decode", {"ids": [7]})):
        response = wire.post(path, body)
        assert response.status_code == 200
        assert not [name for name in response.headers if name.startswith(("x-compute", "x-total"))]
    assert wire.engine.requests == []
