"""Level 9 with frontends and several models: each has a process of its own, which comes, goes, dies and comes back.

On fake models whose batches take until a test lets them go; test_models.py has the real command and models.
"""

import signal
from collections.abc import Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine.fakes import words
from tests.process.test_frontends import NUM_CLIENTS, NUM_FRONTENDS, Served
from tests.web import LIMIT_S, get, post, wait_until

KEY = {"authorization": "Bearer k"}
MANY = NUM_CLIENTS  # connections, so many that each frontend has some


class Several(Served):
    """The program on fake models a and b."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "a", "b")

    def embed(self, model: str, text: str = "w1") -> httpx.Response:
        """One request on a connection of its own."""
        body = {"inputs": text, "normalize": False, "model": model}
        return post(f"{self.url}/embed", json=body, headers=KEY)

    def statuses(self, model: str) -> set[int]:
        """Of a request to each frontend, most likely."""
        return {self.embed(model).status_code for _ in range(MANY)}

    def ask(self, action: str, **body: str) -> httpx.Response:
        return post(f"{self.url}/models/{action}", json=body, headers=KEY)

    def later(self, function: Any, *args: Any, **named: Any) -> "Future[httpx.Response]":
        return self.pool.submit(function, *args, **named)

    def let(self, model: str) -> None:
        """Its batches are answered from now on."""
        (self.folder / model).mkdir(exist_ok=True)
        (self.folder / model / "go").touch()

    def begin(self, model: str) -> "Future[httpx.Response]":
        """A request whose batch has begun."""
        before = len([*(self.folder / model).glob("begun-*")])
        posted = self.later(self.embed, model, words(3, 7))
        wait_until(lambda: len([*(self.folder / model).glob("begun-*")]) > before)
        return posted

    def health(self, model: str = "") -> int:
        return get(f"{self.url}/health", params={"model": model}).status_code

    def metrics(self) -> str:
        return get(f"{self.url}/metrics").text

    def wait_until_well(self, *engines: str) -> None:
        names = {f"engine-{name}" for name in engines} | {f"frontend-{row + 1}" for row in range(NUM_FRONTENDS)}
        wait_until(lambda: set(self.children()) == names)
        wait_until(lambda: [self.health() for _ in range(MANY)] == [200] * MANY)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Several]:
    served = Several(tmp_path)
    yield served
    for name in ("a", "b", "c"):
        served.let(name)
    served.kill_all()
    served.process.communicate()
    served.pool.shutdown()


def test_one_engine_s_death_does_not_touch_the_other(served: Several) -> None:
    served.let("a")
    posted = served.begin("b")
    served.kill("engine-b")
    assert posted.result(LIMIT_S).status_code == 503
    assert served.statuses("a") == {200}
    served.wait_until_well("a", "b")
    served.let("b")
    assert served.statuses("b") == {200}
    code, log = served.stop()
    assert code == 0
    assert "the engine-b process ended with -9; starting another after 0.0 s" in log


def test_health_names_the_one_that_is_down(served: Several) -> None:
    (served.folder / "b" / "slow").touch()  # when it comes back, it waits
    served.kill("engine-b")
    wait_until(lambda: {served.embed("b").status_code for _ in range(MANY)} == {503})
    answer = get(f"{served.url}/health")
    assert (answer.status_code, answer.json()["error"]) == (503, "unhealthy: b is failed")
    assert served.health("a") == 200
    (served.folder / "b" / "read").touch()
    served.wait_until_well("a", "b")


def test_what_is_loaded_is_everywhere_when_it_is_said(served: Several) -> None:
    served.let("c")
    answer = served.ask("load", model="c")
    assert (answer.status_code, answer.json()["served_model_name"]) == (200, "c")
    assert served.statuses("c") == {200}
    assert served.ask("load", model="c").status_code == 409
    served.kill("frontend-1")
    served.wait_until_well("a", "b", "c")
    assert served.statuses("c") == {200}
    served.kill("engine-c")
    served.wait_until_well("a", "b", "c")
    assert served.statuses("c") == {200}
    assert f'te_request_success{{model="c",method="single"}} {3 * MANY}' in served.metrics()


def test_what_is_unloaded_answers_first_and_then_is_gone(served: Several) -> None:
    posted = served.begin("b")
    leaving = served.later(served.ask, "unload", model="b")
    wait_until(lambda: {served.health("b") for _ in range(MANY)} == {404})
    assert served.statuses("b") == {404}
    assert not leaving.done()
    assert served.ask("load", model="b").status_code == 409
    assert served.ask("unload", model="b").status_code == 404
    assert served.ask("unload", model="a").status_code == 409
    served.let("b")
    assert (posted.result(LIMIT_S).status_code, posted.result().json()) == (200, [[7, 3, 0, 0]])
    assert (leaving.result(LIMIT_S).status_code, leaving.result().json()) == (200, {"model": "b", "served": ["a"]})
    assert set(served.children()) == {"engine-a", "frontend-1", "frontend-2"}
    assert served.ask("load", model="b").status_code == 200
    assert served.statuses("b") == {200}


def test_a_frontend_that_dies_meanwhile_is_not_waited_for(served: Several) -> None:
    posted = [served.later(served.embed, "b") for _ in range(MANY)]
    wait_until(lambda: f'te_request_count{{model="b",method="single"}} {MANY}' in served.metrics())
    leaving = served.later(served.ask, "unload", model="b")
    wait_until(lambda: {served.health("b") for _ in range(MANY)} == {404})
    engine = served.children()["engine-b"]
    served.kill("frontend-1")  # which has some of them, so that it has not let go of b
    served.wait_until_well("a", "b")
    served.let("b")
    served.wait_until_well("a")
    wait_until(lambda: not Path(f"/proc/{engine}").exists())  # once the supervisor knows that it ended
    wait([*posted, leaving], LIMIT_S)
    assert {one.result().status_code for one in posted if one.exception() is None} == {200}
    assert leaving.exception() is not None or leaving.result().status_code == 200
    assert served.ask("load", model="b").status_code == 200


@pytest.mark.parametrize(
    ("file", "said"), [("broken", "there is nothing to read"), ("deadly", "its process ended with 49")]
)
def test_a_load_that_fails_changes_nothing(served: Several, file: str, said: str) -> None:
    (served.folder / "c").mkdir()
    (served.folder / "c" / file).touch()
    for _ in range(2):
        answer = served.ask("load", model="c")
        assert (answer.status_code, answer.json()["error"]) == (422, said)
    served.wait_until_well("a", "b")
    assert served.statuses("c") == {404}


def test_the_limit_is_for_all_models_and_kept_by_one_process(served: Several) -> None:
    assert served.ask("load", model="c").status_code == 200
    answer = served.ask("load", model="d")
    assert answer.status_code == 507
    assert answer.json()["error"] == "the weights of 'd' have 16 bytes > 12, which are left of max_model_bytes 60"
    assert served.ask("unload", model="b").status_code == 200
    assert served.ask("load", model="d").status_code == 200
    served.wait_until_well("a", "c", "d")


def test_two_at_once_and_one_of_them_twice(served: Several) -> None:
    (served.folder / "c").mkdir()
    (served.folder / "c" / "slow").touch()
    slow = served.later(served.ask, "load", model="c", name="c")  # else it has none until its process says so
    wait_until(lambda: "engine-c" in served.children())
    assert served.ask("load", model="c", name="c").status_code == 409
    assert served.health() == 200
    served.let("a")
    assert served.statuses("a") == {200}
    (served.folder / "c" / "read").touch()
    assert slow.result(LIMIT_S).status_code == 200


def test_the_end_does_not_wait_for_what_is_being_loaded(served: Several) -> None:
    coming = []
    for model, file in (("c", "slow"), ("d", "far")):
        (served.folder / model).mkdir()
        (served.folder / model / file).touch()
        coming.append(served.later(served.ask, "load", model=model))
    wait_until(lambda: {"engine-c", "engine-d"} < {*served.children()})
    assert served.ask("load", model="x", name="a").status_code == 409
    posted = served.begin("a")
    served.process.send_signal(signal.SIGTERM)
    assert {one.result(LIMIT_S).status_code for one in coming} == {503}
    served.let("a")
    assert posted.result(LIMIT_S).status_code == 200
    served.process.communicate(timeout=LIMIT_S)
    assert served.process.returncode == 0
    wait_until(lambda: served.children() == {})
