"""The server as a program of its own, on a fake engine whose answers take a while: for tests of signals.

Prints its URL when it listens. Argument: seconds an answer takes.
"""

import sys
import threading
from concurrent.futures import Future

from openbei.config import ServerConfig
from openbei.engine.request import Request, Result
from openbei.server.serve import serve
from tests.server.fakes import FakeEngine


class SlowEngine(FakeEngine):
    def __init__(self, delay_s: float) -> None:
        super().__init__()
        self.hold, self.delay_s = True, delay_s

    def submit(self, request: Request) -> Future[Result]:
        future = super().submit(request)
        threading.Timer(self.delay_s, self.resolve, (future, request)).start()
        return future


if __name__ == "__main__":
    serve(
        SlowEngine(float(sys.argv[1])),  # type: ignore[arg-type]
        ServerConfig(hostname="127.0.0.1", port=0),
        lambda url: print(url, flush=True),
    )
    print("done", flush=True)
