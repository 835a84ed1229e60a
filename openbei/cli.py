"""The command `bei`, and of its commands embed and info; `*_cli.py` has the others.

Owns what a person types and reads; never touches tensors or requests. Flags and variables are made from the config
classes. What takes time to import is imported by the command that needs it, so that `bei --help` is quick.
"""

import os
import signal
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from openbei.artifacts_cli import build, list_artifacts, remove_artifacts, verify
from openbei.config import EngineConfig
from openbei.deployments_cli import NOT_OF_LOADING, InfoCommand, deployments
from openbei.errors import OpenBeiError
from openbei.flags import ConfigCommand, config_options, pick, settle_model
from openbei.serve_cli import serve
from openbei.signals import ended_by

if TYPE_CHECKING:
    from openbei.progress import Progress

SERVING_ONLY = ("served_model_name", "max_concurrent_requests", "max_queue_tokens", "max_client_batch_size")
FORMATS = ("auto", "lines", "jsonl")
OUTPUT_HELP = "JSONL, or a NumPy array if it ends in .npy; stdout if not set"
FORMAT_HELP = "auto goes by FILE's suffix, else by its first line: a JSON string or object makes it jsonl"


class Commands(click.Group):
    """The group of commands: what went wrong becomes one line on stderr and exit 1, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            with ended_by(signal.SIGTERM):
                return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except OpenBeiError as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror or error}") from None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="openbei", message="bei %(version)s")
def main() -> None:
    """Serve embeddings, embed files, look at models, and build them once to be started anywhere."""
    # NumPy multiplies next to nothing here, and starting threads for it costs 30 ms and their memory.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


main.add_command(serve)


@main.command(cls=ConfigCommand)
@click.argument("file", default="-", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("-o", "--output", default="-", type=click.Path(dir_okay=False, allow_dash=True), help=OUTPUT_HELP)
@click.option("--input-format", type=click.Choice(FORMATS), default="auto", show_default=True, help=FORMAT_HELP)
@click.option("--field", default="text", show_default=True, help="Key of the text where a line is a JSON object")
@click.option("--skip-empty", is_flag=True, help="Leave out lines without text; if not set they are an error")
@click.option("--prompt-name", help="Prompt of the model's own list put before every text")
@click.option("--normalize/--no-normalize", default=True, show_default=True, help="Scale every vector to length 1")
@click.option("--dimensions", type=click.INT, help="Keep the first N values, before normalising")
@click.option("--progress/--no-progress", default=None, help="A bar on stderr; only on a terminal if not set")
@config_options(EngineConfig, exclude=SERVING_ONLY)
def embed(**values: Any) -> None:
    """Embed FILE: a text a line, or JSONL (strings, or objects with a text field); stdin if FILE is "-" or not given.

    Answers are in the order of FILE. A JSONL answer's "index" is the text's line in FILE, counted from 0; a .npy
    array has a row for every text. Until the output is whole it is called OUTPUT.part.
    """
    config = EngineConfig(**pick(EngineConfig, values))

    from openbei.bulk import Job, Line, ReadOptions, run
    from openbei.engine.request import Options

    source, output = (None if values[name] == "-" else Path(values[name]) for name in ("file", "output"))
    reading = ReadOptions(values["input_format"], values["field"], values["skip_empty"])
    options = Options(**{name: values[name] for name in ("prompt_name", "normalize", "dimensions")})
    job = Job(source, output, reading, options)

    from openbei.engine.start import read_model, start

    with start(read_model(config), config) as engine:
        progress = _progress(source, values["progress"])

        def on_text(line: Line) -> None:
            progress.add(line.end_bytes, int(engine.metrics.batch_tokens.sum))

        try:
            run(engine, job, on_text)
        except BaseException:
            part = f"{output}.part"
            where = f"; they are in {part}" if progress.num_texts and Path(part).exists() else ""
            click.echo(f"stopped after {progress.close()}{where}", err=True)
            raise
        click.echo(progress.close(), err=True)


def _progress(source: Path | None, shown: bool | None) -> "Progress":
    from openbei.progress import Progress

    if source is None and sys.stdin.isatty():
        click.echo("reading texts from the terminal, one a line; Ctrl-D ends them", err=True)
    return Progress(_size_bytes(source), sys.stderr.isatty() if shown is None else shown)


def _size_bytes(source: Path | None) -> int | None:
    """The size of a regular file; None for pipes and terminals."""
    try:
        status = os.fstat(sys.stdin.fileno()) if source is None else source.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


@main.command(cls=InfoCommand)
@click.argument("model", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON")
@config_options(EngineConfig, exclude=NOT_OF_LOADING)
@click.pass_context
def info(ctx: click.Context, /, as_json: bool, **values: Any) -> None:
    """Tell what openbei understands of MODEL, or why it refuses it; MODEL is found, and fetched, as for serve."""
    settle_model(ctx, values)
    config = EngineConfig(**pick(EngineConfig, values))

    from openbei.describe import checkpoint_facts, precision_reason, table
    from openbei.engine.cpu import choose_dtype
    from openbei.engine.start import read_model

    checkpoint = read_model(config)
    dtype = choose_dtype(config.dtype)
    facts = checkpoint_facts(checkpoint)
    facts |= {"precision": dtype, "precision_reason": precision_reason(config.dtype, dtype)}
    click.echo(orjson.dumps(facts) if as_json else table(facts))


for _command in (build, verify, list_artifacts, remove_artifacts, deployments):
    main.add_command(_command)

if __name__ == "__main__":
    main()
