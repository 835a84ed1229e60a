"""One module of sentence-transformers: the order of modules.json, and what each module's own config asks for.

Owns the config of a Transformer, Pooling, Dense or Normalize module; never says which modules fit together, and never
reads weights. What a file asks for and openbei does not do exactly is refused by name. The rules are those of
sentence-transformers 6.2 (base/modules/{transformer,dense}.py, sentence_transformer/modules/pooling.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbei.errors import ModelError, UnsupportedModel
from openbei.model.spec import Activation, Pooling
from openbei.weights.files import read_json, read_object

POOLINGS: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last_token", "max": "max"}

# In the order in which sentence-transformers joins them.
_OLD_POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}

_TORCH_ACTIVATIONS: dict[str, Activation] = {
    "Tanh": "tanh",
    "Identity": "identity",
    "GELU": "gelu",
    "ReLU": "relu",
    "SiLU": "silu",
    "Sigmoid": "sigmoid",
}

_TEXT_CONFIGS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

# What a Transformer module may say of its output, before pooling and in a CrossEncoder; else it gives another tensor.
STATES: dict[str, Any] = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}

WORDS: dict[str, Any] = {"transformer_task": "fill-mask", "module_output_name": "token_embeddings"}

SCORES: dict[str, Any] = {"transformer_task": "sequence-classification", "module_output_name": "scores"}

LOGITS: dict[str, Any] = {"transformer_task": "text-generation", "module_output_name": "causal_logits"}


@dataclass(frozen=True, slots=True)
class DenseModule:
    """One Dense module: its folder's name and what its config.json says."""

    path: str
    in_features: int
    out_features: int
    bias: bool
    activation: Activation


def entries(file: Path) -> tuple[list[str], list[str]]:
    """modules.json -> the last dotted part of each type, and each folder; older and newer files differ in the rest."""
    try:
        entries = sorted(read_json(file), key=lambda entry: entry["idx"])
        return [str(entry["type"]).rpartition(".")[2] for entry in entries], [str(entry["path"]) for entry in entries]
    except (KeyError, TypeError) as error:
        raise ModelError(f"{file} must be a list of objects with idx, path and type: {error!r}") from error


def text_config(body: Path) -> dict[str, Any]:
    """The folder of a network -> what sentence-transformers' Transformer module says of itself, {} if nothing."""
    for name in _TEXT_CONFIGS:
        if config := read_object(body / name, optional=True):
            return config
    return {}


def check_output(body: Path, wanted: Mapping[str, Any], output: str, expands: bool = False) -> None:
    """Raise UnsupportedModel if a Transformer module gives anything but what is wanted, from the network's output.

    expands: it may fill queries up (see late.py).
    """
    config = text_config(body)
    for key, value in (wanted if expands else {**wanted, "query_expansion": None}).items():
        if config.get(key, value) != value:
            raise UnsupportedModel(f"sentence_bert_config.json has {key} {config[key]!r}; supported: {value!r}")
    plain = {"method": "forward", "method_output_name": output}
    text = (config.get("modality_config") or {}).get("text", plain)
    if text != plain:
        raise UnsupportedModel(f"sentence_bert_config.json takes {text!r} from the network; supported: {plain!r}")


def check_keys(folder: Path, of: str = "sentence_embedding", by_default: str = "sentence_embedding") -> dict[str, Any]:
    """A Dense or Normalize module's config, refused if it works on anything but the pooled vector, or what is given.

    by_default: what it works on where the config is silent.
    """
    config = read_object(folder / "config.json", optional=True)
    source = config.get("module_input_name") or by_default
    target = config.get("module_output_name") or source
    for key, name in (("module_input_name", source), ("module_output_name", target)):
        if name != of:
            raise UnsupportedModel(f"{folder.name}/config.json has {key} {name!r}; supported: {of}")
    return config


def read_pooling(folder: Path, path: str, wanted: Pooling | None) -> Pooling:
    """A Pooling module's config -> its pooling, or the wanted one. Raises UnsupportedModel."""
    config = read_object(folder / path / "config.json")
    if not config.get("include_prompt", True):
        raise UnsupportedModel(f"{path}/config.json leaves prompts out of the pooling (include_prompt false)")
    if wanted is not None:
        return wanted
    modes = _pooling_modes(config)
    if len(modes) > 1 or modes[0] not in POOLINGS:
        raise UnsupportedModel(
            f"{path}/config.json asks for pooling {' + '.join(modes)}; supported: one of {', '.join(POOLINGS)}"
        )
    return POOLINGS[modes[0]]


def read_dense(folder: Path, path: str, of: str = "sentence_embedding") -> DenseModule:
    """A Dense module's config -> DenseModule. Raises UnsupportedModel, ModelError."""
    config = check_keys(folder / path, of, by_default=of)
    if config.get("use_residual"):
        raise UnsupportedModel(f"{path}/config.json asks for use_residual, which is not supported")
    for key in ("in_features", "out_features"):
        if type(config.get(key)) is not int:
            raise ModelError(f"{path}/config.json has {key} {config.get(key)!r}; it must be an integer")
    return DenseModule(
        path=path,
        in_features=config["in_features"],
        out_features=config["out_features"],
        bias=config.get("bias", True),
        activation=_activation(path, config.get("activation_function", "")),
    )


def _pooling_modes(config: Mapping[str, Any]) -> list[str]:
    mode = config.get("pooling_mode")
    if mode is None:
        mode = [name for key, name in _OLD_POOLINGS.items() if config.get(key)]
    return [mode] if isinstance(mode, str) else list(mode) or ["mean"]


def _activation(path: str, name: str) -> Activation:
    """sentence-transformers trusts torch's own activations and takes Tanh for every other, or none."""
    if not name.startswith("torch."):
        return "tanh"
    activation = _TORCH_ACTIVATIONS.get(name.rpartition(".")[2])
    if activation is None:
        listed = ", ".join(_TORCH_ACTIVATIONS)
        raise UnsupportedModel(f"{path}/config.json has activation_function {name!r}; supported: {listed}")
    return activation
