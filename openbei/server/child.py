"""A process of our own that runs one function: started, spoken to and watched over one pipe.

python -m openbei.server.child NAME FD is what such a process is started as; NAME is for those who read `ps`. When the
process that started it is gone, however it went, it ends at once. Owns the pipe; never knows what the function does.
"""

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from queue import SimpleQueue
from typing import Any

ORPHANED = 3
LAST_S = 1.0
NO_MORE = object()
LOOKS = 6  # at a process, in the time after which one that does nothing hangs
TIMES = slice(11, 15)  # of what follows the name in /proc/PID/stat: user, system, and both of children that have ended


class Child:
    """A function of a module, run as function(pipe, *args) in a new process; what it is given is pickled.

    pass_fds: file descriptors that it inherits under the same numbers. It has a session of its own, so that Ctrl-C in
    a terminal reaches only the process that started it.
    """

    def __init__(
        self, name: str, function: Callable[..., None], args: Sequence[Any], pass_fds: Sequence[int] = ()
    ) -> None:
        self._ticks = 0
        self.pipe, theirs = Pipe()
        command = [sys.executable, "-m", __name__, name, str(theirs.fileno())]
        fds = (theirs.fileno(), *pass_fds)
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=fds, start_new_session=True)
        theirs.close()
        self._untold: SimpleQueue[Any] = SimpleQueue()  # pickled
        self._teller = threading.Thread(target=self._tell, name=f"tell-{name}", daemon=True)
        self._teller.start()
        self.tell((function, args))

    def tell(self, message: Any) -> None:
        """Have a message sent, as soon as it listens: it may be slow to start, or hang, and nobody waits for that."""
        self._untold.put(ForkingPickler.dumps(message))

    def _tell(self) -> None:
        while (message := self._untold.get()) is not NO_MORE:
            try:
                self.pipe.send_bytes(message)
            except (BrokenPipeError, ConnectionResetError):  # it died, as is noticed when the pipe is read
                continue

    def has_worked(self) -> bool:
        """Whether it has computed since this was asked last, as reading a file also does; 0.01 s of it count."""
        try:
            words = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        before, self._ticks = self._ticks, sum(map(int, words[TIMES]))
        return self._ticks > before

    def reap(self) -> int:
        """Its pipe has ended, so it is about to: its exit code; killed if it takes its time."""
        try:
            self.process.wait(LAST_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
        code = self.process.wait()
        self._untold.put(NO_MORE)
        self._teller.join()
        self.pipe.close()
        return code


def follow(pipe: "Connection[Any, Any]", on_message: Callable[[Any], Any]) -> None:
    """In a child: hear what it is told, in a thread of its own, and end the process when nobody is left to tell."""

    def hear() -> None:
        try:
            while True:
                on_message(pipe.recv())
        except (EOFError, ConnectionResetError):
            os._exit(ORPHANED)

    threading.Thread(target=hear, name="pipe", daemon=True).start()


def started() -> None:
    """In a child: it is ready. What was made so far is kept, so Python's garbage collector need not look through it."""
    gc.freeze()
    gc.enable()


def main() -> None:
    """The new process: run what the pipe says, without collecting garbage until it says that it has started."""
    gc.disable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pipe: Connection[Any, Any] = Connection(int(sys.argv[2]))
    function, args = pipe.recv()
    function(pipe, *args)


if __name__ == "__main__":
    main()
