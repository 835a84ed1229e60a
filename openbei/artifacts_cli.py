"""`bei build`, `bei verify`, `bei ls` and `bei rm`: artifacts, and the store that keeps them.

Owns what a person types and reads of them; never touches tensors.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import orjson

from openbei.config import EngineConfig
from openbei.deployments_cli import DEPLOYMENT, NOT_OF_LOADING, BuildCommand
from openbei.errors import ConfigError
from openbei.flags import Secret, config_options, pick, settle_model

if TYPE_CHECKING:
    from openbei.weights.build import Examined, Phase
    from openbei.weights.checkpoint import Checkpoint


@click.command(cls=BuildCommand)
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
@click.option(
    "--store-limit", type=click.IntRange(0), help="Bytes in the store; what was not used for longest is removed"
)
@click.option("--progress/--no-progress", default=None, help="A count on stderr; only on a terminal if not set")
@config_options(EngineConfig, exclude=NOT_OF_LOADING)
@click.pass_context
def build(ctx: click.Context, /, **values: Any) -> None:
    """Build MODEL into an artifact, a folder that bei serve starts from without a network, and print that folder.

    MODEL is a folder, a hub id (owner/name, or owner/name@revision), https://..., s3://..., gs://... or az://...; or an
    artifact in one of these places, which is copied and verified; or a deployment, whose config.yaml goes into the
    artifact and is how it is served. The same artifact is not built twice.
    """
    settle_model(ctx, values)
    config = EngineConfig(**pick(EngineConfig, values))

    from openbei.engine.start import load_options
    from openbei.progress import ByteProgress
    from openbei.weights.build import Watch
    from openbei.weights.build import build as build_artifact
    from openbei.weights.pin import Wanted
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


@click.command()
@click.argument("artifact", type=click.Path(exists=True, file_okay=False))
def verify(artifact: str) -> None:
    """Check every byte of ARTIFACT, a folder that bei build made, against its manifest."""
    from openbei.weights.manifest import check_files, read_manifest

    manifest = read_manifest(Path(artifact))
    if manifest is None:
        raise ConfigError(f"{artifact} has no manifest.json, so it is no artifact: bei build makes one")
    check_files(Path(artifact), manifest, full=True)
    click.echo(f"{artifact} is whole")


@click.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON")
def list_artifacts(as_json: bool) -> None:
    """List the artifacts of the store, the last used first. OPENBEI_HOME says where the store is."""
    from openbei.describe import artifact_facts, columns
    from openbei.weights.store import list_store

    facts = [artifact_facts(entry) for entry in list_store()]
    click.echo(orjson.dumps(facts) if as_json else columns(facts))


@click.command("rm")
@click.argument("ids", nargs=-1)
@click.option(
    "--keep-bytes", type=click.IntRange(0), help="Remove what was not used for longest until no more bytes are left"
)
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
