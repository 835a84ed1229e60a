"""`bei serve`, `bei info` and `bei build` of a DEPLOYMENT, and `bei deployments`: list, search and show the collection.

Owns how a config.yaml enters the command line: its variables are set, its arguments come before a person's own, so
flag > file > environment > default. Never touches models or requests.
"""

import os
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson
from click.core import ParameterSource

from openbei.config import EngineConfig, ServerConfig
from openbei.deployment_file import FILE, collection, file_of, is_artifact, meant
from openbei.engine.devices import gpu_number
from openbei.errors import ConfigError, ModelNotFound, OpenBeiError
from openbei.flags import META, ConfigCommand, Typed, note, pick, split

if TYPE_CHECKING:
    from openbei.deployment import Deployment

Values = dict[str, Any]

# What `bei build` and `bei info` do not take: they read a model, and serve nothing.
LOADING = ("model_id", "revision", "dtype", "pooling", "huggingface_hub_cache", "hf_token")
NOT_OF_LOADING = tuple(item.name for item in fields(EngineConfig) if item.name not in LOADING)
DEPLOYMENT = "openbei.deployment"  # where a click context keeps the file that is built of


class ModelCommand(ConfigCommand):
    """A command whose MODEL may be a deployment: one that is not found may be one whose name is misspelled."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        words = [*ctx.params.get("models", ()), ctx.params.get("model"), ctx.params["model_id"]]
        try:
            return super().invoke(ctx)
        except ModelNotFound as error:
            models = [word.rpartition("=")[2] for word in words if word]
            question = next((meant(model) for model in models if model in str(error)), "")
            raise ModelNotFound(f"{error}{question}") from None


class ServeCommand(ModelCommand):
    """A command whose MODEL may be a deployment: the arguments of its config.yaml are read as if typed first."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; where MODEL is a deployment, parse again behind what its file says."""
        rest = super().parse_args(ctx, list(args))
        ctx.meta[META] = Typed.of(ctx)
        name, model = split(ctx.params["models"][0]) if len(ctx.params["models"]) == 1 else (None, None)
        file = file_of(model)
        if file is None:
            return rest
        from openbei.deployment import read  # 15 ms that a server of no deployment need not wait for

        typed = {name for name in ("model_id", "revision") if _is_typed(ctx, name)}
        deployment = read(file, on_cpu=gpu_number(ctx.params["device"]) is None)
        if not typed:
            deployment = of_store(deployment)
        os.environ.update(deployment.environment)
        ctx.params.clear()
        try:
            rest = super().parse_args(ctx, [*deployment.arguments, *args])
        except click.UsageError as error:
            raise ConfigError(f"{file}: {error.format_message()}") from None
        for text in deployment.notes:
            note(f"{file}: {text}", json_output=ctx.params["json_output"])
        ctx.params["models"] = ()
        ctx.params["served_model_name"] = name or ctx.params["served_model_name"]
        return rest


class BuildCommand(ModelCommand):
    """A command whose MODEL may be a deployment: of its arguments, those that a build has too, as if typed first."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; where MODEL is a deployment, parse again behind what its file says, and keep the file for the build.

        What is of a GPU is left to the machine that serves, which reads the same file.
        """
        rest = super().parse_args(ctx, list(args))
        file = file_of(ctx.params.get("model"))
        if file is None or is_artifact(file.parent):
            return rest
        from openbei.deployment import read

        deployment = self.settle(read(file, on_cpu=True))
        os.environ.update(deployment.environment)
        given = settings(ctx, deployment)
        known = [f"--{name.replace('_', '-')}={given[name]}" for name in given if name in ctx.params]
        ctx.params.clear()
        rest = super().parse_args(ctx, [*known, *args])
        ctx.params["model"] = None
        ctx.meta[DEPLOYMENT] = file
        return rest

    def settle(self, deployment: "Deployment") -> "Deployment":
        """A build begins at the source that the file names."""
        return deployment


class InfoCommand(BuildCommand):
    """The same of a command that looks at what `bei serve` would take."""

    def settle(self, deployment: "Deployment") -> "Deployment":
        """What was built comes first."""
        return of_store(deployment)


def _is_typed(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def of_store(deployment: "Deployment") -> "Deployment":
    """A deployment -> the same, of the artifact that was last built of its very file, if the store holds one."""
    from openbei.deployment import Source
    from openbei.weights.manifest import sha256_of
    from openbei.weights.store import list_store

    digest = sha256_of(deployment.path)
    facts = ((entry, entry.manifest.files.get(FILE)) for entry in list_store())
    found = [entry for entry, fact in facts if fact is not None and fact.sha256 == digest]
    if not found or is_artifact(deployment.path.parent):
        return deployment
    entry = max(found, key=lambda entry: entry.folder.stat().st_mtime)
    note = f"the weights are those of {entry.folder}, built of this file at {entry.manifest.revision}"
    return replace(deployment, source=Source(str(entry.folder)), notes=(note, *deployment.notes))


def load(folder: Path, *, on_cpu: bool) -> "Iterator[Deployment]":
    """Every deployment of a folder, by name. Raises ConfigError for the first that cannot be served."""
    from openbei.deployment import read

    for path in sorted(folder.glob("*/config.yaml")):
        yield read(path, on_cpu=on_cpu)


@click.group()
@click.option("--folder", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Another collection")
@click.pass_context
def deployments(ctx: click.Context, folder: Path | None) -> None:
    """List, search and show deployments: folders with a config.yaml that `bei serve` takes."""
    ctx.obj = folder or collection()


@deployments.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON each")
@click.pass_obj
def list_command(folder: Path, as_json: bool) -> None:
    """List every deployment: its name, model, GPU, and the route that its clients call."""
    _print(load(folder, on_cpu=True), as_json)


@deployments.command()
@click.argument("words", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON each")
@click.pass_obj
def search(folder: Path, words: tuple[str, ...], as_json: bool) -> None:
    """List the deployments whose name, model, GPU, route or description has all WORDS, in any case."""
    found = [one for one in load(folder, on_cpu=True) if all(word.lower() in _text(one) for word in words)]
    if not found:
        raise click.ClickException(f"no deployment in {folder} has {' and '.join(words)}")
    _print(found, as_json)


@deployments.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON")
@click.pass_context
def show(ctx: click.Context, name: str, as_json: bool) -> None:
    """Show what NAME (of the collection, a folder or a config.yaml) comes to: its settings and its notes."""
    from openbei.deployment import read

    file = file_of(str(ctx.obj / name)) or file_of(name)
    if file is None:
        told = f"{name} is no deployment: `bei deployments list` names those of {ctx.obj}{meant(name)}"
        raise click.ClickException(told)
    deployment = read(file, on_cpu=gpu_number("auto") is None)
    facts = _facts(deployment) | settings(ctx, deployment) | {"variables": deployment.environment}
    if as_json:
        click.echo(orjson.dumps({**facts, "notes": deployment.notes}))
        return

    from openbei.describe import table  # which imports NumPy

    click.echo(table(facts))
    for text in deployment.notes:
        click.echo(f"note: {text}")


def settings(ctx: click.Context, deployment: "Deployment") -> Values:
    """What a deployment sets that differs from the default, as EngineConfig and ServerConfig name it."""
    group = ctx.find_root().command
    assert isinstance(group, click.Group)
    serve = group.commands["serve"]
    try:
        with serve.make_context("serve", list(deployment.arguments)) as parsed:
            values = parsed.params
    except click.UsageError as error:
        raise ConfigError(f"{deployment.path}: {error.format_message()}") from None
    given: Values = {}
    for kind in (EngineConfig, ServerConfig):
        asked, default = kind(**pick(kind, values)), kind()
        names = [name for name in pick(kind, values) if getattr(asked, name) != getattr(default, name)]
        given |= {name: getattr(asked, name) for name in names}
    return given


def _facts(deployment: "Deployment") -> Values:
    source = deployment.source
    return {
        "name": deployment.name,
        "model": source.model_id,
        "revision": source.revision,
        "gpu": deployment.accelerator,
        "route": deployment.route,
    }


def _text(deployment: "Deployment") -> str:
    words = [*_facts(deployment).values(), deployment.description]
    return " ".join(str(word) for word in words).lower()


def _print(found: "Iterator[Deployment] | list[Deployment]", as_json: bool) -> None:
    rows = [_facts(one) for one in found]
    if as_json:
        for row in rows:
            click.echo(orjson.dumps(row))
        return
    if not rows:
        raise OpenBeiError("there is no deployment in this folder")
    widths = {name: max(len(str(row[name] or "-")) for row in rows) for name in rows[0]}
    for row in rows:
        click.echo("  ".join(str(row[name] or "-").ljust(width) for name, width in widths.items()).rstrip())
