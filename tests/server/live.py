"""The real server in a thread of the tests, on a real socket."""

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from openbei.config import ServerConfig
from openbei.server.listen import listen, url
from openbei.server.serve import Server
from tests.server.fakes import FakeEngine
from tests.web import LIMIT_S


@contextmanager
def running(engine: FakeEngine, **config: object) -> Iterator[tuple[str, Server]]:
    """The real server in a thread, on a free port; drained at the end."""
    ready = threading.Event()
    with listen("127.0.0.1", 0) as listener:
        server = Server(engine, ServerConfig(**config), ready.set)  # type: ignore[arg-type]

        def run() -> None:
            with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
                runner.run(server.serve(sockets=[listener]))

        thread = threading.Thread(target=run)
        thread.start()
        assert ready.wait(LIMIT_S)
        try:
            yield url(listener), server
        finally:
            engine.release()
            if thread.is_alive():
                server.handle_exit(signal.SIGTERM, None)
            thread.join(LIMIT_S)
            assert not thread.is_alive()
