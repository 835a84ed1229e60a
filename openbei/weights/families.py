"""config.json -> ModelSpec, and the checkpoint's tensor names -> ours. A family is a row of FAMILIES, not a class.

Owns every model_type, config key and tensor name that openbei knows; below this file nobody asks which family it is.
Never reads a file. What a row cannot say exactly is refused here by name.

To add a family, write its row and key it by model_type. If it needs a number that ModelSpec lacks (a RoPE theta, a
gate), add the field there and map it in `keys`; if its tensors are cut otherwise (a fused qkv), let `names` say so and
teach openbei/weights/fill.py to cut them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from openbei.errors import UnsupportedModel
from openbei.model.spec import Activation, ModelSpec

Config = Mapping[str, Any]

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
}


@dataclass(frozen=True, slots=True)
class Family:
    """Checkpoints that share one mapping.

    keys: ModelSpec field -> config.json key. defaults: the value where config.json is silent, as transformers takes it;
    a field without one must be there. fixed: fields that no config.json says.
    pad_key: config key of the pad id after which positions are counted; None where they count from 0.
    names: our parameter -> the checkpoint's, without .weight and .bias; {} is the layer's number.
    prefixes: one of these is taken off the front of a tensor's name. ignored: fnmatch patterns of unused tensors.
    exact: config keys that may be absent, but must otherwise have this value.
    """

    name: str
    keys: Mapping[str, str]
    names: Mapping[str, str]
    prefixes: tuple[str, ...]
    ignored: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    pad_key: str | None = None
    exact: Mapping[str, Any] = field(default_factory=dict)


_BERT = Family(
    name="bert",
    keys={
        "vocab_size": "vocab_size",
        "width": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "ffn_width": "intermediate_size",
        "norm_eps": "layer_norm_eps",
        "activation": "hidden_act",
        "num_positions": "max_position_embeddings",
        "num_segments": "type_vocab_size",
    },
    defaults={"norm_eps": 1e-12, "activation": "gelu", "num_segments": 2},
    names={
        "word": "embeddings.word_embeddings",
        "position": "embeddings.position_embeddings",
        "segment": "embeddings.token_type_embeddings",
        "embedding_norm": "embeddings.LayerNorm",
        "q": "encoder.layer.{}.attention.self.query",
        "k": "encoder.layer.{}.attention.self.key",
        "v": "encoder.layer.{}.attention.self.value",
        "out": "encoder.layer.{}.attention.output.dense",
        "attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
        "up": "encoder.layer.{}.intermediate.dense",
        "down": "encoder.layer.{}.output.dense",
        "ffn_norm": "encoder.layer.{}.output.LayerNorm",
    },
    prefixes=("bert.",),
    ignored=("embeddings.position_ids", "pooler.*", "cls.predictions.*", "cls.seq_relationship.*"),
    exact={
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "quantization_config": None,
    },
)

_ROBERTA = replace(
    _BERT,
    name="roberta",
    pad_key="pad_token_id",
    prefixes=("roberta.",),
    ignored=("embeddings.position_ids", "embeddings.token_type_ids", "pooler.*", "lm_head.*"),
)

_XLM_ROBERTA = replace(_ROBERTA, name="xlm-roberta", prefixes=("roberta.", "xlm-roberta."))

_DISTILBERT = Family(
    name="distilbert",
    keys={
        "vocab_size": "vocab_size",
        "width": "dim",
        "num_layers": "n_layers",
        "num_heads": "n_heads",
        "ffn_width": "hidden_dim",
        "activation": "activation",
        "num_positions": "max_position_embeddings",
    },
    defaults={"activation": "gelu"},
    fixed={"norm_eps": 1e-12},
    names={
        "word": "embeddings.word_embeddings",
        "position": "embeddings.position_embeddings",
        "embedding_norm": "embeddings.LayerNorm",
        "q": "transformer.layer.{}.attention.q_lin",
        "k": "transformer.layer.{}.attention.k_lin",
        "v": "transformer.layer.{}.attention.v_lin",
        "out": "transformer.layer.{}.attention.out_lin",
        "attention_norm": "transformer.layer.{}.sa_layer_norm",
        "up": "transformer.layer.{}.ffn.lin1",
        "down": "transformer.layer.{}.ffn.lin2",
        "ffn_norm": "transformer.layer.{}.output_layer_norm",
    },
    prefixes=("distilbert.",),
    ignored=("embeddings.position_ids", "vocab_transform.*", "vocab_layer_norm.*", "vocab_projector.*"),
    exact={"quantization_config": None},
)

_MPNET = replace(
    _BERT,
    name="mpnet",
    keys={field: key for field, key in _BERT.keys.items() if field != "num_segments"}
    | {"num_relative_buckets": "relative_attention_num_buckets"},
    defaults={"norm_eps": 1e-12, "activation": "gelu", "num_relative_buckets": 32},
    # transformers' MPNetEmbeddings counts from pad id 1 whatever config.json says.
    fixed={"position_offset": 2},
    names={name: tensor for name, tensor in _BERT.names.items() if name != "segment"}
    | {
        "q": "encoder.layer.{}.attention.attn.q",
        "k": "encoder.layer.{}.attention.attn.k",
        "v": "encoder.layer.{}.attention.attn.v",
        "out": "encoder.layer.{}.attention.attn.o",
        "attention_norm": "encoder.layer.{}.attention.LayerNorm",
        "relative_bias": "encoder.relative_attention_bias",
    },
    prefixes=("mpnet.",),
    ignored=("embeddings.position_ids", "pooler.*", "lm_head.*"),
)

FAMILIES: dict[str, Family] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "xlm-roberta": _XLM_ROBERTA,
    "distilbert": _DISTILBERT,
    "mpnet": _MPNET,
}


def read_config(config: Config) -> tuple[ModelSpec, Family]:
    """A config.json, parsed -> its numbers and its family's row.

    Raises UnsupportedModel, naming the key and the value, for whatever would not be computed exactly.
    """
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise UnsupportedModel(f"model_type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}")
    _refuse_foreign_code(config)
    _refuse_heads(config)
    for key, wanted in family.exact.items():
        if config.get(key, wanted) != wanted:
            raise UnsupportedModel(
                f"config.json has {key} {config[key]!r}; a {model_type} model is served with {wanted!r}"
            )
    return _spec(config, family), family


def _refuse_foreign_code(config: Config) -> None:
    """JinaBERT calls itself "bert" and is another network; so may any repository that brings its own code."""
    code = {key: value for key, value in (config.get("auto_map") or {}).items() if key.startswith("AutoModel")}
    if "jina-bert" in f"{code} {config.get('_name_or_path')}" or config.get("position_embedding_type") == "alibi":
        raise UnsupportedModel("this is JinaBERT (ALiBi positions, gated feed-forward), which is not supported yet")
    if code:
        listed = ", ".join(f"{key} = {value}" for key, value in code.items())
        raise UnsupportedModel(f"config.json asks for the repository's own code ({listed}); openbei runs none")


def _refuse_heads(config: Config) -> None:
    for architecture in config.get("architectures") or ():
        if architecture.endswith(("ForSequenceClassification", "ForTokenClassification")):
            raise UnsupportedModel(f"architecture {architecture}: classification is not supported yet, only embedding")


def _spec(config: Config, family: Family) -> ModelSpec:
    values = {field: _value(config, family, field) for field in family.keys} | dict(family.fixed)
    width, num_heads = values["width"], values["num_heads"]
    if width % num_heads:
        raise UnsupportedModel(f"{num_heads} heads do not divide a width of {width}")
    values["head_dim"], values["num_kv_heads"] = width // num_heads, num_heads
    if family.pad_key is not None:
        values["position_offset"] = _integer(family.pad_key, config.get(family.pad_key, 1), minimum=0) + 1
    return ModelSpec(family=family.name, **values)


def _value(config: Config, family: Family, field: str) -> Any:
    key = family.keys[field]
    value = config.get(key, family.defaults.get(field))
    if value is None:
        raise UnsupportedModel(f"config.json lacks {key}")
    if field == "activation":
        if value not in ACTIVATIONS:
            raise UnsupportedModel(f"config.json has {key} {value!r}; supported: {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]
    return float(value) if field == "norm_eps" else _integer(key, value, minimum=1)


def _integer(key: str, value: Any, minimum: int) -> int:
    if type(value) is not int or value < minimum:
        raise UnsupportedModel(f"config.json has {key} {value!r}; it must be an integer of at least {minimum}")
    return value
