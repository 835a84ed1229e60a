"""What is wanted -> exactly what that is now: the commit of a hub, the state of a URL's files, the hash of a folder's.

Owns the choice between hub, URL and folder, and what makes two builds the same; never touches an artifact. How each
place is read is source_hub.py's, source.py's and repo.py's.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from openbei.config import DType
from openbei.errors import ConfigError
from openbei.weights import source_hub
from openbei.weights.artifact_files import state_of_folder
from openbei.weights.manifest import DEPLOYMENT, NAME, FileFact, Manifest, OnBytes, parse_manifest, read_manifest
from openbei.weights.modules import PoolingChoice
from openbei.weights.remote import Patience
from openbei.weights.repo import HubOptions, locate
from openbei.weights.source import fetch, is_url, list_remote, open_remote, read_all, state_of
from openbei.weights.store import fetched_folder, lock_of, locked


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


class Pinned(NamedTuple):
    """What is to be built, exactly.

    shown: for people. draft: the manifest of what is an artifact already, else one that has no file of the model yet;
    in both the deployment's. bring: fetches it, if need be -> its folder, which stays for as long as the block.
    """

    shown: str
    draft: Manifest
    is_artifact: bool
    bring: Callable[[], AbstractContextManager[Path]]

    def is_built_as(self, manifest: Manifest) -> bool:
        """Whether an artifact of this manifest is what is to be built."""
        if self.is_artifact:
            return manifest.id == self.draft.id
        deployed = {name: fact for name, fact in manifest.files.items() if name == DEPLOYMENT}
        return manifest.openbei == self.draft.openbei and replace(manifest, files=deployed).id == self.draft.id


def pin(wanted: Wanted, on_bytes: OnBytes) -> Pinned:
    """What is wanted -> what is to be built. on_bytes: of fetching. Raises ModelNotFound, ModelError, ConfigError."""
    pinned = _pin(wanted, on_bytes)
    if wanted.deployment is None:
        return pinned
    deployed = {DEPLOYMENT: FileFact(len(wanted.deployment), hashlib.sha256(wanted.deployment).hexdigest())}
    return pinned._replace(draft=replace(pinned.draft, files=pinned.draft.files | deployed))


def _pin(wanted: Wanted, on_bytes: OnBytes) -> Pinned:
    if wanted.model is None or Path(wanted.model).expanduser().exists():
        return _pin_folder(wanted)
    if is_url(wanted.model):
        return _pin_url(wanted, wanted.model, on_bytes)
    model, _, suffix = wanted.model.partition("@")
    return _pin_hub(wanted, model, suffix) if source_hub.is_hub_id(model) else _pin_folder(wanted)  # says what is wrong


def _pin_folder(wanted: Wanted) -> Pinned:
    source = locate(wanted.model)
    given = read_manifest(source.folder)
    draft = given or _draft(wanted, source.model_id, state_of_folder(source.folder))
    return Pinned(source.model_id, draft, given is not None, lambda: nullcontext(source.folder))


def _pin_hub(wanted: Wanted, model: str, suffix: str) -> Pinned:
    if suffix and wanted.revision not in (None, suffix):
        raise ConfigError(f"MODEL names revision {suffix} and --revision {wanted.revision}: give one of them")
    hub = HubOptions(revision=suffix or wanted.revision, token=wanted.token, cache_dir=wanted.cache_dir)
    commit = source_hub.pin(model, hub, wanted.patience)
    hub = replace(hub, revision=commit)
    draft = _draft(wanted, model, commit)
    return Pinned(model, draft, False, lambda: nullcontext(source_hub.bring(model, hub, wanted.patience)))


def _pin_url(wanted: Wanted, url: str, on_bytes: OnBytes) -> Pinned:
    remote = open_remote(url, wanted.source_token, wanted.patience)
    files = list_remote(remote, wanted.patience)
    state = state_of(files)
    folder = fetched_folder(hashlib.sha256(f"{remote.shown} {state}".encode()).hexdigest()[:32])

    @contextmanager
    def bring() -> Iterator[Path]:
        with locked(lock_of(folder)):
            fetch(remote, files, folder, wanted.patience, on_bytes)
            yield folder
            shutil.rmtree(folder)

    if NAME not in files:
        return Pinned(remote.shown, _draft(wanted, remote.shown, state), False, bring)
    given = parse_manifest(read_all(remote, NAME, wanted.patience), f"{remote.shown}/{NAME}")
    return Pinned(remote.shown, given, True, bring)


def _draft(wanted: Wanted, source: str, revision: str) -> Manifest:
    return Manifest(
        openbei=version("openbei"),
        source=source,
        revision=revision,
        dtype=wanted.dtype,
        pooling=wanted.pooling,
        files={},
    )
