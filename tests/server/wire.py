"""A plain client for the tests: one call in, one response out, straight into the ASGI app."""

import asyncio
from typing import Any

import httpx

from openbei.config import ServerConfig
from openbei.server.app import create_app
from tests.server.fakes import FakeEngine

JSON = {"content-type": "application/json"}


class Wire:
    """Sends requests to the app of one engine; every response must carry a request id and be JSON if it failed."""

    def __init__(self, engine: FakeEngine, **config: Any) -> None:
        self.engine = engine
        self.app = create_app(engine, ServerConfig(**config))  # type: ignore[arg-type]

    async def send_async(self, method: str, path: str, **request: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://bei") as client:
            response = await client.request(method, path, **request)
        assert response.headers["x-request-id"]
        if response.status_code >= 400:
            assert response.headers["content-type"] == "application/json"
        return response

    def send(self, method: str, path: str, **request: Any) -> httpx.Response:
        return asyncio.run(self.send_async(method, path, **request))

    def get(self, path: str, **request: Any) -> httpx.Response:
        return self.send("GET", path, **request)

    def post(self, path: str, body: Any = None, **request: Any) -> httpx.Response:
        """body: bytes are sent as they are, anything else as JSON."""
        if isinstance(body, bytes):
            return self.send("POST", path, content=body, **{"headers": JSON, **request})
        return self.send("POST", path, json=body, **request)


def error(response: httpx.Response) -> tuple[int, str | None]:
    """Status and type of an error, its body checked to hold exactly its dialect's keys; Cohere's has no type."""
    body = response.json()
    if "detail" in body:
        assert set(body) == {"id", "message", "detail"}
        assert body["message"] == body["detail"]
        return response.status_code, None
    if "error" in body:
        assert set(body) == {"error", "error_type"}
        return response.status_code, body["error_type"]
    assert set(body) == {"message", "code", "type"}
    assert body["code"] in {response.status_code, "model_not_found"}
    return response.status_code, body["type"]
