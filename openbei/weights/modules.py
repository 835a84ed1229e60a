"""sentence-transformers' files -> what follows the network: pooling, Dense, normalise; and the text side.

Owns modules.json, the modules' own configs, prompts and length limits; never reads weights. What the files ask for and
openbei does not do exactly is refused by name. The rules are those of sentence-transformers 6.2
(base/modules/{transformer,dense}.py, sentence_transformer/modules/pooling.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from openbei.errors import ModelError, UnsupportedModel
from openbei.model.spec import Activation, Pooling
from openbei.weights.checkpoint import TextSpec
from openbei.weights.files import read_json, read_object
from openbei.weights.text import (
    added_tokens,
    bert_normalizer,
    chat_template,
    edges,
    refuse_own_code,
    special_tokens,
    tokenizer_file,
)

PoolingChoice = Pooling | Literal["splade"]

POOLINGS: dict[str, Pooling] = {"cls": "cls", "mean": "mean", "lasttoken": "last_token", "max": "max"}
_EMBEDDERS = {"Pooling", "SpladePooling", "MultiVectorMask"}
_SPLADE_LOGS = {"relu": 1, "log1p_relu": 2}

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
_STATES: dict[str, Any] = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
_WORDS: dict[str, Any] = {"transformer_task": "fill-mask", "module_output_name": "token_embeddings"}
_SCORES: dict[str, Any] = {"transformer_task": "sequence-classification", "module_output_name": "scores"}
_LOGITS: dict[str, Any] = {"transformer_task": "text-generation", "module_output_name": "causal_logits"}
_NO_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True)
class DenseModule:
    """One Dense module: its folder's name and what its config.json says."""

    path: str
    in_features: int
    out_features: int
    bias: bool
    activation: Activation


@dataclass(frozen=True, slots=True)
class Modules:
    """What modules.json asks for. transformer: folder of the network, "" for the root. num_logs: see Model.

    pooling None: the Dense modules work on every token, whose vectors are the answer, but for skiplist in documents.
    max_document_tokens, max_query_tokens: limits of such a model; None for that of every text.
    """

    transformer: str
    pooling: Pooling | None
    dense: tuple[DenseModule, ...] = ()
    normalize: bool = True
    num_logs: int = 0
    skiplist: tuple[str, ...] = ()
    max_document_tokens: int | None = None
    max_query_tokens: int | None = None


class Outline(NamedTuple):
    """modules.json at a glance. transformer: folder of the network, "" for the root. pools: it has a pooling module.

    or is an embedder without one. logit_score: folder of its LogitScore module, if any. given: there is a modules.json.
    """

    transformer: str
    pools: bool
    logit_score: str | None = None
    given: bool = False


def read_modules(folder: Path, pooling: PoolingChoice | None = None) -> Modules:
    """A model's folder -> its Modules; pooling, if given, wins over the files.

    A folder without modules.json is a plain network, and served only if pooling is given; its vectors are normalised.
    SPLADE is another network than one that pools states: one is not made the other by pooling.
    Raises UnsupportedModel by the name of what is not done here.
    """
    if not (folder / "modules.json").exists():
        if pooling is None:
            raise UnsupportedModel(
                f"{folder} has no modules.json, so its pooling is unknown: "
                "give --pooling cls, mean, last-token or splade"
            )
        return Modules("", "max", num_logs=1) if pooling == "splade" else Modules("", pooling)
    kinds, paths = _entries(folder / "modules.json")
    is_splade = "SpladePooling" in kinds
    if pooling is not None and (pooling == "splade") != is_splade:
        raise UnsupportedModel(f"modules.json orders {', '.join(kinds)}, which --pooling {pooling} does not fit")
    if is_splade:
        return _splade(folder, kinds, paths)
    if "MultiVectorMask" in kinds and pooling is None:
        return _multi_vector(folder, kinds, paths)
    num_dense = kinds.count("Dense")
    _check_order(kinds, num_dense)
    _check_output(folder / paths[0], _STATES, "last_hidden_state")
    if "message" in (text_config(folder / paths[0]).get("modality_config") or {}):
        raise UnsupportedModel("sentence_bert_config.json embeds every text as a chat message, which is not supported")
    normalize = kinds[-1] == "Normalize"
    if normalize:
        _check_keys(folder / paths[-1])
    return Modules(
        transformer=paths[0],
        pooling=_pooling(folder, paths[1], None if pooling == "splade" else pooling),
        dense=tuple(_dense(folder, path) for path in paths[2 : 2 + num_dense]),
        normalize=normalize,
    )


def check_classifier(folder: Path) -> None:
    """Raise UnsupportedModel if a folder whose weights have a head asks for more modules than that (CrossEncoder)."""
    if not (folder / "modules.json").exists():
        return
    kinds, paths = _entries(folder / "modules.json")
    if kinds not in (["Transformer"], ["Transformer", "LogitScore"]):
        raise UnsupportedModel(
            f"modules.json orders {', '.join(kinds)} for a classifier; supported: Transformer, and LogitScore or none"
        )
    _check_output(folder / paths[0], _SCORES if len(kinds) == 1 else _LOGITS, "logits")


def read_outline(folder: Path) -> Outline:
    """A model's folder -> where its network lies and whether it is an embedder for sure."""
    if not (folder / "modules.json").exists():
        return Outline("", False)
    kinds, paths = _entries(folder / "modules.json")
    logit_score = paths[kinds.index("LogitScore")] if "LogitScore" in kinds else None
    return Outline(paths[0] if paths else "", bool(_EMBEDDERS & set(kinds)), logit_score, True)


def read_text(folder: Path, body: Path, limit: int) -> TextSpec:
    """A model's folder and its network's -> the text side. limit: rows of the position table that tokens can take.

    The longest input is max_seq_length of sentence_bert_config.json, else model_max_length of
    tokenizer_config.json, else limit, and never more than limit.
    """
    file = tokenizer_file(body)
    config, tokenizer = text_config(body), read_object(body / "tokenizer_config.json", optional=True)
    refuse_own_code(tokenizer)
    tokens = special_tokens(body, tokenizer)
    first, last = edges(tokenizer, tokens, read_object(body / "config.json", optional=True))
    return TextSpec(
        tokenizer_file=file,
        max_length=_max_length(config, tokenizer, limit),
        prompts=_prompts(folder),
        lower_case=bool(config.get("do_lower_case", False)),
        first=first,
        last=last,
        added_tokens=added_tokens(tokenizer),
        special_tokens=tokens,
        chat_template=chat_template(body, tokenizer),
        bert_normalizer=bert_normalizer(tokenizer),
        split_special_tokens=bool(tokenizer.get("split_special_tokens", False)),
    )


def _entries(file: Path) -> tuple[list[str], list[str]]:
    """modules.json -> the last dotted part of each type, and each folder; older and newer files differ in the rest."""
    try:
        entries = sorted(read_json(file), key=lambda entry: entry["idx"])
        return [str(entry["type"]).rpartition(".")[2] for entry in entries], [str(entry["path"]) for entry in entries]
    except (KeyError, TypeError) as error:
        raise ModelError(f"{file} must be a list of objects with idx, path and type: {error!r}") from error


def _check_order(kinds: Sequence[str], num_dense: int) -> None:
    known = {"Transformer", "Pooling", "Dense", "Normalize"}
    for kind in kinds:
        if kind not in known:
            raise UnsupportedModel(f"modules.json has a {kind} module; supported: {', '.join(sorted(known))}")
    served = ["Transformer", "Pooling", *["Dense"] * num_dense]
    if list(kinds) not in (served, [*served, "Normalize"]):
        raise UnsupportedModel(
            f"modules.json orders {', '.join(kinds)}; supported: Transformer, Pooling, any Dense, and Normalize or none"
        )


def _splade(folder: Path, kinds: Sequence[str], paths: Sequence[str]) -> Modules:
    """The two modules of a SPLADE model; the older one of the two kinds of network says by its name what it gives."""
    if list(kinds) not in (["Transformer", "SpladePooling"], ["MLMTransformer", "SpladePooling"]):
        raise UnsupportedModel(f"modules.json orders {', '.join(kinds)}; supported: Transformer, SpladePooling")
    task = text_config(folder / paths[0]).get("transformer_task")
    if kinds[0] == "Transformer" and task != "fill-mask":
        raise UnsupportedModel(f"sentence_bert_config.json has transformer_task {task!r}; supported: 'fill-mask'")
    _check_output(folder / paths[0], _WORDS, "logits")
    config = read_object(folder / paths[1] / "config.json", optional=True)
    strategy, activation = config.get("pooling_strategy", "max"), config.get("activation_function", "relu")
    if strategy != "max":
        raise UnsupportedModel(f"{paths[1]}/config.json has pooling_strategy {strategy!r}; supported: 'max'")
    if activation not in _SPLADE_LOGS:
        listed = ", ".join(_SPLADE_LOGS)
        raise UnsupportedModel(f"{paths[1]}/config.json has activation_function {activation!r}; supported: {listed}")
    return Modules(paths[0], "max", normalize=False, num_logs=_SPLADE_LOGS[activation])


def _multi_vector(folder: Path, kinds: Sequence[str], paths: Sequence[str]) -> Modules:
    """The modules of a model of late interaction, as sentence-transformers' MultiVectorEncoder writes them."""
    num_dense = kinds.count("Dense")
    served = ["Transformer", *["Dense"] * num_dense, "MultiVectorMask"]
    if not num_dense or list(kinds) not in (served, [*served, "Normalize"]):
        raise UnsupportedModel(
            f"modules.json orders {', '.join(kinds)}; "
            "supported: Transformer, Dense, MultiVectorMask, and Normalize or none"
        )
    _check_output(folder / paths[0], _STATES, "last_hidden_state")
    config = text_config(folder / paths[0])
    if kinds[-1] == "Normalize":
        _check_keys(folder / paths[-1], "token_embeddings")
    mask = read_object(folder / paths[1 + num_dense] / "config.json", optional=True)
    for key, wanted in {"skiplist_tasks": ["document"], "keep_only_token_ids": None}.items():
        if mask.get(key) not in (None, wanted):
            raise UnsupportedModel(f"{paths[1 + num_dense]}/config.json has {key} {mask[key]!r}; supported: {wanted!r}")
    dense = tuple(_dense(folder, path, "token_embeddings") for path in paths[1 : 1 + num_dense])
    skiplist = tuple(mask.get("skiplist_words") or ())
    return Modules(
        transformer=paths[0],
        pooling=None,
        dense=dense,
        normalize=kinds[-1] == "Normalize",
        skiplist=skiplist,
        max_document_tokens=_limit(config, "document_length"),
        max_query_tokens=_limit(config, "query_length"),
    )


def _limit(config: Mapping[str, Any], key: str) -> int | None:
    length = config.get(key)
    if length is not None and (type(length) is not int or length < 1):
        raise UnsupportedModel(f"sentence_bert_config.json has {key} {length!r}; it must be an integer of at least 1")
    return length


def _pooling(folder: Path, path: str, wanted: Pooling | None) -> Pooling:
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


def _pooling_modes(config: Mapping[str, Any]) -> list[str]:
    mode = config.get("pooling_mode")
    if mode is None:
        mode = [name for key, name in _OLD_POOLINGS.items() if config.get(key)]
    return [mode] if isinstance(mode, str) else list(mode) or ["mean"]


def _dense(folder: Path, path: str, of: str = "sentence_embedding") -> DenseModule:
    config = _check_keys(folder / path, of)
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


def _activation(path: str, name: str) -> Activation:
    """sentence-transformers trusts torch's own activations and takes Tanh for every other, or none."""
    if not name.startswith("torch."):
        return "tanh"
    activation = _TORCH_ACTIVATIONS.get(name.rpartition(".")[2])
    if activation is None:
        listed = ", ".join(_TORCH_ACTIVATIONS)
        raise UnsupportedModel(f"{path}/config.json has activation_function {name!r}; supported: {listed}")
    return activation


def _check_keys(folder: Path, of: str = "sentence_embedding") -> dict[str, Any]:
    """A Dense or Normalize module's config, refused if it works on anything but the pooled vector, or what is given."""
    config = read_object(folder / "config.json", optional=True)
    source = config.get("module_input_name") or "sentence_embedding"
    target = config.get("module_output_name") or source
    for key, name in (("module_input_name", source), ("module_output_name", target)):
        if name != of:
            raise UnsupportedModel(f"{folder.name}/config.json has {key} {name!r}; supported: {of}")
    return config


def text_config(body: Path) -> dict[str, Any]:
    """The folder of a network -> what sentence-transformers' Transformer module says of itself, {} if nothing."""
    for name in _TEXT_CONFIGS:
        if config := read_object(body / name, optional=True):
            return config
    return {}


def _check_output(body: Path, wanted: Mapping[str, Any], output: str) -> None:
    config = text_config(body)
    for key, value in {**wanted, "query_expansion": None}.items():
        if config.get(key, value) != value:
            raise UnsupportedModel(f"sentence_bert_config.json has {key} {config[key]!r}; supported: {value!r}")
    plain = {"method": "forward", "method_output_name": output}
    text = (config.get("modality_config") or {}).get("text", plain)
    if text != plain:
        raise UnsupportedModel(f"sentence_bert_config.json takes {text!r} from the network; supported: {plain!r}")


def _max_length(config: Mapping[str, Any], tokenizer: Mapping[str, Any], limit: int) -> int:
    length = config.get("max_seq_length")
    if length is None:
        length = tokenizer.get("model_max_length") or limit
    if not isinstance(length, int | float) or length < 1:
        raise UnsupportedModel(f"the model's files limit inputs to {length!r} tokens; it must be at least 1")
    return limit if length >= _NO_LIMIT else min(int(length), limit)


def _prompts(folder: Path) -> dict[str, str]:
    prompts = read_object(folder / "config_sentence_transformers.json", optional=True).get("prompts") or {}
    for name, text in prompts.items():
        if not isinstance(text, str):
            raise UnsupportedModel(f"config_sentence_transformers.json has a prompt {name!r} that is not text")
    return dict(prompts)
