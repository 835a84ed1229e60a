"""The server program: listen, tell the address, run until a signal, drain, return.

Owns the signals and uvicorn; the app itself knows none of them.
"""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from openbei.config import ServerConfig
from openbei.engine.models import Models, as_models
from openbei.server.app import create_app
from openbei.server.connection import impatient
from openbei.server.listen import listen, url

if TYPE_CHECKING:
    from openbei.engine.engine import Engine
    from openbei.server.grpc import GrpcServer

KEEP_ALIVE_S = 75  # longer than clients and proxies keep idle connections, so that they end them and not we
GRACE_S = 10  # for clients that are slow to take their answer, after the engine has finished


def serve(served: "Models | Engine", config: ServerConfig, on_ready: Callable[[str], None]) -> None:
    """Serve models, or one engine, until SIGTERM or SIGINT, and return when what was in flight is answered.

    on_ready: called once, with the URL, when the socket listens. The models are drained and closed at the end; until
    then /health answers 503 and new requests are refused. A second signal does not wait. Signals are only
    heard in the main thread. Raises ConfigError if the address cannot be listened on.
    """
    with listen(config.hostname, config.port) as listener:
        run(served, config, listener, lambda: on_ready(url(listener)))


async def nothing() -> None:
    """What comes before listening where nothing does."""


def run(
    served: "Models | Engine",
    config: ServerConfig,
    listener: socket.socket,
    on_ready: Callable[[], None],
    before: Callable[[], Awaitable[None]] = nothing,
) -> None:
    """As serve, on a socket that is bound already. before is awaited before it listens, on_ready called after."""
    server = Server(served, config, on_ready, before)
    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(server.serve(sockets=[listener]))


class Server(uvicorn.Server):
    """uvicorn, but a signal drains the models before the socket closes, and the process may exit 0 after it."""

    def __init__(
        self,
        served: "Models | Engine",
        config: ServerConfig,
        on_ready: Callable[[], None],
        before: Callable[[], Awaitable[None]] = nothing,
    ) -> None:
        self.models = as_models(served)
        super().__init__(
            uvicorn.Config(
                create_app(self.models, config),
                http=impatient(config.read_timeout_ms, lambda: self.should_exit),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self.before, self.on_ready = before, on_ready
        self.server_config = config
        self.grpc: GrpcServer | None = None
        self.drainer = threading.Thread(target=self.drain, name="drain", daemon=True)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's whole life; a signal may come as soon as it begins."""
        self.loop = asyncio.get_running_loop()
        await super().serve(sockets=sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's hook: the socket listens once this is through."""
        await self.before()
        await super().startup(sockets=sockets)
        if self.server_config.has_grpc:
            self.grpc = await self.start_grpc()
        self.on_ready()

    async def start_grpc(self) -> "GrpcServer":
        """Listen for gRPC too; what that needs is imported only here."""
        from openbei.server.grpc import GrpcServer

        server = GrpcServer(self.models, self.server_config)
        await server.start()
        return server

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's hook: the models are drained, and what is answered may still have to be sent."""
        if self.grpc is not None:
            await self.grpc.stop(0 if self.force_exit else GRACE_S)
        await super().shutdown(sockets=sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """uvicorn's hook for signals; not calling its own keeps it from raising the signal again at the end.

        The work is left to the loop, because the code that a signal interrupts may hold any lock.
        """
        self.loop.call_soon_threadsafe(self.stop)

    def stop(self) -> None:
        """The first time: drain, then exit. The second time: exit."""
        if self.drainer.ident is None:
            self.drainer.start()
        else:
            self.should_exit = self.force_exit = True
            self.ending = self.grpc and asyncio.ensure_future(self.grpc.stop(0))

    def drain(self) -> None:
        """Wait for what is in flight while the socket still listens, so that others are told 503."""
        try:
            self.models.close()
        finally:
            self.should_exit = True
