"""`bei` in process, with the loading of models and the server replaced."""

import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from openbei.cli import main
from openbei.config import EngineConfig, ServerConfig
from openbei.engine.settle import Served
from openbei.server.messages import EngineAt
from openbei.server.processes import Plan
from openbei.weights.load import LoadOptions
from tests.cli.fakes import FakeEngine, checkpoint

Bei = Callable[..., Result]


@dataclass
class Seen:
    """What the command line handed to the rooms below."""

    model: str | None = None
    models: list[str | None] = field(default_factory=list)
    loading: LoadOptions | None = None
    server: ServerConfig | None = None
    plan: Plan | None = None
    served: Any = None
    engines: list[FakeEngine] = field(default_factory=list)

    @property
    def engine(self) -> FakeEngine:
        return self.engines[-1]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    seen = Seen()

    def load(model: str | None, options: LoadOptions) -> Any:
        seen.model, seen.loading = model, options
        seen.models.append(model)
        return checkpoint()

    def start(_checkpoint: Any, config: EngineConfig) -> FakeEngine:
        seen.engines.append(FakeEngine(config))
        return seen.engine

    def serve(served: Any, config: ServerConfig, on_ready: Callable[[str], None]) -> None:
        seen.server, seen.served = config, served
        on_ready("http://127.0.0.1:7997")

    def supervise(plan: Plan, on_ready: Callable[[str, EngineAt], None]) -> None:
        seen.plan = plan
        info = FakeEngine(plan.engine).info
        served = Served(plan.engine, info, checkpoint().text, None, None)
        on_ready(
            "http://127.0.0.1:7997", EngineAt(Path("socket"), served, plan.describe(checkpoint(), plan.engine, info))
        )

    def listen(_hostname: str, _port: int) -> socket.socket:  # any port: tests that run beside this one may have that
        return socket.create_server(("127.0.0.1", 0))

    monkeypatch.setattr("openbei.server.listen.listen", listen)
    monkeypatch.setattr("openbei.server.supervisor.supervise", supervise)
    monkeypatch.setattr("openbei.engine.start.load", load)
    monkeypatch.setattr("openbei.engine.start.start", start)
    monkeypatch.setattr("openbei.server.serve.serve", serve)
    monkeypatch.setattr("openbei.logs.start", lambda json_output: None)
    return seen


@pytest.fixture
def bei(seen: Seen) -> Bei:
    """bei("serve", "-p", "0", env={...}, input=b"...") -> exit code and output, from an environment of nothing."""

    def call(*args: str, env: dict[str, str] | None = None, **settings: Any) -> Result:
        cleared = dict.fromkeys((name.upper() for name in (*FIELDS, "hf_api_token")), None)
        return CliRunner().invoke(main, args, env=cleared | (env or {}), **settings)

    return call


FIELDS = (*EngineConfig.__dataclass_fields__, *ServerConfig.__dataclass_fields__)
