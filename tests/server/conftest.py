"""Fixtures of the wire tests."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from openbei.config import EngineConfig
from openbei.engine.engine import Engine
from openbei.engine.request import Kind
from openbei.engine.start import open_engine
from tests.server.clients import Serve
from tests.server.fakes import FakeEngine
from tests.server.live import running
from tests.server.wire import Wire

Opened = Callable[..., Wire]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def wire(engine: FakeEngine) -> Wire:
    return Wire(engine)


@pytest.fixture
def opened() -> Iterator[Opened]:
    """A model's folder and keys of EngineConfig -> its Wire."""
    engines: list[Engine] = []

    def one(folder: Path, **config: Any) -> Wire:
        engine = open_engine(EngineConfig(model_id=str(folder), dtype="float32", **config))
        engines.append(engine)
        return Wire(engine)  # type: ignore[arg-type]

    yield one
    for engine in engines:
        engine.close()


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
