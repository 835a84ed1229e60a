"""What `bei serve` would serve a deployment by, with no variable of the caller's in it."""

from pathlib import Path

import click
import pytest

from openbei.cli import main
from openbei.config import EngineConfig, ServerConfig
from openbei.flags import pick

FIELDS = (*EngineConfig.__dataclass_fields__, *ServerConfig.__dataclass_fields__)


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the caller counts, none that a file sets outlives its test, and the store is empty."""
    for name in (*FIELDS, "hf_api_token", "hf_hub_offline"):
        monkeypatch.setenv(name.upper(), "x")
        monkeypatch.delenv(name.upper())
    monkeypatch.setenv("OPENBEI_HOME", str(tmp_path / "home"))


def configs(path: Path | str, *args: str) -> tuple[EngineConfig, ServerConfig]:
    """`bei serve PATH ARGS` -> what it would serve by."""
    serve = main.commands["serve"]
    with serve.make_context("serve", [str(path), *args], parent=click.Context(main)) as context:
        values = context.params
    return EngineConfig(**pick(EngineConfig, values)), ServerConfig(**pick(ServerConfig, values))
