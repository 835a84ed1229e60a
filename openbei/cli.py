"""The command `bei`: serve, embed, info; build, verify, ls, rm. Flags and variables are made from the config classes.

Owns what a person types and reads; never touches tensors or requests. What takes time to import is imported by the
command that needs it, so that `bei --help` is quick and `bei serve` starts quickly.
"""

import contextlib
import gc
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
import orjson
from click.core import ParameterSource

from openbei.config import EngineConfig, ServerConfig
from openbei.deployments_cli import DEPLOYMENT, BuildCommand, InfoCommand, ServeCommand, deployments
from openbei.errors import ConfigError, OpenBeiError
from openbei.flags import META, ConfigCommand, Secret, Typed, config_options, pick, split
from openbei.wanted import settle, want_later

if TYPE_CHECKING:
    from openbei.engine.loading import Configure
    from openbei.engine.request import Kind
    from openbei.progress import Progress
    from openbei.weights.build import Examined, Phase
    from openbei.weights.checkpoint import Checkpoint

# TEI's flags that have no meaning here, and what openbei does instead.
IGNORED: dict[str, tuple[click.ParamType[Any], str]] = {
    "--uds-path": (click.STRING, "the processes of one server find a socket of their own"),
    "--disable-spans": (click.BOOL, "no spans are logged"),
    "--prometheus-port": (click.STRING, "/metrics is on --port"),
    "--dense-path": (click.STRING, "the Dense modules are those that the model's modules.json names"),
}
SERVING_ONLY = ("served_model_name", "max_concurrent_requests", "max_queue_tokens", "max_client_batch_size")
LOADING_ONLY = ("model_id", "revision", "dtype", "pooling", "huggingface_hub_cache", "hf_token")
BUILDING_ONLY = ("model_id", "revision", "dtype", "pooling", "huggingface_hub_cache", "hf_token")
FORMATS = ("auto", "lines", "jsonl")
OUTPUT_HELP = "JSONL, or a NumPy array if it ends in .npy; stdout if not set"
FORMAT_HELP = "auto goes by FILE's suffix, else by its first line: a JSON string or object makes it jsonl"


class Commands(click.Group):
    """The group of commands: what went wrong becomes one line on stderr and exit 1, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that was asked for."""
        try:
            with _ended_by(signal.SIGTERM):
                return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except OpenBeiError as error:
            raise click.ClickException(str(error)) from None
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror or error}") from None


@contextlib.contextmanager
def _ended_by(*signals: signal.Signals) -> Iterator[None]:
    """Any of the signals ends the process at once, until something within has a handler of its own.

    That is what the kernel does, but not to process 1, which a container's is: it only hears what it has a handler for.
    """
    action = _end if os.getpid() == 1 else signal.SIG_DFL
    before = {number: signal.signal(number, action) for number in signals}
    try:
        yield
    finally:
        for number, action_before in before.items():
            signal.signal(number, action_before)


def _end(number: int, _: object) -> NoReturn:
    os._exit(128 + number)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="openbei", message="bei %(version)s")
def main() -> None:
    """Serve embeddings, embed files, look at models, and build them once to be started anywhere."""
    # NumPy multiplies next to nothing here, and starting threads for it costs 30 ms and their memory.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


main.add_command(deployments)


def _tei_options(command: Any) -> Any:
    for name, (kind, _) in IGNORED.items():
        command = click.option(name, type=kind, hidden=True)(command)
    return click.option("--hf-api-token", type=Secret(), envvar="HF_API_TOKEN", hidden=True)(command)


@main.command(cls=ServeCommand, epilog="TEI's other flags are accepted too, each with a note that it does nothing.")
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
    typed: Typed = ctx.meta[META]

    def configure(model: str, name: str | None, revision: str | None) -> EngineConfig:
        wanted = want_later(typed, config, model, name, revision)
        _note_artifact(wanted.model_id)
        return wanted

    from openbei import logs

    logs.start(config.json_output)
    if config.otlp_endpoint is not None:
        from openbei.server.trace import check

        check(config)
    from openbei.server.listen import settled

    config = settled(config)
    for one in engines:
        _note_artifact(one.model_id)
    # A KeyboardInterrupt could come in the middle of an import, and two threads do many: the next would wait for ever.
    with _ended_by(signal.SIGINT):
        if config.frontends:
            _serve_processes(engines, config, configure, started_s)
        else:
            _serve_here(engines, config, configure, started_s)


def _note_artifact(model: str | None) -> None:
    """Note that an artifact is used."""
    folder = Path(model).expanduser() if model else None
    if folder is not None and (folder / "manifest.json").exists():
        from openbei.weights.store import note_use

        note_use(folder)


def _serve_here(
    engines: Sequence[EngineConfig], config: ServerConfig, configure: "Configure", started_s: float
) -> None:
    checkpoints = [_load(one) for one in engines]

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
    from openbei.server.processes import EngineAt, Plan
    from openbei.server.supervisor import supervise

    def on_ready(url: str, *engines_at: EngineAt) -> None:
        processes = {
            "processes": f"1 for {'each' if len(engines) > 1 else 'the'} model, "
            f"{config.frontends} for HTTP and tokenizing"
        }
        facts = {at.name: at.facts | processes for at in engines_at}
        _print_ready(Ready(url, facts, engines_at[0].served.info.kind, time.monotonic() - started_s), config)

    plan = Plan(engines[0], config, partial(logs.start, config.json_output), served_facts, others=tuple(engines[1:]))
    supervise(plan, on_ready, configure)


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


def _load(config: EngineConfig) -> "Checkpoint":
    from openbei.engine.start import load_options
    from openbei.weights.load import load

    return load(config.model_id, load_options(config))


def _settle_models(ctx: click.Context, values: dict[str, Any]) -> tuple[list[EngineConfig], ServerConfig]:
    """[NAME=]MODEL, none or one or several, and --model-id -> an EngineConfig for each, and the server's."""
    words = values.pop("models")
    if len(words) > 1:
        if ctx.get_parameter_source("model_id") is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"MODEL is {words[0]} and --model-id is {values['model_id']}: give one of them", ctx)
        return settle(ctx.meta[META], words)
    name, values["model"] = split(words[0]) if words else (None, None)
    _settle_model(ctx, values)
    if name is not None and values["served_model_name"] not in (None, name):
        raise click.UsageError(f"{words[0]} has a name, and --served-model-name is {values['served_model_name']}", ctx)
    values["served_model_name"] = name or values["served_model_name"]
    return [EngineConfig(**pick(EngineConfig, values))], ServerConfig(**pick(ServerConfig, values))


def _settle_model(ctx: click.Context, values: dict[str, Any]) -> None:
    """MODEL and --model-id are two ways of saying the same; the environment's MODEL_ID gives way to both."""
    model = values.pop("model", None)
    if model is None:
        return
    by_flag = ctx.get_parameter_source("model_id") is ParameterSource.COMMANDLINE
    if by_flag and values["model_id"] != model:
        raise click.UsageError(f"MODEL is {model} and --model-id is {values['model_id']}: give one of them", ctx)
    values["model_id"] = model


def _settle_tei(values: dict[str, Any]) -> None:
    for name, (_, instead) in IGNORED.items():
        if values.pop(name.removeprefix("--").replace("-", "_")) is not None:
            click.echo(f"note: {name} is ignored: {instead}", err=True)
    token = values.pop("hf_api_token")
    if token is not None:
        click.echo("note: --hf-api-token is the old name of --hf-token", err=True)
        values["hf_token"] = values["hf_token"] or token


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
    checkpoint = _load(config)

    from openbei.engine.start import start

    with start(checkpoint, config) as engine:
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
@config_options(EngineConfig, exclude=[item.name for item in fields(EngineConfig) if item.name not in LOADING_ONLY])
@click.pass_context
def info(ctx: click.Context, /, as_json: bool, **values: Any) -> None:
    """Tell what openbei understands of MODEL, or why it refuses it; MODEL as for serve."""
    _settle_model(ctx, values)
    config = EngineConfig(**pick(EngineConfig, values))
    checkpoint = _load(config)

    from openbei.describe import checkpoint_facts, precision_reason, table
    from openbei.engine.cpu import choose_dtype

    dtype = choose_dtype(config.dtype)
    facts = checkpoint_facts(checkpoint)
    facts |= {"precision": dtype, "precision_reason": precision_reason(config.dtype, dtype)}
    click.echo(orjson.dumps(facts) if as_json else table(facts))


@main.command(cls=BuildCommand)
@click.argument("model", required=False)
@click.option("-o", "--out", type=click.Path(file_okay=False), help="Folder of the artifact; in the store if not set")
@click.option("--token-file", type=click.Path(exists=True, dir_okay=False), help="File with the token for the hub")
@click.option(
    "--source-token",
    type=Secret(),
    metavar="***",
    envvar="SOURCE_TOKEN",
    show_envvar=True,
    help="Bearer token for the web server of an https:// MODEL; no other token is sent there, nor this one elsewhere",
)
@click.option("--store-limit", type=click.INT, help="Bytes in the store; what was not used for longest is removed")
@click.option("--progress/--no-progress", default=None, help="A count on stderr; only on a terminal if not set")
@config_options(EngineConfig, exclude=[item.name for item in fields(EngineConfig) if item.name not in BUILDING_ONLY])
@click.pass_context
def build(ctx: click.Context, /, **values: Any) -> None:
    """Build MODEL into an artifact, a folder that bei serve starts from without a network, and print that folder.

    MODEL is a folder, a hub id (owner/name, or owner/name@revision), https://..., s3://..., gs://... or az://...; or an
    artifact in one of these places, which is copied and verified; or a deployment, whose config.yaml goes into the
    artifact and is how it is served. The same artifact is not built twice.
    """
    _settle_model(ctx, values)
    config = EngineConfig(**pick(EngineConfig, values))

    from openbei.engine.start import load_options
    from openbei.progress import ByteProgress
    from openbei.weights.build import Wanted, Watch
    from openbei.weights.build import build as build_artifact
    from openbei.weights.store import shrink

    loading = load_options(config)
    wanted = Wanted(
        model=config.model_id,
        revision=config.revision,
        out=Path(values["out"]) if values["out"] else None,
        dtype=config.dtype,
        pooling=loading.pooling,
        token=Path(values["token_file"]).read_text().strip() if values["token_file"] else config.hf_token,
        source_token=values["source_token"],
        cache_dir=loading.cache_dir,
        deployment=ctx.meta[DEPLOYMENT].read_bytes() if DEPLOYMENT in ctx.meta else None,
    )
    progress = ByteProgress(sys.stderr.isatty() if values["progress"] is None else values["progress"])

    def on_phase(_: "Phase", text: str) -> None:
        click.echo(text, err=True)

    try:
        built = build_artifact(wanted, _examine, Watch(on_phase, progress.add))
    finally:
        progress.close()
    if values["store_limit"] is not None:
        for entry in shrink(values["store_limit"], keep=built.folder):
            click.echo(f"removed {entry.folder.name} ({entry.manifest.source}) from the store", err=True)
    click.echo("built" if built.new else "there already, nothing was done", err=True)
    click.echo(built.folder)


def _examine(checkpoint: "Checkpoint") -> "Examined":
    from openbei.describe import checkpoint_facts
    from openbei.engine.probe import check_weights, make_probes
    from openbei.weights.build import Examined

    facts = checkpoint_facts(checkpoint)
    del facts["folder"], facts["model"], facts["revision"]  # the manifest says where it came from
    if checkpoint.artifact is None:
        return Examined(facts, make_probes(checkpoint))
    check_weights(checkpoint)
    return Examined(facts, checkpoint.artifact.probes)


@main.command()
@click.argument("artifact", type=click.Path(exists=True, file_okay=False))
def verify(artifact: str) -> None:
    """Check every byte of ARTIFACT, a folder that bei build made, against its manifest."""
    from openbei.weights.manifest import check_files, read_manifest

    manifest = read_manifest(Path(artifact))
    if manifest is None:
        raise ConfigError(f"{artifact} has no manifest.json, so it is no artifact: bei build makes one")
    check_files(Path(artifact), manifest, full=True)
    click.echo(f"{artifact} is whole")


@main.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON")
def list_artifacts(as_json: bool) -> None:
    """List the artifacts of the store, the last used first. OPENBEI_HOME says where the store is."""
    from openbei.describe import artifact_facts, columns
    from openbei.weights.store import list_store

    facts = [artifact_facts(entry) for entry in list_store()]
    click.echo(orjson.dumps(facts) if as_json else columns(facts))


@main.command("rm")
@click.argument("ids", nargs=-1)
@click.option("--keep-bytes", type=click.INT, help="Remove what was not used for longest until no more bytes are left")
def remove_artifacts(ids: tuple[str, ...], keep_bytes: int | None) -> None:
    """Remove the artifacts of the store whose IDS these are, or begin so; bei ls shows them."""
    if not ids and keep_bytes is None:
        raise click.UsageError("say what to remove: ids, or --keep-bytes")

    from openbei.weights.store import find, remove, shrink, sweep

    removed = [find(one) for one in ids]
    for entry in removed:
        remove(entry)
    if keep_bytes is not None:
        removed += shrink(keep_bytes)
    num_bytes = sweep()
    for entry in removed:
        click.echo(f"removed {entry.folder.name} ({entry.manifest.source})")
    if num_bytes:
        click.echo(f"removed {num_bytes:,} bytes of builds that were not finished")


if __name__ == "__main__":
    main()
