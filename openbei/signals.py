"""What a signal does while a command works, before anything that serves has handlers of its own.

Owns that and nothing else.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import NoReturn


@contextlib.contextmanager
def ended_by(*signals: signal.Signals) -> Iterator[None]:
    """Any of the signals ends the process at once, until something within has a handler of its own.

    That is what the kernel does, but not to process 1, which a container's is: it only hears what it has a handler for.
    """
    action = _end if os.getpid() == 1 else signal.SIG_DFL
    before = {number: signal.signal(number, action) for number in signals}
    try:
        yield
    finally:
        for number, action_before in before.items():
            signal.signal(number, action_before)


def _end(number: int, _: object) -> NoReturn:
    os._exit(128 + number)
