"""`bei serve DEPLOYMENT`, and `bei deployments`: list, search and show the collection.

Owns how a config.yaml enters the command line: its variables are set, its arguments come before a person's own, so
flag > file > environment > default. Never touches models or requests.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from openbei.config import EngineConfig, ServerConfig
from openbei.engine.devices import gpu_number
from openbei.errors import ConfigError, OpenBeiError
from openbei.flags import ConfigCommand, pick

if TYPE_CHECKING:
    from openbei.deployment import Deployment

Values = dict[str, Any]


class ServeCommand(ConfigCommand):
    """A command whose MODEL may be a deployment: the arguments of its config.yaml are read as if typed first."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; where MODEL is a deployment, parse again behind what its file says."""
        rest = super().parse_args(ctx, list(args))
        if ctx.params.get("model") is None:
            return rest
        from openbei.deployment import file_of, read  # 15 ms that a server of no deployment need not wait for

        file = file_of(ctx.params["model"])
        if file is None:
            return rest
        deployment = read(file, on_cpu=gpu_number(ctx.params["device"]) is None)
        os.environ.update(deployment.environment)
        for note in deployment.notes:
            click.echo(f"note: {file}: {note}", err=True)
        ctx.params.clear()
        try:
            rest = super().parse_args(ctx, [*deployment.arguments, *args])
        except click.UsageError as error:
            raise ConfigError(f"{file}: {error.format_message()}") from None
        ctx.params["model"] = None
        return rest


def collection() -> Path:
    """The folder of ready deployments: beside the package in a checkout, within it where it is installed."""
    package = Path(__file__).parent
    beside = package.parent / "deployments"
    return beside if (package.parent / "pyproject.toml").is_file() else package / "deployments"


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
    from openbei.deployment import file_of, read

    file = file_of(name) or file_of(str(ctx.obj / name))
    if file is None:
        raise click.ClickException(f"{name} is no deployment: `bei deployments list` names those of {ctx.obj}")
    deployment = read(file, on_cpu=gpu_number("auto") is None)
    facts = _facts(deployment) | settings(ctx, deployment) | {"variables": deployment.environment}
    if as_json:
        click.echo(orjson.dumps({**facts, "notes": deployment.notes}))
        return

    from openbei.describe import table  # which imports NumPy

    click.echo(table(facts))
    for note in deployment.notes:
        click.echo(f"note: {note}")


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
