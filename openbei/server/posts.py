"""Posts: processes that there shall be; started, listened to, and started again with pauses when they end.

Owns the children, the loop's one wait over their pipes, its timers and the signals to stop; never knows what a process
does, nor what it says.
"""

import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from openbei.engine.executor import RESTART_PAUSES_S
from openbei.server.child import Child

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Post:
    """One of the processes that there shall be. child: the one that there is, if any; due_s: when else to start one.

    patience_s: once ready, it hangs if it says nothing for as long; None if it need not say anything. leaving: no other
    is started. heard_s: when it said something last.
    """

    name: str
    start: Callable[[], Child]
    patience_s: float | None = None
    leaving: bool = False
    child: Child | None = None
    ready: bool = False
    num_failures: int = 0
    due_s: float = 0.0
    heard_s: float = 0.0

    def is_ready(self) -> None:
        """Note that its process is: the next end is the first again."""
        self.ready, self.num_failures = True, 0

    def start_again(self, code: int) -> None:
        """Its process ended: have another start, after a pause that grows with the failures in a row."""
        pause_s = RESTART_PAUSES_S[min(self.num_failures, len(RESTART_PAUSES_S) - 1)]
        self.num_failures, self.due_s = self.num_failures + 1, time.monotonic() + pause_s
        log.error("the %s process ended with %d; starting another after %.1f s", self.name, code, pause_s)


@dataclass(frozen=True, slots=True)
class Signal:
    """Somebody wants all this to end."""


@dataclass(frozen=True, slots=True)
class Said:
    """A process said something."""

    post: Post
    child: Child
    message: Any


@dataclass(frozen=True, slots=True)
class Ended:
    """A process ended, with that exit code; its post has none now."""

    post: Post
    child: Child
    code: int


def hear_signals() -> socket.socket:
    """A socket that gets a byte for every SIGTERM and SIGINT. Call it in the main thread."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    signal.set_wakeup_fd(theirs.detach())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return ours


def watch(posts: Sequence[Post], signals: socket.socket, starting: bool) -> Iterator[Signal | Said | Ended]:
    """Start what is due, if starting, kill what hangs, and wait -> what happened next; nothing if time passed.

    A post that lost its child to an earlier event of the same round has none any more.
    """
    pauses_s = _end_hanging(posts), _start_due(posts) if starting else None
    pause_s = min((one for one in pauses_s if one is not None), default=None)
    by_pipe: dict[Any, Post] = {post.child.pipe: post for post in posts if post.child}
    for source in wait([*by_pipe, signals], pause_s):
        if source is signals:
            for _ in signals.recv(64):
                yield Signal()
        elif (child := by_pipe[source].child) is not None:
            yield _hear(by_pipe[source], child)


def kill(posts: Sequence[Post]) -> None:
    """End every process that is left, at once."""
    children = [post.child for post in posts if post.child is not None]
    for child in children:
        child.process.kill()
    for child in children:
        child.reap()
    for post in posts:
        post.child = None


def _hear(post: Post, child: Child) -> Said | Ended:
    try:
        message, post.heard_s = child.pipe.recv(), time.monotonic()
    except (EOFError, ConnectionResetError):
        post.child, post.ready = None, False
        return Ended(post, child, child.reap())
    return Said(post, child, message)


def _start_due(posts: Sequence[Post]) -> float | None:
    """Start what is due -> the seconds until the next one is, None if all run."""
    absent = [post for post in posts if post.child is None and not post.leaving]
    for post in absent:
        if post.due_s <= time.monotonic():
            post.child = post.start()
    waits_s = [post.due_s - time.monotonic() for post in absent if post.child is None]
    return max(0.0, min(waits_s)) if waits_s else None


def _end_hanging(posts: Sequence[Post]) -> float | None:
    """Kill what hangs: it will be missed -> the seconds until another might, None if none can."""
    left_s = []
    for post in posts:
        if post.patience_s is None or post.child is None or not post.ready or post.child.pipe.poll():
            continue
        left_s.append(post.heard_s + post.patience_s - time.monotonic())
        if left_s[-1] <= 0:
            log.error("the %s process has said nothing for %g s: it hangs", post.name, post.patience_s)
            post.child.process.kill()
            post.ready = False
    return max(0.0, min(left_s)) if left_s else None
