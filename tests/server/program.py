"""The server as a program of its own, on a fake engine that holds its answers until told: for tests of signals.

Prints its URL when it listens, `held` for each request, and `done` when the server is through. It answers what it holds
when its input ends.
"""

import sys
import threading
from concurrent.futures import Future

from openbei.config import ServerConfig
from openbei.engine.request import Request, Result
from openbei.server.serve import serve
from tests.server.fakes import FakeEngine


class HoldingEngine(FakeEngine):
    def __init__(self) -> None:
        super().__init__()
        self.hold = True

    def submit(self, request: Request, wait: bool = False) -> Future[Result]:
        future = super().submit(request, wait)
        print("held", flush=True)
        return future


def release(engine: FakeEngine) -> None:
    sys.stdin.read()
    engine.release()


if __name__ == "__main__":
    engine = HoldingEngine()
    threading.Thread(target=release, args=[engine], daemon=True).start()
    config = ServerConfig(hostname="127.0.0.1", port=0)
    serve(engine, config, lambda url: print(url, flush=True))  # type: ignore[arg-type]
    print("done", flush=True)
