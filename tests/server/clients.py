"""What the tests of other people's clients share: what a server on the fake engine must say to them."""

from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
import pytest

from openbei import errors
from openbei.engine.finish import activated, normalized
from openbei.engine.request import Pair, Request, Result
from tests.server.fakes import FakeEngine, vector

TEXTS = ["fox", "whale", "né"]
Serve = Callable[..., tuple[FakeEngine, str]]


def unit(texts: list[str], dimensions: int | None = None) -> np.ndarray:
    return normalized(np.stack([vector(text)[:dimensions] for text in texts]))


def ranks(query: str, texts: list[str]) -> list[tuple[int, float]]:
    scores = [float(activated(vector(Pair(query, text))[:1], "sigmoid")[0]) for text in texts]
    order = sorted(range(len(texts)), key=lambda place: -scores[place])
    return [(place, pytest.approx(scores[place], rel=1e-6)) for place in order]


def overload(engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, times: int) -> list[Request]:
    """The first calls of submit are refused; all calls are noted, and whoever comes again need not wait."""
    submit, asked = engine.submit, []

    def refusing(request: Request) -> Future[Result]:
        asked.append(request)
        if len(asked) <= times:
            raise errors.Overloaded(retry_after_s=1)
        return submit(request)

    monkeypatch.setattr(engine, "submit", refusing)
    monkeypatch.setattr("time.sleep", lambda _: None)
    return asked
