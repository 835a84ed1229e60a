"""gRPC on real sockets over a fake engine: every rpc, every option, order, waiting, errors, health and reflection."""

import asyncio

import pytest

pytest.importorskip("grpc", reason="openbei[grpc] is not installed")
