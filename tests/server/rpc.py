"""A gRPC server of one engine on a real port, and the stubs that protoc makes of tei.proto, as any client has them."""

import importlib.util
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_tools import protoc

from openbei.config import ServerConfig
from openbei.server.grpc import GrpcServer

ROOT = Path(__file__).parents[2]
PROTO = "openbei/wire/tei.proto"
WAIT_S = 20


def compile_proto(*options: str) -> None:
    assert protoc.main(["protoc", f"--proto_path={ROOT}", *options, PROTO]) == 0


def make_stubs(folder: Path) -> ModuleType:
    """protoc's client code, which finds its messages in openbei.wire.tei_pb2."""
    compile_proto(f"--grpc_python_out={folder}")
    spec = importlib.util.spec_from_file_location("tei_pb2_grpc", folder / "openbei/wire/tei_pb2_grpc.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Client:
    """The stubs of one server, on one connection."""

    server: GrpcServer
    address: str
    channel: Any
    stubs: ModuleType

    def __getattr__(self, service: str) -> Any:
        return getattr(self.stubs, f"{service}Stub")(self.channel)


@asynccontextmanager
async def served(stubs: ModuleType, engine: Any, **config: Any) -> AsyncIterator[Client]:
    """A server and its client in the running loop; stopped at once at the end."""
    server = GrpcServer(engine, ServerConfig(hostname="127.0.0.1", grpc_port=0, **config))
    await server.start()
    address = f"127.0.0.1:{server.port}"
    async with grpc.aio.insecure_channel(address) as channel:
        yield Client(server, address, channel, stubs)
        await server.stop(0)


async def status(call: Any) -> tuple[str, str]:
    """An rpc that must fail -> the name of its status, and the message."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        await call
    return caught.value.code().name, caught.value.details() or ""
