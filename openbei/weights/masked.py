"""The head of a masked language model, from which SPLADE makes its vectors: a layer, a norm, and a row for each word.

The last matrix is the word embedding again, or one of its own. Owns where a family stores these tensors, and which copy
of a tied one counts; never opens a file. Sources: transformers' ForMaskedLM classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from openbei.errors import UnsupportedModel, WeightsError
from openbei.model.spec import Array
from openbei.weights.families import Config, Family
from openbei.weights.families.row import HeadPart, HeadRow, activation

Tensors = Mapping[str, Array]

_DECODER = "masked_decoder"  # the name that the last matrix gets here, wherever it is stored


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a family keeps its head. decoder, biases: names of tensors; tied, it may be any of these."""

    transform: HeadPart
    decoder: str
    biases: tuple[str, ...]
    has_bias: bool = True


def _bert(config: Config, tensors: Tensors) -> _Stored:
    act = activation("hidden_act", config.get("hidden_act", "gelu"))
    transform = HeadPart("cls.predictions.transform.dense", act, "cls.predictions.transform.LayerNorm")
    return _Stored(
        transform, "cls.predictions.decoder.weight", ("cls.predictions.decoder.bias", "cls.predictions.bias")
    )


def _roberta(config: Config, tensors: Tensors) -> _Stored:
    """Its head is gelu whatever hidden_act says, and so is MPNet's."""
    transform = HeadPart("lm_head.dense", "gelu", "lm_head.layer_norm")
    return _Stored(transform, "lm_head.decoder.weight", ("lm_head.decoder.bias", "lm_head.bias"))


def _distilbert(config: Config, tensors: Tensors) -> _Stored:
    act = activation("activation", config.get("activation", "gelu"))
    transform = HeadPart("vocab_transform", act, "vocab_layer_norm")
    return _Stored(transform, "vocab_projector.weight", ("vocab_projector.bias",))


def _modernbert(config: Config, tensors: Tensors) -> _Stored:
    act = activation("classifier_activation", config.get("classifier_activation", "gelu"))
    bias, norm_bias = bool(config.get("classifier_bias")), bool(config.get("norm_bias"))
    transform = HeadPart("head.dense", act, "head.norm", bias, norm_bias)
    return _Stored(transform, "decoder.weight", ("decoder.bias",), bool(config.get("decoder_bias", True)))


def _nomic(config: Config, tensors: Tensors) -> _Stored:
    """Its activation is that of the layers' gates (nomic-ai/nomic-bert-2048, NomicBertPredictionHeadTransform)."""
    act = activation("hidden_act", config.get("hidden_act", "silu"))
    transform = HeadPart("cls.predictions.transform.dense", act, "cls.predictions.transform.layer_norm")
    return _Stored(
        transform, "cls.predictions.decoder.weight", ("cls.predictions.decoder.bias", "cls.predictions.bias")
    )


def _gte(config: Config, tensors: Tensors) -> _Stored:
    """The authors' code takes hidden_act, transformers' own gelu; its norm has two names."""
    act = activation("hidden_act", config.get("hidden_act", "gelu")) if config.get("model_type") == "new" else "gelu"
    norm = "lm_head.layer_norm" if "lm_head.layer_norm.weight" in tensors else "lm_head.norm"
    return _Stored(HeadPart("lm_head.dense", act, norm), "lm_head.decoder.weight", ("lm_head.decoder.bias",))


_HEADS: dict[str, Callable[[Config, Tensors], _Stored]] = {
    "bert": _bert,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
    "mpnet": _roberta,
    "distilbert": _distilbert,
    "modernbert": _modernbert,
    "nomic_bert": _nomic,
    "gte": _gte,
}


def with_masked_head(config: Config, family: Family, tensors: Tensors) -> tuple[Family, dict[str, Array]]:
    """A config.json, its family's row and its tensors -> the row with this head, and the tensors with its last matrix.

    Raises UnsupportedModel for a family whose head is not known here, WeightsError where copies that the config ties
    differ, or the matrix is missing.
    """
    if family.name not in _HEADS:
        raise UnsupportedModel(f"SPLADE is not supported for {family.name} models; supported: {', '.join(_HEADS)}")
    stored = _HEADS[family.name](config, tensors)
    head = HeadRow((stored.transform, HeadPart(_DECODER, bias=stored.has_bias)))
    tied, word = config.get("tie_word_embeddings", True), f"{family.names['word']}.weight"
    words = [f"{prefix}{word}" for prefix in ("", *family.prefixes)] if tied else []
    found = {f"{_DECODER}.weight": _only(tensors, [stored.decoder, *words])}
    if stored.has_bias:
        found[f"{_DECODER}.bias"] = _only(tensors, stored.biases if tied else stored.biases[:1])
    return replace(family, head=head), {**tensors, **found}


def _only(tensors: Tensors, names: Sequence[str]) -> Array:
    """The tensor that is stored under one or several of these names."""
    there = [name for name in names if name in tensors]
    if not there:
        raise WeightsError(f"the weights lack {names[0]}, of the head that SPLADE needs")
    for name in there[1:]:
        if not np.array_equal(tensors[name], tensors[there[0]]):
            raise WeightsError(f"{there[0]} and {name} are tied by config.json, but they differ")
    return tensors[there[0]]
