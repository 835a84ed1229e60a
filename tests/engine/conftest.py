"""The engine of the level 7 tests: once with both halves in one process, once joined by a socket."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.fakes import Harness, Wire, harness, here
from tests.engine.remote import Wires

Make = Callable[..., Harness]


@pytest.fixture(params=["one process", "two processes"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    if request.param == "one process":
        yield from making(tmp_path, here)
        return
    wires = Wires()
    yield from making(tmp_path, wires)
    wires.close()


@pytest.fixture
def make_here(tmp_path: Path) -> Iterator[Make]:
    """For the calls that block until there is room, which only an engine in its own process allows."""
    yield from making(tmp_path, here)


def making(folder: Path, wire: Wire) -> Iterator[Make]:
    """harness, and its engines closed at the end."""
    houses: list[Harness] = []

    def make(**options: object) -> Harness:
        houses.append(harness(folder, wire=wire, **options))  # type: ignore[arg-type]
        return houses[-1]

    yield make
    for house in houses:
        house.close()
