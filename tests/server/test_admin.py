"""Loading and unloading while others are served, in one process: over HTTP, on fakes that a test lets come and go."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from openbei.config import EngineConfig
from openbei.engine.budget import Budget, Need
from openbei.engine.loading import LoadedModels
from openbei.errors import ConfigError, LoadFailed, ModelNotFound, UnsupportedModel
from tests.server.conditions import AUTH
from tests.server.fakes import FakeEngine
from tests.server.wire import Wire, error
from tests.web import wait_until

WAIT_S = 60
KINDS: dict[str, Any] = {"rerank": "reranker", "classify": "classifier"}


class House:
    """A server of one model, "first", whose loads wait for a test where it says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit_bytes: int | None = None) -> None:
        self.engines: dict[str, FakeEngine] = {}
        self.begun: list[str] = []
        self.gate = threading.Event()
        self.gate.set()
        self.fail_with: Exception | None = None
        self.need = Need(10, 10, 1000)
        monkeypatch.setattr("openbei.engine.start.load", self.load)
        monkeypatch.setattr("openbei.engine.start.start", self.start)
        monkeypatch.setattr("openbei.engine.start.need_of", lambda *_: self.need)
        monkeypatch.setattr("openbei.engine.loading.give_memory_back", lambda: None)  # it looks through all there is
        self.models = LoadedModels(Budget(limit_bytes), self.configure)
        self.models.start(self.load("first", None), EngineConfig(model_id="first"))
        self.wire = Wire(self.models, api_key="k")  # type: ignore[arg-type]
        self.pool = ThreadPoolExecutor(4)

    def configure(self, model: str, name: str | None, revision: str | None) -> EngineConfig:
        if model == "contradiction":
            raise ConfigError("payload_limit is 1 here")
        return EngineConfig(model_id=model, served_model_name=name, revision=revision, device="cpu")

    def load(self, model: str, _: object) -> Any:
        self.begun.append(model)
        assert self.gate.wait(WAIT_S)
        if self.fail_with is not None:
            raise self.fail_with
        return SimpleNamespace(model_id=f"source of {model}" if model == "artifact" else model)

    def start(self, checkpoint: Any, config: EngineConfig) -> FakeEngine:
        name = config.served_model_name or checkpoint.model_id
        self.engines[name] = FakeEngine(KINDS.get(name, "embedding"), name=name)
        return self.engines[name]

    def ask(self, action: str, **body: Any) -> httpx.Response:
        return self.wire.post(f"/models/{action}", body, headers=AUTH)

    def embed(self, model: str | None = None) -> int:
        return self.wire.post("/embed", {"inputs": "a", "model": model}, headers=AUTH).status_code

    def later(self, function: Callable[..., Any], *args: Any, **named: Any) -> Any:
        return self.pool.submit(function, *args, **named)


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    house = House(monkeypatch)
    yield house
    house.gate.set()
    for engine in house.engines.values():
        engine.release()
    house.pool.shutdown()


def test_a_model_comes_and_goes(house: House) -> None:
    assert house.wire.post("/rerank", {"query": "q", "texts": ["a"]}, headers=AUTH).status_code == 424
    answer = house.ask("load", model="folder", name="rerank")
    assert (answer.status_code, answer.json()["served_model_name"]) == (200, "rerank")
    assert set(answer.json()["model_type"]) == {"reranker"}
    assert house.wire.post("/rerank", {"query": "q", "texts": ["a"]}, headers=AUTH).status_code == 200
    assert house.embed() == 200
    gone = house.ask("unload", model="rerank")
    assert (gone.status_code, gone.json()) == (200, {"model": "rerank", "served": ["first"]})
    assert house.engines["rerank"].closed
    assert house.embed("rerank") == 404
    assert house.embed("first") == 200


@pytest.mark.parametrize(("wanted", "served"), [({"model": "m"}, "m"), ({"model": "artifact"}, "source of artifact")])
def test_without_a_name_it_is_named_as_at_start_up(house: House, wanted: dict[str, str], served: str) -> None:
    assert house.ask("load", **wanted).json()["served_model_name"] == served


def test_while_one_is_loaded_the_others_answer(house: House) -> None:
    house.gate.clear()
    loading = house.later(house.ask, "load", model="m")
    wait_until(lambda: "m" in house.begun)
    assert house.embed() == 200
    assert house.ask("unload", model="m").status_code == 404
    house.gate.set()
    assert loading.result(WAIT_S).status_code == 200
    assert house.embed("m") == 200


@pytest.mark.parametrize("second", [{"model": "m"}, {"model": "other", "name": "m"}, {"model": "first"}])
def test_two_loads_of_one_name_do_not_harm_each_other(house: House, second: dict[str, str]) -> None:
    house.gate.clear()
    loading = house.later(house.ask, "load", model="m")
    wait_until(lambda: "m" in house.begun)
    refused = house.ask("load", **second)
    assert error(refused) == (409, "Conflict")
    house.gate.set()
    assert loading.result(WAIT_S).status_code == 200
    assert house.models.names == ("first", "m")
    assert error(house.ask("load", model="m")) == (409, "Conflict")


def test_a_name_that_is_only_known_when_it_is_read_is_looked_at_too(house: House) -> None:
    assert house.ask("load", model="m", name="source of artifact").status_code == 200
    assert error(house.ask("load", model="artifact")) == (409, "Conflict")
    assert house.models.names == ("first", "source of artifact")


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (ModelNotFound("there is no folder m"), "there is no folder m"),
        (UnsupportedModel("hidden_act is odd"), "hidden_act is odd"),
        (PermissionError(13, "Permission denied", "/m/config.json"), "/m/config.json: Permission denied"),
    ],
)
def test_a_load_that_fails_says_why_and_changes_nothing(house: House, raised: Exception, said: str) -> None:
    house.fail_with = raised
    answer = house.ask("load", model="m", name="n")
    assert (error(answer), answer.json()["error"]) == ((422, "Model"), said)
    assert house.models.names == ("first",)
    assert not house.models.several
    house.fail_with = None
    assert house.ask("load", model="m", name="n").status_code == 200


def test_what_contradicts_the_server_is_refused(house: House) -> None:
    assert error(house.ask("load", model="contradiction")) == (422, "Model")


@pytest.mark.parametrize("body", [{}, {"model": ""}, {"model": 5}, {"model": "m", "name": ""}, {"name": "n"}])
def test_a_body_that_is_wrong(house: House, body: dict[str, Any]) -> None:
    assert error(house.ask("load", **body)) == (422, "Validation")


def test_whoever_hangs_up_does_not_stop_it(house: House) -> None:
    house.gate.clear()

    async def hang_up() -> None:
        asked = asyncio.ensure_future(house.models.load("m"))
        while "m" not in house.begun:
            await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked

    asyncio.run(hang_up())
    assert house.models.names == ("first",)
    house.gate.set()
    wait_until(lambda: house.embed("m") == 200)


def test_unloading_waits_for_what_is_in_flight(house: House) -> None:
    house.ask("load", model="m")
    engine = house.engines["m"]
    engine.hold = True
    in_flight = house.later(house.embed, "m")
    wait_until(lambda: engine.held)
    leaving = house.later(house.ask, "unload", model="m")
    wait_until(lambda: house.models.names == ("first",))
    assert house.embed("m") == 404
    assert house.embed() == 200
    assert error(house.ask("unload", model="m")) == (404, "NotFound")
    assert error(house.ask("load", model="m")) == (409, "Conflict")
    assert not leaving.done()
    engine.release()
    assert (in_flight.result(WAIT_S), leaving.result(WAIT_S).status_code) == (200, 200)
    assert engine.closed
    assert house.ask("load", model="m").status_code == 200


def test_the_last_one_stays(house: House) -> None:
    assert error(house.ask("unload", model="first")) == (409, "Conflict")
    house.ask("load", model="m")
    assert house.ask("unload", model="first").status_code == 200
    assert error(house.ask("unload", model="m")) == (409, "Conflict")
    assert house.embed() == 200


def test_what_does_not_fit_is_refused_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House(monkeypatch, limit_bytes=25)
    assert house.ask("load", model="m").status_code == 200
    refused = house.ask("load", model="n")
    assert error(refused) == (507, "OutOfMemory")
    assert refused.json()["error"] == "the weights of 'n' have 10 bytes > 5, which are left of max_model_bytes 25"
    assert "n" not in house.engines
    assert house.ask("unload", model="m").status_code == 200
    assert house.ask("load", model="n").status_code == 200
    house.need = Need(1, 1001, 1000)
    assert error(house.ask("load", model="o")) == (507, "OutOfMemory")
    with pytest.raises(ConfigError, match="1001 bytes of memory"):
        house.models.start(house.load("o", None), EngineConfig(model_id="o"))


def test_closing_waits_for_what_leaves_and_refuses_what_comes(house: House) -> None:
    house.ask("load", model="m")
    engine = house.engines["m"]
    engine.hold = True
    in_flight = house.later(house.embed, "m")
    wait_until(lambda: engine.held)
    leaving = house.later(house.ask, "unload", model="m")
    wait_until(lambda: house.models.names == ("first",))
    house.gate.clear()
    coming = house.later(house.ask, "load", model="late")
    wait_until(lambda: "late" in house.begun)
    closing = house.later(house.models.close)
    wait_until(lambda: house.engines["first"].closed)
    assert not closing.done()
    engine.release()
    closing.result(WAIT_S)
    assert (in_flight.result(WAIT_S), leaving.result(WAIT_S).status_code) == (200, 200)
    house.gate.set()
    assert error(coming.result(WAIT_S)) == (503, "Unhealthy")


def test_a_server_made_of_one_engine_loads_nothing() -> None:
    wire = Wire(FakeEngine(), api_key="k")
    assert error(wire.post("/models/load", {"model": "m"}, headers=AUTH)) == (403, "Forbidden")
    assert error(wire.post("/models/unload", {"model": "org/tiny"}, headers=AUTH)) == (403, "Forbidden")


def test_errors_of_loading_keep_their_words() -> None:
    from openbei.engine.loading import as_answer

    assert isinstance(as_answer(ConfigError("x")), LoadFailed)
    assert str(as_answer(OSError("odd"))) == "odd"
