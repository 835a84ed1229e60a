"""The watch over processes, with a clock that a test turns and children that do what it says."""

import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe
from types import SimpleNamespace
from typing import Any

import pytest

from openbei.server import posts
from openbei.server.child import Child
from openbei.server.posts import Ended, Post, Said

PATIENCE_S = 30.0
LATEST_S = PATIENCE_S * 7 / 6  # one look after it

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="frontends need Linux")


class FakeChild:
    """As much of a child as is watched. works: it computes."""

    def __init__(self) -> None:
        self.pipe, self.theirs = Pipe()
        self.works = self.killed = False
        self.process = SimpleNamespace(kill=self.kill)

    def kill(self) -> None:
        self.killed = True

    def has_worked(self) -> bool:
        return self.works

    def reap(self) -> int:
        self.pipe.close()
        return -9


class Watch:
    """The one post of a server, and what happens to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.signals = 1000.0, socket.socketpair()
        self.child = FakeChild()
        self.post = Post("one", lambda: self.child, PATIENCE_S)  # type: ignore[arg-type,return-value]
        monkeypatch.setattr(posts, "time", SimpleNamespace(monotonic=lambda: self.now_s))
        monkeypatch.setattr(posts, "wait", self.wait)
        self.look()

    def wait(self, sources: list[Any], pause_s: float | None) -> list[Any]:
        ready = [one for one in sources if isinstance(one, Connection) and one.poll()]
        self.pause_s = pause_s
        return ready

    def look(self) -> list[Any]:
        return list(posts.watch([self.post], self.signals[0], starting=True))

    def pass_time(self, seconds: float, do: Callable[[], Any] = lambda: None) -> None:
        """Sleep as long as the watch does, again and again, and do something before each look."""
        end_s = self.now_s + seconds
        while not self.child.killed:
            assert self.pause_s is not None
            if self.now_s + self.pause_s > end_s:
                break
            self.now_s += self.pause_s
            do()
            self.look()


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    watch = Watch(monkeypatch)
    yield watch
    for one in (*watch.signals, watch.child.pipe, watch.child.theirs):
        one.close()


@pytest.mark.parametrize("ready", [False, True])
def test_who_says_nothing_and_does_nothing_hangs(watch: Watch, ready: bool) -> None:
    watch.post.ready = ready
    watch.pass_time(PATIENCE_S)
    assert not watch.child.killed
    watch.pass_time(LATEST_S)
    assert watch.child.killed
    assert watch.now_s == pytest.approx(1000 + LATEST_S)


@pytest.mark.parametrize("ready", [False, True])
def test_who_says_something_does_not_hang(watch: Watch, ready: bool) -> None:
    watch.post.ready = ready
    watch.pass_time(10 * PATIENCE_S, lambda: watch.child.theirs.send("I run"))
    assert not watch.child.killed


def test_a_start_may_take_as_long_as_it_does_something(watch: Watch) -> None:
    watch.child.works = True
    watch.pass_time(100 * PATIENCE_S)
    assert not watch.child.killed
    watch.child.works = False
    watch.pass_time(LATEST_S)
    assert watch.child.killed


def test_who_was_ready_has_to_say_something(watch: Watch) -> None:
    watch.child.works = watch.post.ready = True
    watch.pass_time(LATEST_S)
    assert watch.child.killed


def test_a_machine_that_stood_still_kills_nobody(watch: Watch) -> None:
    watch.post.ready = True
    watch.pass_time(PATIENCE_S / 2)
    watch.now_s += 100 * PATIENCE_S
    watch.look()
    assert not watch.child.killed


def test_who_ends_in_the_middle_of_a_message_has_ended(watch: Watch) -> None:
    os.write(watch.child.theirs.fileno(), (1000).to_bytes(4, "big") + b"half")
    watch.child.theirs.close()
    assert watch.look() == [Ended(watch.post, watch.child, -9)]  # type: ignore[arg-type]


def test_what_the_system_does_not_start_has_ended(watch: Watch) -> None:
    def refuse() -> Child:
        raise OSError(11, "no more processes")

    watch.post.child, watch.post.start = None, refuse
    assert watch.look() == [Ended(watch.post, None, posts.NOT_STARTED)]
    watch.post.start_again(posts.NOT_STARTED)
    watch.post.start = lambda: watch.child  # type: ignore[assignment,return-value]
    watch.child.theirs.send("again")
    assert watch.look() == [Said(watch.post, watch.child, "again")]  # type: ignore[arg-type]


def test_who_does_not_listen_is_not_waited_for() -> None:
    child = Child("deaf", deaf, [])
    teller = threading.Thread(target=child.tell, args=[bytes(1 << 22)])
    try:
        teller.start()
        teller.join(10)
        assert not teller.is_alive()
    finally:
        child.process.kill()
        child.reap()


def deaf(pipe: "Connection[Any, Any]") -> None:
    import signal

    signal.pause()


def busy(pipe: "Connection[Any, Any]") -> None:
    import time

    while pipe.recv():
        end_s = time.process_time() + 0.05
        while time.process_time() < end_s:
            pass
        pipe.send(None)


def test_a_process_that_computes_is_told_from_one_that_waits() -> None:
    child = Child("busy", busy, [])
    try:
        for _ in range(2):
            child.tell(True)
            child.pipe.recv()
            assert child.has_worked()
        seen = [child.has_worked() for _ in range(3)]  # it may still be on its way into the next recv
        assert not seen[-1]
    finally:
        child.process.kill()
        child.reap()
