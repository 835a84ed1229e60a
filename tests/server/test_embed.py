"""The embedding routes of both dialects: every input form and option, and the exact answers."""

import base64
from typing import Any

import numpy as np
import pytest

from openbei.engine.request import Options
from tests.server.fakes import DIM, vector
from tests.server.wire import JSON, Wire

ROUTES = [("/v1/embeddings", "input"), ("/embeddings", "input"), ("/embed", "inputs")]
FORMS = [
    ("red fox", ["red fox"]),
    ([101, 7, 102], [[101, 7, 102]]),
    (["a", "b"], ["a", "b"]),
    ([[5, 6], [7]], [[5, 6], [7]]),
    (["a", [5, 6]], ["a", [5, 6]]),
    ([[5, 6], "a"], [[5, 6], "a"]),
    (" ", [" "]),
    ("né 🦊 \u0000", ["né 🦊 \u0000"]),
]


def rows(response: Any) -> np.ndarray:
    body = response.json()
    return np.float32([one["embedding"] for one in body["data"]] if isinstance(body, dict) else body)


@pytest.mark.parametrize(("sent", "read"), FORMS)
@pytest.mark.parametrize(("path", "field"), ROUTES)
def test_input_forms(wire: Wire, path: str, field: str, sent: Any, read: list[Any]) -> None:
    response = wire.post(path, {field: sent, "normalize": False})
    assert response.status_code == 200
    assert list(wire.engine.requests[0].inputs) == read
    assert np.array_equal(rows(response), np.stack([vector(one) for one in read]))


@pytest.mark.parametrize(("path", "field"), ROUTES)
@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({}, Options()),
        ({"truncate": True}, Options(truncate=True)),
        ({"truncate": False}, Options(truncate=False)),
        ({"truncation_direction": "Left"}, Options(truncation_direction="left")),
        ({"truncation_direction": "left"}, Options(truncation_direction="left")),
        ({"truncation_direction": "Right"}, Options()),
        ({"truncation_direction": "right"}, Options()),
        ({"prompt_name": "query"}, Options(prompt_name="query")),
        ({"normalize": False}, Options(normalize=False)),
        ({"dimensions": DIM}, Options(dimensions=DIM)),
        ({"unknown": {"a": [1]}, "model": "any", "parameters": None}, Options()),
        (
            dict.fromkeys(["truncate", "truncation_direction", "prompt_name", "normalize", "dimensions"]),
            Options(),
        ),
        ({"encoding_format": None, "user": None, "model": None}, Options()),
    ],
)
def test_options(wire: Wire, path: str, field: str, fields: dict[str, Any], options: Options) -> None:
    assert wire.post(path, {field: "a", **fields}).status_code == 200
    assert wire.engine.requests[0].options == options


def test_openai_answer_in_full(wire: Wire) -> None:
    body = wire.post("/v1/embeddings", {"input": ["fox", "whale"], "model": "any", "dimensions": 2}).json()
    fox, whale = (vector(text)[:2] / np.linalg.norm(vector(text)[:2]) for text in ("fox", "whale"))
    assert [one.pop("embedding") for one in body["data"]] == [
        pytest.approx(list(fox), abs=1e-7),
        pytest.approx(list(whale), abs=1e-7),
    ]
    assert body == {
        "object": "list",
        "data": [{"object": "embedding", "index": 0}, {"object": "embedding", "index": 1}],
        "model": "org/tiny",
        "usage": {"prompt_tokens": 6, "total_tokens": 6},
    }


def test_tei_answer_is_two_dimensional_for_one_text(wire: Wire) -> None:
    assert wire.post("/embed", {"inputs": "fox", "dimensions": 3}).text.count("[") == 2


@pytest.mark.parametrize("inputs", ["fox", ["a", [5, 6], "c"]])
def test_base64_holds_the_bits_of_the_float_form(wire: Wire, inputs: Any) -> None:
    floats, coded = (
        wire.post("/v1/embeddings", {"input": inputs, "encoding_format": form}).json()["data"]
        for form in ("float", "base64")
    )
    for one, other in zip(floats, coded, strict=True):
        decoded = np.frombuffer(base64.b64decode(other["embedding"], validate=True), "<f4")
        assert np.array_equal(decoded, np.float32(one["embedding"]))


def test_floats_are_the_shortest_that_read_back(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.float32([0.1, 1 / 3, 1e-8, 16777216, -0.0, 3e-45, 0.5, -1.25])
    monkeypatch.setattr("tests.server.fakes.vector", lambda _: values)
    text = wire.post("/embed", {"inputs": "a", "normalize": False}).text
    assert text == "[[0.1,0.33333334,1e-8,16777216.0,-0.0,3e-45,0.5,-1.25]]"
    coded = wire.post("/v1/embeddings", {"input": "a", "normalize": False, "encoding_format": "base64"})
    assert coded.json()["data"][0]["embedding"].endswith("AAAAPwAAoL8=")


def test_ten_megabytes_of_text_pass_below_the_payload_limit(wire: Wire) -> None:
    text = "fox " * 2_500_000
    assert wire.post("/embed", {"inputs": text}).status_code == 200
    assert wire.engine.requests[0].inputs == [text]


@pytest.mark.parametrize(
    "kind",
    [
        "application/json; charset=utf-8",
        "APPLICATION/JSON",
        "application/x-www-form-urlencoded",
        "application/cloudevents+json",
    ],
)
def test_content_types_that_are_read_as_json(wire: Wire, kind: str) -> None:
    assert wire.post("/embed", b'{"inputs": "a"}', headers={"content-type": kind}).status_code == 200


def test_equal_requests_are_answered_each(wire: Wire) -> None:
    headers = {**JSON, "x-baseten-customer-request-id": "perfclient-0123456789-0-0"}
    first, second = (wire.post("/embed", b'{"inputs":"a"}', headers=headers) for _ in range(2))
    assert first.content == second.content
    assert len(wire.engine.requests) == 2


def test_models(wire: Wire) -> None:
    (model,) = wire.get("/v1/models").json()["data"]
    assert set(model) == {"id", "object", "created", "owned_by"}
    assert (model["id"], model["object"], model["owned_by"]) == ("org/tiny", "model", "openbei")
    for path in ("/v1/models/org%2Ftiny", "/v1/models/org/tiny"):
        assert wire.get(path).json() == model


@pytest.mark.parametrize(("path", "field"), ROUTES)
def test_an_array_whose_rows_are_not_end_to_end(wire: Wire, path: str, field: str) -> None:
    response = wire.post(path, {field: ["a", "b"], "normalize": False, "dimensions": 3})
    assert np.array_equal(rows(response), [vector("a")[:3], vector("b")[:3]])
