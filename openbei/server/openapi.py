"""The routes' table -> an OpenAPI 3.1 document. Owns no shape: bodies come from wire, statuses from errors."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from openbei.errors import ANSWERS, UnknownModel
from openbei.server.answers import COMPUTE_HEADERS
from openbei.server.route import Route
from openbei.wire.cohere import CohereError
from openbei.wire.openai import OpenAIError
from openbei.wire.tei import TEIError

Json = dict[str, Any]
Schemas = Mapping[Any, Json]

ERROR_BODIES: dict[str, type] = {"openai": OpenAIError, "tei": TEIError, "cohere": CohereError}
DESCRIPTION = (
    "Embeddings, reranking and classification, as OpenAI, TEI, BEI, Cohere and Jina serve them. "
    "Every path is also served behind the prefixes /sync and /environments/{environment}/sync."
)
RULE_IDS = re.compile(r" \(E[^)]*\)")  # the contract's own numbering, in the errors' docstrings
NAMED = {"description": "Name of the model that is meant, where several are served.", "schema": {"type": "string"}}
HEADER = {"name": "x-model", "in": "header", **NAMED}
QUERY = {"name": "model", "in": "query", **NAMED}
KEY = {"type": "http", "scheme": "bearer", "description": "Only where the server was started with --api-key."}


def document(routes: Sequence[Route], version: str) -> Json:
    """All routes under all their paths -> the OpenAPI document, as plain values."""
    kinds = {kind for route in routes for kind in (route.body, route.answer) if kind is not None}
    kinds.update(ERROR_BODIES.values())
    inline, components = msgspec.json.schema_components(kinds, ref_template="#/components/schemas/{name}")
    schemas = dict(zip(kinds, inline, strict=True))
    paths: dict[str, Json] = {}
    for route in routes:
        for path in route.path:
            paths.setdefault(path, {}).setdefault(route.method.lower(), operation(route, path, schemas))
    return {
        "openapi": "3.1.0",
        "info": {"title": "openbei", "version": version, "description": DESCRIPTION},
        "paths": paths,
        "components": {"schemas": dict(sorted(components.items())), "securitySchemes": {"key": KEY}},
    }


def operation(route: Route, path: str, schemas: Schemas) -> Json:
    """One route at one of its paths -> its entry."""
    entry: Json = {
        "operationId": f"{route.method.lower()}{re.sub(r'[^a-zA-Z0-9]+', '_', path)}",
        "summary": route.summary if path == route.path[0] else f"Same as {route.path[0]}",
        "responses": responses(route, schemas),
    }
    if "{id}" in path:
        entry["parameters"] = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    elif UnknownModel in route.raises and not route.needs_key:
        entry["parameters"] = [HEADER] if route.method == "POST" else [HEADER, QUERY]
    if route.body is not None:
        entry["requestBody"] = {"required": True, "content": content(route.body, schemas)}
    if route.keyed:
        entry["security"] = [{"key": []}, {}]
    return entry


def responses(route: Route, schemas: Schemas) -> Json:
    """The answer of a route and its errors, by status."""
    success: Json = {"description": "The answer."}
    if route.answer is not None:
        success["content"] = content(route.answer, schemas)
    else:
        success["content"] = {route.media_type: {"schema": {"type": "string"}}}
    if route.measured:
        success["headers"] = {name: {"schema": {"type": "string"}} for name in COMPUTE_HEADERS}
    body = content(ERROR_BODIES[route.dialect], schemas)
    reasons: dict[str, list[str]] = {}
    for error in route.raises:
        reasons.setdefault(str(ANSWERS[error].status), []).append(RULE_IDS.sub("", error.__doc__ or ""))
    failures = {status: {"description": " ".join(texts), "content": body} for status, texts in sorted(reasons.items())}
    return {"200": success, **failures}


def content(kind: Any, schemas: Schemas) -> Json:
    """A JSON body of one type."""
    return {"application/json": {"schema": schemas[kind]}}
