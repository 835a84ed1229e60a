"""Who may come in: a permit an input, up to a limit, and none while an engine is down or drains.

Owns the count of permits and the status that /health tells; never touches tokens, batches or threads of its own.
"""

import threading
from collections.abc import Callable
from typing import Literal

from openbei.engine.queue import share
from openbei.errors import Overloaded, Unhealthy

Status = Literal["ready", "draining", "failed"]


class Admission:
    """Permits, at most `limit` at once. retry_after_s: what one who is refused is told.

    on_status: called with the status when it has changed, by the thread that changed it.
    """

    def __init__(self, limit: int, retry_after_s: Callable[[], float] = lambda: 1.0, down: bool = False) -> None:
        self.limit = limit
        self.num_taken = 0
        self.on_status: Callable[[Status], None] = lambda _: None
        self._retry_after_s = retry_after_s
        self._changed = threading.Condition()  # guards everything below, and num_taken
        self._down, self._draining = down, False

    @property
    def status(self) -> Status:
        """ready, draining (admits nothing more) or failed (down, and being restarted)."""
        if self._draining:
            return "draining"
        return "failed" if self._down else "ready"

    def take(self, num_inputs: int, wait: bool = False, bulk: bool = False) -> int:
        """Inputs of one request -> its permits, to be given back; one larger than the limit takes the whole of it.

        wait: block until there is room. bulk: leave a quarter of all permits to others. Raises Unhealthy, Overloaded.
        """
        limit = share(self.limit, bulk)
        num_permits = min(num_inputs, limit)
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self.num_taken + num_permits <= limit or self.status != "ready")
            if self.status != "ready":
                raise Unhealthy(f"unhealthy: {self.status}")
            if self.num_taken + num_permits > limit:
                raise Overloaded(retry_after_s=self._retry_after_s())
            self.num_taken += num_permits
        return num_permits

    def give_back(self, num_permits: int) -> None:
        """Free the permits of a request that is done."""
        with self._changed:
            self.num_taken -= num_permits
            self._changed.notify_all()

    def set_down(self, down: bool) -> None:
        """Refuse with "failed" from now on, or admit again."""
        with self._changed:
            self._down = down
            self._changed.notify_all()
        self.on_status(self.status)

    def drain(self) -> None:
        """Admit nothing more; what was admitted keeps its permits."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()
        self.on_status(self.status)

    def wait_until_empty(self) -> None:
        """Block until every permit is given back."""
        with self._changed:
            self._changed.wait_for(lambda: self.num_taken == 0)
