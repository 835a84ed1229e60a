"""Schemathesis over the served OpenAPI document: no server error, and no answer that the document does not describe."""

from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.server.conditions import ROWS
from tests.server.fakes import FakeEngine
from tests.server.wire import Wire

CHECKS: Any = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
)
DOCUMENT: dict[str, Any] = Wire(FakeEngine()).get("/openapi.json").json()
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
OPERATIONS = [(path, method.upper()) for path, methods in DOCUMENT["paths"].items() for method in methods]


def modes(path: str, method: str) -> list[GenerationMode]:
    """Right requests, and wrong ones where there is a body that can be wrong."""
    has_body = "requestBody" in DOCUMENT["paths"][path][method.lower()]
    return [GenerationMode.POSITIVE, *([GenerationMode.NEGATIVE] if has_body else [])]


def app_of(path: str) -> Any:
    """An app whose model answers on that path."""
    return Wire(FakeEngine(ROWS[path].kind if path in ROWS else "embedding")).app


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_whatever_is_sent_is_answered_as_described(path: str, method: str) -> None:
    app = app_of(path)
    for mode in modes(path, method):

        @hypothesis.settings(max_examples=15, deadline=None, database=None, derandomize=True)
        @hypothesis.given(case=SCHEMA[path][method].as_strategy(generation_mode=mode))
        def check(case: Case) -> None:
            case.call_and_validate(app=app, checks=CHECKS)

        check()


@pytest.mark.parametrize("path", ROWS)
def test_the_right_answer_is_the_one_described(path: str) -> None:
    """What is made up at random is seldom right; these bodies are."""
    case = SCHEMA[path]["POST"].Case(body=ROWS[path].body, media_type="application/json")
    response = case.call(app=app_of(path))
    assert response.status_code == 200
    case.validate_response(response, checks=CHECKS)


def test_an_answer_that_is_not_described_is_found() -> None:
    case = SCHEMA["/embed"]["POST"].Case(body={"inputs": "a"}, media_type="application/json")
    response = case.call(app=app_of("/predict"))  # 424, but of another shape it would be if it were an answer
    case.validate_response(response, checks=CHECKS)
    response.status_code = 200
    with pytest.raises(FailureGroup):
        case.validate_response(response, checks=CHECKS)
