"""The words after `bei serve` -> an EngineConfig for each model, and one ServerConfig for all.

Owns NAME=MODEL, and whose word counts where deployments speak too: a flag before the model's own file, that before a
variable of the environment, that before the default. Never touches models or sockets.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from openbei.config import EngineConfig, ServerConfig
from openbei.deployment_file import file_of
from openbei.deployments_cli import of_store
from openbei.engine.devices import gpu_number
from openbei.errors import ConfigError
from openbei.flags import ConfigCommand, Typed, given, pick, split

OF_ONE_MODEL = ("model_id", "revision", "served_model_name")
OF_ONE_SERVER = ("hostname", "port", "default_route")  # a file that is loaded later does not say where it listens

Values = dict[str, Any]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """One model. file: of a deployment. server: what that file says of the server; variables: what it sets beside."""

    engine: EngineConfig
    file: Path | None = None
    server: Values = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)


def want(typed: Typed, model: str, name: str | None = None) -> Wanted:
    """MODEL and the name to serve it under -> what to serve. Raises ConfigError."""
    own: Values = {"model_id": model, "revision": None, "served_model_name": name}
    file = file_of(model)
    if file is None:
        return Wanted(EngineConfig(**pick(EngineConfig, typed.values | own)))
    from openbei.deployment import read  # 15 ms that a server of no deployment need not wait for

    deployment = read(file, on_cpu=gpu_number(typed.values["device"]) is None)
    if not typed.flags & {"model_id", "revision"}:
        deployment = of_store(deployment)
    for note in deployment.notes:
        log.info("%s: %s", file, note)
    flags, variables = _as_flags(typed.command, deployment.environment)
    said = _parse(typed.command, [*flags, *deployment.arguments], file)
    own = {key: said.get(key) for key in OF_ONE_MODEL} | ({"served_model_name": name} if name else {})
    flagged = {key: typed.values[key] for key in typed.flags}
    engine = EngineConfig(**pick(EngineConfig, typed.values | said | flagged | own))
    return Wanted(engine, file, pick(ServerConfig, said), variables)


def settle(typed: Typed, words: Sequence[str]) -> tuple[list[EngineConfig], ServerConfig]:
    """Several [NAME=]MODELs -> the config of each, and the server's. Sets variables that files set and no flag means.

    Raises ConfigError where two of them contradict each other.
    """
    if typed.values["served_model_name"] is not None:
        raise ConfigError("--served-model-name names one model, and several are served: write NAME=MODEL for each")
    wanted = [want(typed, model, name) for name, model in map(split, words)]
    revision, first = typed.values["revision"], "revision" in typed.flags
    engines = [replace(one.engine, revision=revision if first else one.engine.revision or revision) for one in wanted]
    os.environ.update(_agreed((one.file, one.variables) for one in wanted))
    said = _agreed((one.file, _less(one.server, {"default_route", *typed.flags})) for one in wanted)
    return engines, ServerConfig(**pick(ServerConfig, typed.values | said))


def want_later(typed: Typed, server: ServerConfig, model: str, name: str | None, revision: str | None) -> EngineConfig:
    """As `bei serve` would serve MODEL, beside what is served already. Raises ConfigError."""
    one = want(typed, model, name)
    for key, value in _less(one.server, OF_ONE_SERVER).items():
        if value != getattr(server, key):
            raise ConfigError(f"{one.file} sets {key} to {value!r}, and this server has {getattr(server, key)!r}")
    for key, value in one.variables.items():
        if os.environ.get(key) != value:
            raise ConfigError(f"{one.file} sets the variable {key}, which is all models': start the server with it")
    return replace(one.engine, revision=revision or one.engine.revision)


def _parse(command: click.Command, args: Sequence[str], file: Path) -> Values:
    """A file's arguments -> the values that they set."""
    ctx = click.Context(command, info_name="serve")
    try:
        ConfigCommand.parse_args(command, ctx, list(args))  # type: ignore[arg-type]
    except click.UsageError as error:
        raise ConfigError(f"{file}: {error.format_message()}") from None
    return {name: ctx.params[name] for name in given(ctx)}


def _as_flags(command: click.Command, variables: Mapping[str, str]) -> tuple[list[str], Values]:
    """Variables -> flags, of those that a flag has; and the others."""
    by_variable = {name: option for option in command.params for name in _names(option.envvar)}
    flags = [
        f"{by_variable[name].opts[0]}={word}"
        for name, value in variables.items()
        if name in by_variable
        for word in (value.split() if by_variable[name].multiple else [value])
    ]
    return flags, _less(variables, by_variable)


def _names(variables: str | Sequence[str] | None) -> Sequence[str]:
    return [variables] if isinstance(variables, str) else variables or ()


def _less(values: Mapping[str, Any], names: Any) -> Values:
    return {name: value for name, value in values.items() if name not in names}


def _agreed(said: "Iterator[tuple[Path | None, Mapping[str, Any]]]") -> Values:
    """What several files set -> all of it together. Raises ConfigError where two set one thing to two values."""
    by: dict[str, Path | None] = {}
    agreed: Values = {}
    for file, values in said:
        for name, value in values.items():
            if agreed.setdefault(name, value) != value:
                raise ConfigError(
                    f"{name} is {agreed[name]!r} in {by[name]} and {value!r} in {file}, and one server has one"
                )
            by.setdefault(name, file)
    return agreed
