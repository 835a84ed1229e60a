"""MODEL -> an artifact: pin it, fetch it, copy or convert its files, try it, and only then give it its name.

Everything happens in a hidden folder beside the target; its manifest is written last, and one rename makes it the
artifact. So a build that is killed leaves nothing that looks finished, and the next one begins by clearing up.
Owns that order; never runs a model itself: `examine` does.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from openbei.config import DType
from openbei.errors import ConfigError, ModelError
from openbei.weights.checkpoint import Checkpoint
from openbei.weights.convert import TARGETS, Conversion, conversion
from openbei.weights.load import read, read_network
from openbei.weights.manifest import (
    DEPLOYMENT,
    NAME,
    FileFact,
    Manifest,
    OnBytes,
    Probe,
    check_files,
    list_files,
    parse_manifest,
    read_manifest,
    sha256_of,
    write_manifest,
)
from openbei.weights.modules import PoolingChoice
from openbei.weights.remote import Patience, hide_secrets
from openbei.weights.repo import HubOptions, Source, is_of_model, locate
from openbei.weights.source import fetch, is_url, list_remote, open_remote, read_all, state_of
from openbei.weights.source_hub import bring, is_hub_id, pin
from openbei.weights.store import artifacts_folder, fetched_folder, list_store, lock_of, locked
from openbei.weights.tensors import read_tensors, read_torch_file, write_safetensors

Phase = Literal["pin", "fetch", "copy", "try", "write", "name"]
SAFE = (".json", ".jinja", ".safetensors", ".metadata")  # nothing that anyone could run
SPARE_BYTES = 64_000_000
_CHUNK_BYTES = 1 << 20


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to build. model: as for serve, or a URL. out: the artifact's folder; None puts it in the store.

    token: for the hub. source_token: for the web server of a URL; neither goes anywhere else. dtype: what the weights
    are stored in, see convert.py; auto and float32 leave them as they are. dtype, pooling: what serves the artifact
    where nothing else is said. deployment: the config.yaml that is kept beside the model, and says how to serve it.
    """

    model: str | None
    revision: str | None = None
    out: Path | None = None
    dtype: DType = "auto"
    pooling: PoolingChoice | None = None
    token: str | None = None
    source_token: str | None = None
    cache_dir: Path | None = None
    patience: Patience = field(default_factory=Patience)
    deployment: bytes | None = None


class Built(NamedTuple):
    """The artifact. new: False where it was there already."""

    folder: Path
    manifest: Manifest
    new: bool


class _Pinned(NamedTuple):
    """What is to be built, exactly. shown: for people and the manifest. bring: fetches it, if need be -> its folder,
    which stays for as long as the block. given: the manifest, if it is an artifact already.
    """

    shown: str
    revision: str
    bring: Callable[[], AbstractContextManager[Path]]
    given: Manifest | None = None


def build(wanted: Wanted, examine: Examine, watch: Watch | None = None) -> Built:
    """A model -> its artifact; nothing is done where the same is there already.

    Raises ModelNotFound, UnsupportedModel, WeightsError, ConfigError, or OSError (a disk that is full, say).
    """
    watch, wanted = watch or Watch(), replace(wanted, dtype=TARGETS.get(wanted.dtype, wanted.dtype))
    watch.on_phase("pin", f"looking for {_shown(wanted.model)}")
    pinned = _pin(wanted, watch)
    if pinned.given is not None:
        given = replace(pinned.given, files=pinned.given.files | _deployed(wanted))
        pinned = pinned._replace(given=given)
    place = (wanted.out or artifacts_folder() / _recipe(wanted, pinned)).absolute()
    with locked(lock_of(place)):
        if (there := _there(wanted, pinned)) is not None:
            return there
        stage = place.with_name(f".{place.name}.part")
        shutil.rmtree(stage, ignore_errors=True)
        with _explained(stage):
            stage.mkdir(parents=True)
            try:
                return _build(wanted, pinned, stage, examine, watch)
            finally:
                shutil.rmtree(stage, ignore_errors=True)


def _build(wanted: Wanted, pinned: _Pinned, stage: Path, examine: Examine, watch: Watch) -> Built:
    watch.on_phase("fetch", f"fetching {pinned.shown}")
    with pinned.bring() as source:
        watch.on_phase("copy", "copying and hashing its files")
        given = pinned.given
        if given is not None:
            manifest = _adopt(wanted, source, stage, given, watch.on_bytes)
        else:
            files = _copy(source, stage, _conversion(wanted, pinned, source), watch.on_bytes)
            manifest = Manifest(
                openbei=version("openbei"),
                source=pinned.shown,
                revision=pinned.revision,
                dtype=wanted.dtype,
                pooling=wanted.pooling,
                files=files | _deployed(wanted, stage),
            )
        watch.on_phase("try", "trying it")
        found = Source(manifest.source, manifest.revision, stage)
        checkpoint = read(found, manifest.pooling, given.probes if given else ())
        examined = examine(replace(checkpoint, artifact=given))
        if given is None:
            manifest = replace(manifest, model=examined.model, probes=examined.probes)
        watch.on_phase("write", "writing its manifest")
        write_manifest(stage, manifest)
        _sync(*stage.rglob("*"), stage)
        watch.on_phase("name", "giving it its name")
        return _name(wanted, stage, manifest)


def _name(wanted: Wanted, stage: Path, manifest: Manifest) -> Built:
    target = wanted.out or artifacts_folder() / manifest.id
    if wanted.out is None and read_manifest(target) is not None:
        return Built(target, manifest, new=False)  # another name of the same files
    stage.rename(target)  # over an empty folder, if there is one
    _sync(target.parent)
    return Built(target, manifest, new=True)


def _there(wanted: Wanted, pinned: _Pinned) -> Built | None:
    """The artifact that is wanted, if it is there and whole. Raises ConfigError if something else is in its place."""
    if wanted.out is None:
        entries = (entry for entry in list_store() if _is_same(entry.manifest, wanted, pinned))
        found = next(((entry.folder, entry.manifest) for entry in entries), None)
    elif not wanted.out.exists() or (wanted.out.is_dir() and not any(wanted.out.iterdir())):
        found = None
    else:
        manifest = read_manifest(wanted.out) if wanted.out.is_dir() else None
        if manifest is None or not _is_same(manifest, wanted, pinned):
            what = f"{manifest.source} at {manifest.revision}" if manifest else "something that is no artifact"
            raise ConfigError(f"{wanted.out} holds {what}, not what is to be built: remove it, or give another --out")
        found = wanted.out, manifest
    if found is None:
        return None
    check_files(*found, full=False)
    return Built(*found, new=False)


def _is_same(manifest: Manifest, wanted: Wanted, pinned: _Pinned) -> bool:
    if pinned.given is not None:
        return manifest.id == pinned.given.id
    same = (manifest.source, manifest.revision) == (pinned.shown, pinned.revision)
    asked = (wanted.dtype, wanted.pooling, version("openbei"), _deployed(wanted).get(DEPLOYMENT))
    has = (manifest.dtype, manifest.pooling, manifest.openbei, manifest.files.get(DEPLOYMENT))
    return same and has == asked


def _recipe(wanted: Wanted, pinned: _Pinned) -> str:
    text = f"{pinned.shown} {pinned.revision} {wanted.dtype} {wanted.pooling} {_deployed(wanted)}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _pin(wanted: Wanted, watch: Watch) -> _Pinned:
    if wanted.model is None or Path(wanted.model).expanduser().exists():
        return _pin_folder(locate(wanted.model))
    if is_url(wanted.model):
        return _pin_url(wanted.model, wanted, watch)
    model, _, suffix = wanted.model.partition("@")
    if not is_hub_id(model):
        return _pin_folder(locate(wanted.model))  # which says what is wrong with it
    if suffix and wanted.revision not in (None, suffix):
        raise ConfigError(f"MODEL names revision {suffix} and --revision {wanted.revision}: give one of them")
    hub = HubOptions(revision=suffix or wanted.revision, token=wanted.token, cache_dir=wanted.cache_dir)
    commit = pin(model, hub, wanted.patience)
    hub = replace(hub, revision=commit)
    return _Pinned(model, commit, lambda: nullcontext(bring(model, hub, wanted.patience)))


def _pin_folder(source: Source) -> _Pinned:
    given = read_manifest(source.folder)
    revision = given.id if given else _state_of_folder(source)
    return _Pinned(source.model_id, revision, lambda: nullcontext(source.folder), given)


def _pin_url(url: str, wanted: Wanted, watch: Watch) -> _Pinned:
    remote = open_remote(url, wanted.source_token, wanted.patience)
    files = list_remote(remote, wanted.patience)
    state = state_of(files)
    name = hashlib.sha256(f"{remote.shown} {state}".encode()).hexdigest()[:32]
    folder = fetched_folder(name)

    @contextmanager
    def bring_url() -> Iterator[Path]:
        with locked(lock_of(folder)):
            fetch(remote, files, folder, wanted.patience, watch.on_bytes)
            yield folder
            shutil.rmtree(folder)

    given = parse_manifest(read_all(remote, NAME, wanted.patience), f"{remote.shown}/{NAME}") if NAME in files else None
    return _Pinned(remote.shown, state, bring_url, given)


def _state_of_folder(source: Source) -> str:
    rows = "".join(f"{name} {sha256_of(path)}\n" for name, path in _chosen(source.folder).items())
    return hashlib.sha256(rows.encode()).hexdigest()


def _chosen(folder: Path) -> dict[str, Path]:
    """The files of a model's folder that are a model: by name, whatever else lies there."""
    return {name: path for name, path in list_files(folder).items() if is_of_model(name)}


def _conversion(wanted: Wanted, pinned: _Pinned, source: Path) -> Conversion | None:
    target = TARGETS.get(wanted.dtype)
    if target is None:
        return None
    return conversion(read_network(Source(pinned.shown, pinned.revision, source), wanted.pooling), target)


def _copy(source: Path, stage: Path, converted: Conversion | None, on_bytes: OnBytes) -> dict[str, FileFact]:
    """A model's folder -> the files of the artifact: those of SAFE kinds as they are, PyTorch's as safetensors.

    What is converted comes in the place of the files that it replaces.
    """
    chosen = _chosen(source)
    _check_room(stage, sum(path.stat().st_size for path in chosen.values()))
    files = {}
    if converted is not None:
        for target in converted.write(stage / converted.body.relative_to(source)):
            files[target.relative_to(stage).as_posix()] = FileFact(target.stat().st_size, sha256_of(target, on_bytes))
        chosen = {name: path for name, path in chosen.items() if not converted.replaces(path)}
    for name, path in chosen.items():
        if path.suffix in SAFE and not name.endswith(".bin.index.json"):
            files[name] = _copy_file(path, stage / name, on_bytes)
    for name, path in chosen.items():
        if path.suffix == ".pt":
            target = stage / Path(name).with_suffix(".safetensors")
            write_safetensors(target, read_torch_file(path))
            files[target.relative_to(stage).as_posix()] = FileFact(target.stat().st_size, sha256_of(target, on_bytes))
    pickled = {path.parent for path in chosen.values() if path.name.startswith("pytorch_model")}
    for folder in sorted(pickled):
        short = folder.relative_to(source)
        if not any(file.suffix == ".safetensors" for file in (stage / short).glob("model*")):
            target = stage / short / "model.safetensors"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_safetensors(target, read_tensors(folder))
            files[target.relative_to(stage).as_posix()] = FileFact(target.stat().st_size, sha256_of(target, on_bytes))
    return files


def _copy_file(path: Path, target: Path, on_bytes: OnBytes) -> FileFact:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file, target.open("wb") as out:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += out.write(chunk)
            on_bytes(len(chunk))
    return FileFact(size, digest.hexdigest())


def _deployed(wanted: Wanted, stage: Path | None = None) -> dict[str, FileFact]:
    """The file of the deployment, if it is one that is built; written to stage."""
    data = wanted.deployment
    if data is None:
        return {}
    if stage is not None:
        (stage / DEPLOYMENT).write_bytes(data)
    return {DEPLOYMENT: FileFact(len(data), hashlib.sha256(data).hexdigest())}


def _adopt(wanted: Wanted, source: Path, stage: Path, given: Manifest, on_bytes: OnBytes) -> Manifest:
    """An artifact -> a copy of it, every file as its manifest says."""
    if (wanted.dtype, wanted.pooling) not in (("auto", None), (given.dtype, given.pooling)):
        raise ConfigError(f"{given.source} is an artifact already, built for dtype {given.dtype} and its own pooling")
    _check_room(stage, given.size_bytes)
    for name in given.files:
        if (source / name).exists():
            _copy_file(source / name, stage / name, on_bytes)
    _deployed(wanted, stage)
    check_files(stage, given, full=True)
    return given


def _check_room(folder: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + SPARE_BYTES:
        raise ModelError(
            f"{folder.parent} has {free / 1e9:.2f} GB free, the artifact needs {(needed_bytes + SPARE_BYTES) / 1e9:.2f}"
            ": free some, or give another --out; bei ls and bei rm show and empty the store"
        )


@contextmanager
def _explained(stage: Path) -> Iterator[None]:
    """A disk that fills up meanwhile is an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ModelError(
            f"{stage.parent}: {error.strerror}; nothing was built: free some space, or give another --out"
        ) from error


def _sync(*paths: Path) -> None:
    """What is in files and folders is on the disk, and not only on its way there."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _shown(model: str | None) -> str:
    if model is None:
        return "the embedded model"
    return hide_secrets(model) if is_url(model) else model
