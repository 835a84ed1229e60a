"""A hub's model -> the commit that a name stands for now, and its files, checked by the checksums that the hub gave.

Owns that a build asks the hub with patience and keeps to one commit; which files are fetched is repo.py's.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from openbei.errors import ModelNotFound, WeightsError
from openbei.weights.manifest import list_files, sha256_of
from openbei.weights.remote import TRANSIENT, Patience, Transient, patiently
from openbei.weights.repo import HubOptions, advice, locate

COMMIT = re.compile("[0-9a-f]{40}")
_SHA256 = re.compile("[0-9a-f]{64}")

T = TypeVar("T")


def is_hub_id(model: str) -> bool:
    """True of what can only be a hub's owner/name, for there is no such path."""
    path = Path(model).expanduser()
    local = path.exists() or path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1
    return bool(model) and not local


def pin(model: str, options: HubOptions, patience: Patience) -> str:
    """A hub id at a branch, tag or commit -> the commit. A commit is itself; offline, it is the one in the cache.

    Raises ModelNotFound.
    """
    if options.revision is not None and COMMIT.fullmatch(options.revision):
        return options.revision
    from huggingface_hub import HfApi, constants

    def ask() -> str:
        if constants.HF_HUB_OFFLINE:
            return str(locate(model, options).revision)
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=options.token)
        try:
            return str(api.model_info(model, revision=options.revision).sha)
        except Exception as error:
            raise ModelNotFound(advice(model, options, error)) from error

    return _patiently(ask, model, patience)


def bring(model: str, options: HubOptions, patience: Patience) -> Path:
    """A hub's model at a commit -> its folder in the cache, every file whole.

    The cache calls a file by the checksum that the hub gave with it, and that is what it is checked against. Raises
    ModelNotFound, WeightsError.
    """
    folder = _patiently(lambda: locate(model, options).folder, model, patience)
    for name, path in list_files(folder).items():
        if not _is_whole(path):
            raise WeightsError(
                f"{name} of {model} has not the checksum that the hub gave: remove {path.resolve()}, and build again"
            )
    return folder


def _is_whole(path: Path) -> bool:
    """True unless the file in the cache is named by a checksum and has another: sha256, or git's of small files."""
    name = path.resolve().name
    if _SHA256.fullmatch(name):
        return sha256_of(path) == name
    if COMMIT.fullmatch(name):
        data = path.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest() == name
    return True


def _patiently(action: Callable[[], T], model: str, patience: Patience) -> T:
    def attempt() -> T:
        try:
            return action()
        except ModelNotFound as error:
            if any(_may_pass(cause) for cause in _causes(error)):
                raise Transient(str(error)) from error
            raise

    return patiently(attempt, model, patience)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _may_pass(error: BaseException) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status in TRANSIENT or type(error).__module__.startswith("httpx")  # a connection that fails
