"""The gRPC server, beside HTTP in the same event loop: tei.v1, health and reflection on a port or socket of their own.

Owns the listening, the limits and the end of it; what an rpc means stands in grpc_rpcs.py. Imported only where gRPC is
served: it needs the packages of openbei[grpc].
"""

import os
from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import aio as aio_reflection

from openbei.engine.request import Result
from openbei.errors import ConfigError, MalformedBody
from openbei.server import grpc_health as health
from openbei.server.grpc_calls import Answering, Context, Shared, in_order
from openbei.server.grpc_rpcs import RPCS, Rpc, rerank_stream
from openbei.server.listen import check_socket
from openbei.server.trace import Spans
from openbei.wire import tei_pb2 as pb

if TYPE_CHECKING:
    from openbei.config import ServerConfig
    from openbei.engine.engine import Engine
    from openbei.engine.models import Models

REFLECTION = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")
SERVICES = (
    *(service.full_name for service in pb.DESCRIPTOR.services_by_name.values()),
    health.SERVICE,
    *REFLECTION,
)


class GrpcServer:
    """Serves models over gRPC from start to stop, all in one running event loop. port: where it listens, if at one.

    spans: as Shared has it. Raises ConfigError if an address cannot be listened on.
    """

    def __init__(self, served: "Models | Engine", config: "ServerConfig", spans: Spans | None = None) -> None:
        self._shared = Shared(served, config, spans)
        self._server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", config.payload_limit),
                ("grpc.so_reuseport", int(config.frontends > 0)),  # the kernel shares out its connections among them
                ("grpc.http2.max_ping_strikes", 0),  # a client may ask as often as it likes whether we are there
            )
        )
        self._server.add_generic_rpc_handlers(
            (*handlers(self._shared), health.handler(self._shared.models), *reflection())
        )
        host, self.port = config.hostname, config.grpc_port
        if self.port is not None:
            address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"
            self.port = self._listen(address, f"grpc_port {self.port} of {host}")
        if config.grpc_socket is not None:
            self._listen_at(config.grpc_socket)

    def _listen_at(self, path: str) -> None:
        """At a Unix socket for its owner alone; gRPC removes it in the end, and before it one that was left behind."""
        check_socket(path)
        others = os.umask(0o177)
        try:
            self._listen(f"unix:{path}", f"grpc_socket {path}")
        finally:
            os.umask(others)

    def _listen(self, address: str, name: str) -> int:
        try:
            port: int = self._server.add_insecure_port(address)
        except RuntimeError:
            raise ConfigError(f"cannot listen on {name}") from None
        return port

    async def start(self) -> None:
        """Answer from now on."""
        await self._server.start()

    async def stop(self, grace_s: float) -> None:
        """Take nothing more, and return when what was read is answered, at the latest after grace_s seconds."""
        self._shared.stop_reading()
        await self._server.stop(grace_s)
        self._shared.close()


def handlers(shared: Shared) -> list[Any]:
    """Every rpc of tei.v1, a handler a service."""
    methods: dict[str, dict[str, Any]] = {service: {} for service in pb.DESCRIPTOR.services_by_name}
    for rpc in RPCS:
        methods[rpc.service][rpc.name] = grpc.unary_unary_rpc_method_handler(unary(shared, rpc))
        if rpc.stream:
            methods[rpc.service][f"{rpc.name}Stream"] = grpc.stream_stream_rpc_method_handler(stream(shared, rpc))
    methods["Rerank"]["RerankStream"] = grpc.stream_unary_rpc_method_handler(client_stream(shared))
    return [grpc.method_handlers_generic_handler(f"tei.v1.{name}", found) for name, found in methods.items()]


def unary(shared: Shared, rpc: Rpc) -> Callable[[bytes, Context], Awaitable[bytes]]:
    """One message in, one out."""
    path, parse = f"{rpc.service}/{rpc.name}", parser(rpc.service, rpc.name)

    async def handler(data: bytes, context: Context) -> bytes:
        async with Answering(shared, path, context, rpc.waits, rpc.asks) as call:
            message = parse(data)
            result = await (await rpc.begin(call, message))
            if isinstance(result, Result):
                await context.send_initial_metadata(call.told(result))
            return rpc.answer(call, message, result)

    return handler


def stream(shared: Shared, rpc: Rpc) -> Callable[[AsyncIterable[bytes], Context], Awaitable[None]]:
    """Messages in, one out for each, in order."""
    path, parse = f"{rpc.service}/{rpc.name}Stream", parser(rpc.service, rpc.name)

    async def handler(messages: AsyncIterable[bytes], context: Context) -> None:
        async with (
            Answering(shared, path, context, True, rpc.asks) as call,
            aclosing(in_order(call, (parse(data) async for data in messages), rpc.begin)) as answered,
        ):
            async for message, result in answered:
                if isinstance(result, Result):
                    call.count(result)
                await context.write(rpc.answer(call, message, result))

    return handler


def client_stream(shared: Shared) -> Callable[[AsyncIterable[bytes], Context], Awaitable[bytes]]:
    """RerankStream: messages in, one out for all of them."""
    parse = parser("Rerank", "RerankStream")

    async def handler(messages: AsyncIterable[bytes], context: Context) -> bytes:
        async with Answering(shared, "Rerank/RerankStream", context, True, "rerank") as call:
            answer, result = await rerank_stream(call, (parse(data) async for data in messages))
            await context.send_initial_metadata(call.told(result))
            return answer

    return handler


def parser(service: str, name: str) -> Callable[[bytes], Any]:
    """An rpc's name -> bytes to its request message; raises MalformedBody."""
    method = pb.DESCRIPTOR.services_by_name[service].methods_by_name[name]
    kind = getattr(pb, method.input_type.name)

    def parse(data: bytes) -> Any:
        try:
            return kind.FromString(data)
        except DecodeError:
            raise MalformedBody(f"the message is no {method.input_type.full_name}") from None

    return parse


def reflection() -> list[Any]:
    """What tools ask for the services and their messages, under its new name and its old: the messages are the same."""
    rpc = grpc.stream_stream_rpc_method_handler(
        aio_reflection.ReflectionServicer(SERVICES).ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return [grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": rpc}) for name in REFLECTION]
