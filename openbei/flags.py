"""A config dataclass -> command-line options: one field is one flag and one environment variable.

Owns the spelling of flags, their types, and how booleans are read; never touches the meaning of a value
(the config checks itself) nor engines, servers or files.
"""

import ipaddress
import types
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import click
from click.core import ParameterSource

BOOLEAN_WORDS = frozenset({"true", "false", "1", "0", "yes", "no", "on", "off"})
META = "openbei.typed"  # where the context keeps what was typed
SHORT_FORMS = {"port": ("-p",), "model_id": ("-m",)}


class IpAddress(click.ParamType[str]):
    """An IPv4 or IPv6 address; a name is refused."""

    name = "ip"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Text -> the same text, if it is an IP address."""
        try:
            return str(ipaddress.ip_address(value))
        except ValueError:
            self.fail(f"{value!r} is no IP address, such as 127.0.0.1 or ::", param, ctx)


class Secret(click.ParamType[str]):
    """Text that is never shown; an empty one is refused, since it would protect nothing."""

    name = "secret"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Text -> the same text, if there is any."""
        return str(value) or self.fail("must not be empty", param, ctx)


class HostnameOption(click.Option):
    """`--hostname`: its variable counts only if it is an IP, for containers set HOSTNAME to their own name."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """The environment -> an IP address, or None."""
        value = super().resolve_envvar_value(ctx)
        try:
            return str(ipaddress.ip_address(value or ""))
        except ValueError:
            return None


SPECIAL: dict[str, dict[str, Any]] = {
    "hostname": {"cls": HostnameOption, "type": IpAddress()},
    "port": {"envvar": ("PORT", "AIP_HTTP_PORT")},  # the second is Vertex AI's; the first that is set counts
}


class ConfigCommand(click.Command):
    """A command whose boolean options take an optional word: `--auto-truncate`, `--auto-truncate false`.

    The next argument is that word only if it reads as a boolean, so that `--auto-truncate MODEL` works too.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Write the optional word out before click parses."""
        return super().parse_args(ctx, list(_with_words(args, _boolean_names(self))))


def config_options(config: type, exclude: Collection[str] = ()) -> Callable[[Any], Any]:
    """A decorator that gives a click command one option a field of `config`, less those in `exclude`."""
    hints = get_type_hints(config)
    options = [_option(item, hints[item.name]) for item in fields(config) if item.name not in exclude]

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def pick(config: type, values: dict[str, Any]) -> dict[str, Any]:
    """What click read -> the part of it that `config` knows."""
    names = {item.name for item in fields(config)}
    return {name: value for name, value in values.items() if name in names}


def _option(item: Any, hint: Any) -> Callable[[Any], Any]:
    names = [f"--{item.name.replace('_', '-')}", *SHORT_FORMS.get(item.name, ())]
    settings: dict[str, Any] = {
        "type": _click_type(hint),
        "default": item.default,
        "show_default": item.default not in (None, ()),
        "envvar": item.name.upper(),
        "show_envvar": True,
        "multiple": get_origin(hint) is tuple,
        "help": item.metadata["help"],
    }
    if hint is bool:
        settings |= {"metavar": "[true|false]", "default": str(item.default).lower()}
    if item.metadata["secret"]:
        settings |= {"type": Secret(), "metavar": "***"}
    return click.option(*names, item.name, **(settings | SPECIAL.get(item.name, {})))


def _click_type(hint: Any) -> click.ParamType[Any]:
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if get_origin(hint) is Literal:
        return click.Choice(get_args(hint))
    return {bool: click.BOOL, int: click.INT, str: click.STRING, tuple[str, ...]: click.STRING}[hint]


def _boolean_names(command: click.Command) -> set[str]:
    return {name for option in command.params if option.type is click.BOOL for name in option.opts}


def _with_words(args: list[str], booleans: set[str]) -> Iterator[str]:
    for position, arg in enumerate(args):
        if arg == "--":
            yield from args[position:]
            return
        following = args[position + 1 : position + 2]
        missing = arg in booleans and not (following and following[0].lower() in BOOLEAN_WORDS)
        yield f"{arg}=true" if missing else arg


@dataclass(frozen=True, slots=True)
class Typed:
    """What a person said: the command, every value, and which of these stand as flags on the command line."""

    command: click.Command
    values: dict[str, Any]
    flags: frozenset[str]

    @classmethod
    def of(cls, ctx: click.Context) -> "Typed":
        """A context that has just been parsed -> what was typed."""
        values = ctx.params | {"hf_token": ctx.params["hf_token"] or ctx.params["hf_api_token"]}
        return cls(ctx.command, values, given(ctx))


def given(ctx: click.Context) -> frozenset[str]:
    """The names of what stands on the command line."""
    return frozenset(name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE)


def split(word: str) -> tuple[str | None, str]:
    """[NAME=]MODEL -> NAME, if there is one, and MODEL; what is there on this disk is a MODEL, whatever its letters."""
    name, equals, model = word.partition("=")
    if not equals or Path(word).expanduser().exists():
        return None, word
    if not name or not model:
        raise click.UsageError(f"{word!r} must be NAME=MODEL, with both")
    return name, model


def note(text: str, *, json_output: bool) -> None:
    """Tell stderr what of a start has no effect; as a line of the log, if that is JSON."""
    if json_output:
        from openbei import logs

        click.echo(logs.as_json(text), err=True)
    else:
        click.echo(f"note: {text}", err=True)


def settle_model(ctx: click.Context, values: dict[str, Any]) -> None:
    """MODEL and --model-id are two ways of saying the same; the environment's MODEL_ID gives way to both."""
    model = values.pop("model", None)
    if model is None:
        return
    by_flag = ctx.get_parameter_source("model_id") is ParameterSource.COMMANDLINE
    if by_flag and values["model_id"] != model:
        raise click.UsageError(f"MODEL is {model} and --model-id is {values['model_id']}: give one of them", ctx)
    values["model_id"] = model
