"""A gRPC server of one engine on a real port, and the stubs that protoc makes of tei.proto, as any client has them."""

import asyncio
import functools
import importlib.util
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_tools import protoc

from openbei.config import ServerConfig
from openbei.server.grpc import GrpcServer
from openbei.server.trace import Spans

ROOT = Path(__file__).parents[2]
PROTO = "openbei/wire/tei.proto"
WAIT_S = 60


def compile_proto(*options: str) -> None:
    assert protoc.main(["protoc", f"--proto_path={ROOT}", *options, PROTO]) == 0


@functools.cache
def stubs() -> ModuleType:
    """protoc's client code; its messages are those of openbei.wire.tei_pb2."""
    with TemporaryDirectory() as folder:
        compile_proto(f"--grpc_python_out={folder}")
        spec = importlib.util.spec_from_file_location("tei_pb2_grpc", Path(folder) / "openbei/wire/tei_pb2_grpc.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


@dataclass
class Client:
    """The stubs of one server on one connection: client.Embed.EmbedStream(...)."""

    server: GrpcServer
    address: str
    channel: Any

    def __getattr__(self, service: str) -> Any:
        return getattr(stubs(), f"{service}Stub")(self.channel)


@asynccontextmanager
async def served(engine: Any, spans: Spans | None = None, **config: Any) -> AsyncIterator[Client]:
    """A server and its client in the running loop; stopped at once at the end."""
    server = GrpcServer(engine, ServerConfig(hostname="127.0.0.1", grpc_port=0, **config), spans)
    await server.start()
    address = f"127.0.0.1:{server.port}"
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield Client(server, address, channel)
    finally:
        await server.stop(0)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine -> one that pytest can run; it may take WAIT_S seconds."""

    @functools.wraps(test)
    def run(*args: Any, **options: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **options), WAIT_S))

    return run


async def failed(call: Any) -> tuple[str, str]:
    """An rpc that must fail -> the name of its status, and the message."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (gathered(call) if hasattr(call, "__aiter__") else call)
    return caught.value.code().name, caught.value.details() or ""


async def gathered(call: AsyncIterable[Any]) -> list[Any]:
    return [message async for message in call]


async def until(claim: Callable[[], object]) -> None:
    """Let the loop run until a claim is true."""
    end_s = time.monotonic() + WAIT_S
    while not claim():
        assert time.monotonic() < end_s
        await asyncio.sleep(0.002)
