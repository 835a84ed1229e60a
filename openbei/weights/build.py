"""MODEL -> an artifact: pin it, fetch it, copy or convert its files, try it, and only then give it its name.

Everything happens in a hidden folder beside the target; its manifest is written last, and one rename makes it the
artifact. So a build that is killed leaves nothing that looks finished, and the next one begins by clearing up.
Owns that order; never runs a model itself: `examine` does.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from openbei.errors import ConfigError
from openbei.weights.artifact_files import copy_artifact, copy_model, full_disk_explained, sync
from openbei.weights.checkpoint import Checkpoint
from openbei.weights.convert import TARGETS, conversion
from openbei.weights.load import read, read_network
from openbei.weights.manifest import DEPLOYMENT, Manifest, OnBytes, Probe, check_files, read_manifest, write_manifest
from openbei.weights.pin import Pinned, Wanted, pin
from openbei.weights.remote import hide_secrets
from openbei.weights.repo import Source
from openbei.weights.source import is_url
from openbei.weights.store import artifacts_folder, list_store, lock_of, locked

Phase = Literal["pin", "fetch", "copy", "try", "write", "name"]


class Examined(NamedTuple):
    """What trying a model gave: what was understood of it, and its self-check."""

    model: dict[str, Any]
    probes: tuple[Probe, ...]


Examine = Callable[[Checkpoint], Examined]


@dataclass(frozen=True, slots=True)
class Watch:
    """Who is told how a build goes. on_phase: before each, with a sentence. on_bytes: of fetching and copying."""

    on_phase: Callable[[Phase, str], None] = lambda _phase, _text: None
    on_bytes: OnBytes = lambda _: None


class Built(NamedTuple):
    """The artifact. new: False where it was there already."""

    folder: Path
    manifest: Manifest
    new: bool


def build(wanted: Wanted, examine: Examine, watch: Watch | None = None) -> Built:
    """A model -> its artifact; nothing is done where the same is there already.

    Raises ModelNotFound, UnsupportedModel, WeightsError, ConfigError, or OSError (a disk that is full, say).
    """
    watch, wanted = watch or Watch(), replace(wanted, dtype=TARGETS.get(wanted.dtype, wanted.dtype))
    watch.on_phase("pin", f"looking for {_shown(wanted.model)}")
    pinned = pin(wanted, watch.on_bytes)
    place = (wanted.out or artifacts_folder() / pinned.draft.id).absolute()
    with locked(lock_of(place)):
        if (there := _there(wanted.out, pinned)) is not None:
            check_files(*there, full=False)
            return Built(*there, new=False)
        stage = place.with_name(f".{place.name}.part")
        shutil.rmtree(stage, ignore_errors=True)
        with full_disk_explained(stage):
            stage.mkdir(parents=True)
            try:
                return _build(wanted, pinned, stage, examine, watch)
            finally:
                shutil.rmtree(stage, ignore_errors=True)


def _there(out: Path | None, pinned: Pinned) -> tuple[Path, Manifest] | None:
    """The artifact that is wanted, if it is there. Raises ConfigError if something else is in its place."""
    if out is None:
        entries = (entry for entry in list_store() if pinned.is_built_as(entry.manifest))
        return next(((entry.folder, entry.manifest) for entry in entries), None)
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    manifest = read_manifest(out) if out.is_dir() else None
    if manifest is None or not pinned.is_built_as(manifest):
        what = f"{manifest.source} at {manifest.revision}" if manifest else "something that is no artifact"
        raise ConfigError(f"{out} holds {what}, not what is to be built: remove it, or give another --out")
    return out, manifest


def _build(wanted: Wanted, pinned: Pinned, stage: Path, examine: Examine, watch: Watch) -> Built:
    watch.on_phase("fetch", f"fetching {pinned.shown}")
    with pinned.bring() as source:
        watch.on_phase("copy", "copying and hashing its files")
        if wanted.deployment is not None:
            (stage / DEPLOYMENT).write_bytes(wanted.deployment)
        manifest = (_adopted if pinned.is_artifact else _made)(wanted, pinned.draft, source, stage, watch.on_bytes)
        watch.on_phase("try", "trying it")
        checkpoint = read(Source(manifest.source, manifest.revision, stage), manifest.pooling, manifest.probes)
        examined = examine(replace(checkpoint, artifact=manifest if pinned.is_artifact else None))
        if not pinned.is_artifact:
            manifest = replace(manifest, model=examined.model, probes=examined.probes)
        watch.on_phase("write", "writing its manifest")
        write_manifest(stage, manifest)
        sync(*stage.rglob("*"), stage)
        watch.on_phase("name", "giving it its name")
        return _name(wanted.out, stage, manifest)


def _made(wanted: Wanted, draft: Manifest, source: Path, stage: Path, on_bytes: OnBytes) -> Manifest:
    """A model -> the files of an artifact, and a manifest that knows them."""
    found, target = Source(draft.source, draft.revision, source), TARGETS.get(wanted.dtype)
    converted = None if target is None else conversion(read_network(found, wanted.pooling), target)
    return replace(draft, files=copy_model(source, stage, converted, on_bytes))


def _adopted(wanted: Wanted, given: Manifest, source: Path, stage: Path, on_bytes: OnBytes) -> Manifest:
    """An artifact -> a copy of it, every file as its manifest says."""
    if (wanted.dtype, wanted.pooling) not in (("auto", None), (given.dtype, given.pooling)):
        raise ConfigError(f"{given.source} is an artifact already, built for dtype {given.dtype} and its own pooling")
    copy_artifact(source, stage, given, on_bytes)
    check_files(stage, given, full=True)
    return given


def _name(out: Path | None, stage: Path, manifest: Manifest) -> Built:
    target = out or artifacts_folder() / manifest.id
    if out is None and read_manifest(target) is not None:
        return Built(target, manifest, new=False)  # another name of the same files
    stage.rename(target)  # over an empty folder, if there is one
    sync(target.parent)
    return Built(target, manifest, new=True)


def _shown(model: str | None) -> str:
    if model is None:
        return "the embedded model"
    return hide_secrets(model) if is_url(model) else model
