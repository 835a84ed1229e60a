"""`bei serve`: from what a person typed to a server that answers, and what they read of it.

Owns the order of that start, in one process or with frontends, and its notes; never touches tensors or requests. What
takes time to import is imported when it is needed, so that `bei serve` starts quickly.
"""

import contextlib
import gc
import signal
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson
from click.core import ParameterSource

from openbei.config import EngineConfig, ServerConfig
from openbei.deployments_cli import ServeCommand
from openbei.flags import META, Secret, Typed, config_options, note, pick, settle_model, split
from openbei.signals import ended_by
from openbei.wanted import settle, want_later

if TYPE_CHECKING:
    from openbei.engine.loading import Configure
    from openbei.engine.request import Kind

# TEI's flags that have no meaning here, and what openbei does instead.
IGNORED: dict[str, tuple[click.ParamType[Any], str]] = {
    "--uds-path": (click.STRING, "the processes of one server find a socket of their own"),
    "--disable-spans": (click.BOOL, "no spans are logged"),
    "--prometheus-port": (click.STRING, "/metrics is on --port"),
    "--dense-path": (click.STRING, "the Dense modules are those that the model's modules.json names"),
}


def _tei_options(command: Any) -> Any:
    for name, (kind, _) in IGNORED.items():
        command = click.option(name, type=kind, hidden=True)(command)
    return click.option("--hf-api-token", type=Secret(), envvar="HF_API_TOKEN", hidden=True)(command)


@click.command(cls=ServeCommand, epilog="TEI's other flags are accepted too, each with a note that it does nothing.")
@click.argument("models", metavar="[[NAME=]MODEL]...", nargs=-1)
@config_options(EngineConfig)
@config_options(ServerConfig)
@_tei_options
@click.pass_context
def serve(ctx: click.Context, /, **values: Any) -> None:
    """Serve each MODEL over HTTP: a folder, an artifact, a hub id, a deployment, or the embedded all-MiniLM-L6-v2.

    Of several, a request is answered by the one that its field model or its header x-model names, else by the first
    that is for its route.
    """
    started_s = time.monotonic()
    gc.disable()  # what is made while starting is kept: looking through it takes 35 ms and finds nothing
    ctx.call_on_close(gc.enable)
    _settle_tei(values)
    engines, config = _settle_models(ctx, values)
    from openbei import logs

    logs.start(config.json_output)
    if config.otlp_endpoint is not None:
        from openbei.server.trace import check

        check(config)
    from openbei.server.listen import settled

    config = settled(config)
    typed: Typed = ctx.meta[META]
    configure = Later(typed.values, typed.flags, config)
    for one in engines:
        _note_artifact(one.model_id)
    # A KeyboardInterrupt could come in the middle of an import, and two threads do many: the next would wait for ever.
    with ended_by(signal.SIGINT):
        if config.frontends:
            _serve_processes(engines, config, configure, started_s)
        else:
            _serve_here(engines, config, configure, started_s)


@dataclass(frozen=True, slots=True)
class Later:
    """A model that is asked for later -> its config. It can be pickled, which the command that was typed cannot."""

    values: dict[str, Any]
    flags: frozenset[str]
    server: ServerConfig

    def __call__(self, model: str, name: str | None, revision: str | None) -> EngineConfig:
        """As engine.loading's Configure. Raises ConfigError."""
        wanted = want_later(Typed(serve, self.values, self.flags), self.server, model, name, revision)
        _note_artifact(wanted.model_id)
        return wanted


def _note_artifact(model: str | None) -> None:
    """Note that an artifact is used."""
    folder = Path(model).expanduser() if model else None
    if folder is not None and (folder / "manifest.json").exists():
        from openbei.weights.store import note_use

        note_use(folder)


def _serve_here(
    engines: Sequence[EngineConfig], config: ServerConfig, configure: "Configure", started_s: float
) -> None:
    from openbei.engine.start import read_model

    checkpoints = [read_model(one) for one in engines]

    from openbei.describe import served_facts
    from openbei.engine.budget import Budget
    from openbei.engine.loading import LoadedModels
    from openbei.engine.start import import_backend

    import_backend(engines[0].device)
    # Importing the web framework takes a fifth of a start; meanwhile OpenVINO compiles, which it was imported for.
    for name in ("serve", "grpc") if config.has_grpc else ("serve",):
        threading.Thread(target=import_module, args=(f"openbei.server.{name}",)).start()
    with contextlib.closing(LoadedModels(Budget(config.max_model_bytes), configure)) as models:
        facts = {}
        for one in engines:
            info = models.start(checkpoints[0], one)
            facts[info.served_model_name] = served_facts(checkpoints.pop(0), one, info)  # which is then its engine's

        from openbei.server.serve import serve as serve_models

        def on_ready(url: str) -> None:
            _print_ready(Ready(url, facts, models.first.info.kind, time.monotonic() - started_s), config)

        serve_models(models, config, on_ready)


def _serve_processes(
    engines: Sequence[EngineConfig], config: ServerConfig, configure: "Configure", started_s: float
) -> None:
    from openbei import logs
    from openbei.describe import served_facts
    from openbei.server.messages import EngineAt
    from openbei.server.processes import Plan
    from openbei.server.supervisor import supervise

    def on_ready(url: str, *engines_at: EngineAt) -> None:
        processes = {
            "processes": f"1 for {'each' if len(engines) > 1 else 'the'} model, "
            f"{config.frontends} for HTTP and tokenizing"
        }
        facts = {at.name: at.facts | processes for at in engines_at}
        _print_ready(Ready(url, facts, engines_at[0].served.info.kind, time.monotonic() - started_s), config)

    set_up = partial(logs.start, config.json_output)
    plan = Plan(engines[0], config, set_up, served_facts, others=tuple(engines[1:]), configure=configure)
    supervise(plan, on_ready)


@dataclass(frozen=True, slots=True)
class Ready:
    """A server that answers: its address, what it serves by name, the kind of the first, and what the start took."""

    url: str
    facts: dict[str, dict[str, Any]]
    kind: "Kind"
    seconds: float


def _print_ready(ready: Ready, config: ServerConfig) -> None:
    from openbei.describe import curl, table

    gc.freeze()  # nor is it looked through later, between requests
    gc.enable()
    url, several = ready.url, len(ready.facts) > 1
    host = url.removeprefix("http://").rpartition(":")[0]
    found = ((config.grpc_port, f"{host}:{config.grpc_port}"), (config.grpc_socket, f"unix:{config.grpc_socket}"))
    grpc = ", ".join(address for value, address in found if value is not None)
    told = {"address": url, "docs": f"{url}/docs", "listens_on": config.hostname, "grpc": grpc}
    server = {name: value for name, value in told.items() if value}
    models = [{"name": name, **facts} if several else facts for name, facts in ready.facts.items()]
    if config.json_output:
        facts = {"models": models} if several else models[0]
        click.echo(orjson.dumps({"message": "ready", "seconds": round(ready.seconds, 3), **server, **facts}))
        return
    tables = [table(server), *map(table, models)] if several else [table(server | models[0])]
    command = curl(url, ready.kind, with_key=config.api_key is not None)
    text = "\n\n".join(tables)
    click.echo(f"openbei is ready after {ready.seconds:.1f} s\n\n{text}\n\nTry it:\n  {command}\n")


def _settle_models(ctx: click.Context, values: dict[str, Any]) -> tuple[list[EngineConfig], ServerConfig]:
    """[NAME=]MODEL, none or one or several, and --model-id -> an EngineConfig for each, and the server's."""
    words = values.pop("models")
    if len(words) > 1:
        if ctx.get_parameter_source("model_id") is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"MODEL is {words[0]} and --model-id is {values['model_id']}: give one of them", ctx)
        return settle(ctx.meta[META], words)
    name, values["model"] = split(words[0]) if words else (None, None)
    settle_model(ctx, values)
    if name is not None and values["served_model_name"] not in (None, name):
        raise click.UsageError(f"{words[0]} has a name, and --served-model-name is {values['served_model_name']}", ctx)
    values["served_model_name"] = name or values["served_model_name"]
    return [EngineConfig(**pick(EngineConfig, values))], ServerConfig(**pick(ServerConfig, values))


def _settle_tei(values: dict[str, Any]) -> None:
    for name, (_, instead) in IGNORED.items():
        if values.pop(name.removeprefix("--").replace("-", "_")) is not None:
            note(f"{name} is ignored: {instead}", json_output=values["json_output"])
    token = values.pop("hf_api_token")
    if token is not None:
        note("--hf-api-token is the old name of --hf-token", json_output=values["json_output"])
        values["hf_token"] = values["hf_token"] or token
