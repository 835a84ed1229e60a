"""Fixtures of the wire tests."""

from collections.abc import Iterator
from typing import Any

import pytest

from openbei.engine.request import Kind
from tests.server.clients import Serve
from tests.server.fakes import FakeEngine
from tests.server.live import running
from tests.server.wire import Wire


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def wire(engine: FakeEngine) -> Wire:
    return Wire(engine)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A kind of model -> its engine and the address of a server on it."""
    opened = []

    def one(kind: Kind = "embedding", **config: Any) -> tuple[FakeEngine, str]:
        engine = FakeEngine(kind, max_client_batch_size=128)
        server = running(engine, **config)
        address, _ = server.__enter__()
        opened.append(server)
        return engine, address

    yield one
    for server in opened:
        server.__exit__(None, None, None)
