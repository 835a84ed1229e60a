"""The ASGI app: from the routes' table to an answer for every request, whatever goes wrong on the way.

Owns dispatch, request ids and CORS; knows no server program, no dialect and no sockets.
"""

import logging
import re
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openbei.config import ServerConfig
from openbei.engine.models import Models, as_models
from openbei.engine.request import Kind
from openbei.errors import Forbidden, MethodNotAllowed, NotFound
from openbei.server import docs
from openbei.server.answers import CLIENT_GONE, COMPUTE_HEADERS, failed
from openbei.server.intake import CUSTOMER_REQUEST_ID, MODEL_HEADER, REQUEST_ID, check_key, ids, ids_text, name_of, read
from openbei.server.negotiate import SHAPE_HEADERS, compressed, to_json
from openbei.server.route import Call, Route
from openbei.server.routes import cohere, models, openai, platform, sparse, status, tei, tokens
from openbei.server.trace import spans_of, with_traces
from openbei.wire.tei import TEIError

if TYPE_CHECKING:
    from openbei.engine.engine import Engine

logger = logging.getLogger("openbei.server")

GATEWAY = r"/(?:environments/[^/]+|deployment/[^/]+|development|production)"
GATEWAY_PREFIX = re.compile(rf"(?:{GATEWAY})?/sync(?=/)")
GATEWAY_DEFAULT = re.compile(rf"{GATEWAY}/predict")
DEFAULT_ROUTES: dict[Kind, str] = {
    "embedding": "/v1/embeddings",
    "sparse": "/embed_sparse",
    "multi_vector": "/v1/multi-vector",
    "classifier": "/predict",
    "reranker": "/rerank",
    "token_classifier": "/predict_tokens",
}
EXPOSED_HEADERS = (*COMPUTE_HEADERS, *SHAPE_HEADERS, "retry-after", "retry-after-ms", REQUEST_ID, CUSTOMER_REQUEST_ID)


def create_app(served: "Models | Engine", config: ServerConfig) -> ASGIApp:
    """Models, or one engine -> an ASGI app that serves them; HTTP only, it has no start or stop of its own."""
    all_models = as_models(served)
    embedding = (*openai.ROUTES, *tei.ROUTES, *sparse.ROUTES)
    own = (*embedding, *cohere.ROUTES, *tokens.ROUTES, *platform.ROUTES, *models.ROUTES, *status.ROUTES)
    routes = (*platform.vertex_routes(config), *own)
    table = Table((*routes, *docs.routes(routes)))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        http = HTTPRequest(scope, receive)
        path = served_path(scope["path"], config.default_route or default_route(all_models, http.headers))
        call = Call(all_models, config, http, path, time.monotonic())
        response = await compressed(call, await respond(call, table))
        log(call, response.status_code)
        del call  # a client that reads slowly keeps no model that is being unloaded
        await response(scope, receive, send)

    return with_traces(with_request_id(with_cors(app, config.cors_allow_origin)), spans_of(config))


def default_route(models: Models, headers: Headers) -> str:
    """What the model is called for that the header names, or else the first."""
    name = headers.get(MODEL_HEADER)
    return DEFAULT_ROUTES[(models.get(name) or models.first).info.kind]


def served_path(path: str, default_route: str) -> str:
    """A path as BEI's gateway is asked for it -> the path that is served; any other path is itself.

    The prefix counts once. What a model's own `predict` means, without `sync`, is the default route.
    """
    if GATEWAY_DEFAULT.fullmatch(path):
        return default_route
    prefix = GATEWAY_PREFIX.match(path)
    return path[prefix.end() :] if prefix else path


class Table:
    """Path -> its routes, one a method. A path that ends in `{id}` also takes what follows, slashes included."""

    def __init__(self, routes: Sequence[Route]) -> None:
        paths: dict[str, list[Route]] = {}
        for route in routes:
            for path in route.path:
                paths.setdefault(path, []).append(route)
        self.exact = {path: found for path, found in paths.items() if not path.endswith("{id}")}
        self.prefixes = [(path.removesuffix("{id}"), found) for path, found in paths.items() if path.endswith("{id}")]

    def find(self, path: str) -> Sequence[Route]:
        """The routes of a path, whatever the method; empty if there are none."""
        if path in self.exact:
            return self.exact[path]
        return next((found for prefix, found in self.prefixes if path.startswith(prefix)), [])


async def respond(call: Call, table: Table) -> Response:
    """A call -> its answer; every exception becomes one, in the dialect of the path."""
    routes = table.find(call.path)
    try:
        if not routes:
            raise NotFound("no such path")
        return await handle(call, routes)
    except ClientDisconnect:
        return Response(status_code=CLIENT_GONE)
    except Exception as error:
        return failed(error, routes[0].dialect if routes else "tei")


async def handle(call: Call, routes: Sequence[Route]) -> Response:
    """A call on the routes of its path: method, key, body, then the route's own handler."""
    route = next((route for route in routes if call.http.method in route.methods), None)
    if route is None:
        allowed = tuple(sorted(method for route in routes for method in route.methods))
        raise MethodNotAllowed(f"{', '.join(allowed)} is allowed here", allowed)
    if route.keyed:
        check_key(call.http.headers, call.config.api_key)
    if route.needs_key and call.config.api_key is None:
        raise Forbidden("models are loaded and unloaded only where the server was started with --api-key")
    body = None
    if route.body is not None:
        body = await read(call, route.body)
    if route.asks is not None:
        call.chosen = call.models.choose(name_of(call, body), route.asks)
    return await route.handler(call, body)


def log(call: Call, status: int) -> None:
    """One line a request: quiet for what went well, louder for what did not."""
    level = logging.DEBUG if status < 400 else logging.INFO if status < 500 else logging.WARNING
    if logger.isEnabledFor(level):
        http, elapsed_ms = call.http, (time.monotonic() - call.arrived_s) * 1000
        told = (http.method, http.scope["path"], status, elapsed_ms, ids_text(http.headers))
        model = f" model={call.chosen.info.served_model_name!r}" if call.models.several and call.chosen else ""
        logger.log(level, "%s %r %d %.1f ms%s%s", *told, model)


def with_request_id(app: ASGIApp) -> ASGIApp:
    """Every answer carries the x-request-id it came with, or a new one, and the customer's id if there was one."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(f"only HTTP is served here, not {scope['type']}")
        names = {REQUEST_ID: str(uuid.uuid4())} | ids(Headers(scope=scope))

        async def send_with_ids(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(names)
            await send(message)

        await app(scope, receive, send_with_ids)

    return wrapped


class Cors(CORSMiddleware):
    """Starlette's, but a browser that is refused is told so in JSON, as everybody is."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """What a browser asked first -> whether it may go on."""
        response = super().preflight_response(request_headers)
        if response.status_code >= 400:
            response.body = to_json(TEIError(bytes(response.body).decode(), "Validation"))
            response.headers.update({"content-type": "application/json", "content-length": str(len(response.body))})
        return response


def with_cors(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """Browsers may call from these origins, or from any if none is named, with a key and with their SDK's headers."""
    return Cors(
        app,
        allow_origins=tuple(origins) or ("*",),
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=EXPOSED_HEADERS,
    )
