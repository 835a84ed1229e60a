"""hostname and port -> listening sockets, and the URL where a client on this machine finds them; gRPC's addresses.

Owns what may go wrong with an address; never touches what is served there.
"""

import os
import socket
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from openbei.config import ServerConfig
from openbei.errors import ConfigError

BACKLOG = 2048
MAX_PATH_BYTES = 107  # of a Unix socket, on Linux


def listen(hostname: str, port: int) -> socket.socket:
    """A listening socket; ConfigError says which setting stands in the way."""
    family, address = _resolve(hostname, port)
    try:
        return socket.create_server(address, family=family, backlog=BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error  # Python's own text repeats the address
        raise ConfigError(f"cannot listen on port {port} of {hostname}: {reason}") from None


def listen_shared(hostname: str, port: int, count: int) -> list[socket.socket]:
    """Sockets bound to one port, not listening yet; the kernel shares out its connections among those that do.

    Raises ConfigError as listen does, also where another server has the port that would share it (Linux allows that).
    """
    listen(hostname, port).close()  # it shares with nobody, and knows what to say
    family, address = _resolve(hostname, port)
    sockets = []
    for _ in range(count):
        one = socket.socket(family, socket.SOCK_STREAM)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # as create_server does
        one.bind(address)
        address = one.getsockname()[:2]  # of port 0 the one that the first was given
        sockets.append(one)
    return sockets


def settled(config: ServerConfig) -> ServerConfig:
    """A config -> the same with a port for gRPC, if any, that its processes may share.

    Raises ConfigError if a port or the socket is not free now, before a model is loaded in vain, or if the packages
    that gRPC needs are not installed.
    """
    with listen(config.hostname, config.port):
        if not config.has_grpc:
            return config
        missing = [name for name in ("grpc", "grpc_health", "grpc_reflection") if find_spec(name) is None]
        if missing:
            raise ConfigError(f"gRPC needs openbei[grpc], which is not installed: there is no {', '.join(missing)}")
        if config.grpc_socket is not None:
            check_socket(config.grpc_socket)
        if config.grpc_port is None:
            return config
        with listen(config.hostname, config.grpc_port) as listener:
            return replace(config, grpc_port=listener.getsockname()[1])


def check_socket(path: str) -> None:
    """Raise ConfigError unless gRPC may listen at a path: there is nothing, or the socket of a server that is gone.

    gRPC itself takes the place of any socket there, also of one that is in use.
    """
    file, size = Path(path), len(os.fsencode(path))
    if size > MAX_PATH_BYTES:
        raise ConfigError(f"grpc_socket must be at most {MAX_PATH_BYTES} bytes long, got {size}")
    if not os.access(file.parent, os.W_OK):
        raise ConfigError(f"cannot listen on grpc_socket {path}: there is no folder {file.parent} to write in")
    if file.exists() and not file.is_socket():
        raise ConfigError(f"cannot listen on grpc_socket {path}: there is a file, and it is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(path) == 0:
            raise ConfigError(f"cannot listen on grpc_socket {path}: another server does")


def url(listener: socket.socket) -> str:
    """Where a client on this machine finds the listener."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _resolve(hostname: str, port: int) -> tuple[int, Any]:
    try:
        found = socket.getaddrinfo(hostname, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"hostname must be an address of this machine, got {hostname!r}: {error}") from None
    family, _, _, _, address = found[0]
    return family, address[:2]
