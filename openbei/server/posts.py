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
from openbei.server.child import LOOKS, Child

NOT_STARTED = 126  # instead of an exit status, as shells have it

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Post:
    """One of the processes that there shall be. child: the one that there is, if any; due_s: when else to start one.

    patience_s: it hangs if it says nothing for as long; until it is ready, whose start may be slow, if it also computes
    nothing. leaving: no other is started. look_s: when to look next what it does; num_silent: looks that saw nothing.
    """

    name: str
    start: Callable[[], Child]
    patience_s: float
    leaving: bool = False
    child: Child | None = None
    ready: bool = False
    num_failures: int = 0
    due_s: float = 0.0
    look_s: float = 0.0
    num_silent: int = 0

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
    """A process ended, with that exit code; its post has none now. child: None if it could not even be started."""

    post: Post
    child: Child | None
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
    if starting:
        yield from _start_due(posts)
    _end_hanging(posts)
    expected = [post for post in posts if post.child or (starting and not post.leaving)]
    times_s = [post.look_s if post.child else post.due_s for post in expected]
    pause_s = max(0.0, min(times_s) - time.monotonic()) if times_s else None
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
        message, post.num_silent = child.pipe.recv(), 0
    except (EOFError, OSError):  # the second if it ended in the middle of a message
        post.child, post.ready = None, False
        return Ended(post, child, child.reap())
    return Said(post, child, message)


def _start_due(posts: Sequence[Post]) -> Iterator[Ended]:
    """Start what is due; what the system does not start now has ended."""
    for post in posts:
        if post.child is None and not post.leaving and post.due_s <= time.monotonic():
            try:
                post.child, post.num_silent = post.start(), 0
            except (OSError, RuntimeError) as error:  # the second for want of a thread
                log.error("the %s process cannot be started: %s", post.name, error)
                yield Ended(post, None, NOT_STARTED)
            post.look_s = time.monotonic() + post.patience_s / LOOKS


def _end_hanging(posts: Sequence[Post]) -> None:
    """Look at what it is time to look at, and kill what hangs: it will be missed.

    Looks are counted and not seconds, because a machine may stand still for minutes: that makes one look late.
    """
    for post in posts:
        if post.child is None or post.look_s > time.monotonic():
            continue
        post.look_s, post.num_silent = time.monotonic() + post.patience_s / LOOKS, post.num_silent + 1
        if post.child.pipe.poll() or (not post.ready and post.child.has_worked()):
            post.num_silent = 0
        if post.num_silent > LOOKS:
            log.error("the %s process has done nothing for %g s: it hangs", post.name, post.patience_s)
            post.child.process.kill()
