"""The pages that the code can write: docs/cli.md from the commands' own options, docs/metrics.md from the metrics,
docs/models.md (by models.py) from the families, the tests' tables and docs/models.toml, docs/api.md (by api.py) from
the app's routes and what they answer, and the files of every deployment (by deployments/generate.py).

python docs/generate.py            # writes them
python docs/generate.py --check    # exit 1 if one is stale
"""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import click

from openbei.cli import main
from openbei.engine.metrics import Metrics
from openbei.serve_cli import IGNORED

DOCS = Path(__file__).parent
CLI_HEAD = """# The command line

*Made by `make docs` from the code; do not edit.*

`bei` has {names}. A flag wins over its environment variable, the variable over the default.
A boolean flag stands alone or takes a word: `--auto-truncate`, `--auto-truncate false`. Exit codes: 0 done, or drained
after SIGTERM; 1 the model, a value or a file is refused, with one line that says why; 2 a flag is unknown or malformed.
"""
CLI_TAIL = """
## TEI's other flags

`bei serve` takes them too, so that a start command need not change, and notes each on stderr.

| flag | here |
|---|---|
{ignored}
| `--hf-api-token` | the old name of `--hf-token`; `HF_API_TOKEN` too |

## Other variables

`LOG_LEVEL` (trace, debug, info, warning, error, off) sets what is logged to stderr; of a list such as `info,hyper=off`
the first word without `=` counts. `HF_HOME`, `HF_HUB_OFFLINE` and `HF_ENDPOINT`
mean what they mean to the hub's own library. `HOSTNAME` counts only if it is an IP address, because containers set it
to their own name.
"""

METRICS_HEAD = """# Metrics

*Made by `make docs` from the code; do not edit.*

`GET /metrics` answers in Prometheus' text format. Names are TEI's, so its dashboards work; durations are in seconds,
lengths in tokens. Where a server has several models, each series has the label `model` too, with the served name; a
model that is unloaded takes its series along.

| name | type | labels | meaning |
|---|---|---|---|
"""


def cli_page() -> str:
    """The commands -> docs/cli.md."""
    names = [f"`{name}`" for name in main.commands]
    ignored = "\n".join(f"| `{name}` | {instead} |" for name, (_, instead) in IGNORED.items())
    sections = [_command(name, command) for name, command in main.commands.items()]
    head = CLI_HEAD.format(names=", ".join(names[:-1]) + " and " + names[-1])
    return head + "".join(sections) + CLI_TAIL.format(ignored=ignored)


def _command(name: str, command: click.Command) -> str:
    with click.Context(command, info_name=f"bei {name}") as context:
        usage = " ".join(command.collect_usage_pieces(context))
        options = [item for item in command.params if isinstance(item, click.Option) and not item.hidden]
        rows = [_option(option, context) for option in options]
    text = "\n".join(line.strip() for line in (command.help or "").strip().splitlines())
    table = "\n".join(["| flag | environment | default | meaning |", "|---|---|---|---|", *rows])
    return f"\n## bei {name}\n\n`bei {name} {usage}`\n\n{text}\n\n{table}\n"


def _option(option: click.Option, context: click.Context) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    extra = option.get_help_extra(context)
    default = f"`{extra['default']}`" if "default" in extra else ""
    variables = [option.envvar] if isinstance(option.envvar, str) else option.envvar or []
    variable = ", ".join(f"`{name}`" for name in variables)
    choices = " / ".join(option.type.choices) if isinstance(option.type, click.Choice) else ""
    meaning = f"{option.help} ({choices})" if choices else option.help
    return f"| {names} | {variable} | {default} | {meaning} |"


def metrics_page() -> str:
    """The metrics' own text, with nothing counted yet -> docs/metrics.md."""
    rows = []
    text = Metrics(max_input_length=1).render().decode()
    for part in text.split("# HELP ")[1:]:
        (name, meaning), kind = part.splitlines()[0].split(" ", 1), part.splitlines()[1].rpartition(" ")[2]
        labels = sorted(set(re.findall(r'(\w+)="([^"]*)"', part)) if kind == "counter" else ())
        named = ", ".join(f"{label} = {value}" for label, value in labels)
        rows.append(f"| `{name}` | {kind} | {named} | {meaning} |")
    return METRICS_HEAD + "\n".join(rows) + "\n"


def models_page() -> str:
    """The tables of models.py -> docs/models.md."""
    sys.path.insert(0, str(Path(__file__).parents[1]))  # it reads the tests' tables
    import models

    return models.models_page()


def api_page() -> str:
    """The app's answers, by api.py -> docs/api.md."""
    sys.path.insert(0, str(Path(__file__).parents[1]))  # it asks with the tests' engine
    import api

    return api.api_page()


PAGES: dict[str, Callable[[], str]] = {
    "api.md": api_page,
    "cli.md": cli_page,
    "metrics.md": metrics_page,
    "models.md": models_page,
}


def deployment_pages() -> dict[Path, str]:
    """deployments/generate.py -> the files of every deployment."""
    root = Path(__file__).parents[1]
    sys.path[:0] = [str(root), str(DOCS)]
    from deployments.generate import pages

    return {root / "deployments" / name: text for name, text in pages().items()}


def generate(check: bool) -> int:
    """Write every page, or count those that differ from what is on the disk."""
    stale = 0
    pages = {DOCS / name: make() for name, make in PAGES.items()} | deployment_pages()
    for path, text in pages.items():
        if check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            print(f"{path} is stale: make docs", file=sys.stderr)
            stale += 1
        elif not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(min(1, generate("--check" in sys.argv[1:])))
