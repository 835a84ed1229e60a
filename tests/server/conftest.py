"""Fixtures of the wire tests."""

import pytest

from tests.server.fakes import FakeEngine
from tests.server.wire import Wire


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def wire(engine: FakeEngine) -> Wire:
    return Wire(engine)
