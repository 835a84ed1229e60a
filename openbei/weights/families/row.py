"""What a family's row holds, and how a row and a config.json become a ModelSpec. Knows no family by name.

Owns the reading of config keys; never reads a file. What a row cannot say exactly is refused here by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from openbei.errors import UnsupportedModel
from openbei.model.spec import Activation, ModelSpec, Pooling

Config = Mapping[str, Any]
Values = dict[str, Any]

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
_REALS = ("norm_eps", "softcap")
_MAY_BE_ZERO = ("num_segments",)


@dataclass(frozen=True, slots=True)
class HeadPart:
    """One layer of a head as it is stored: norm(activation(linear)), norm None for most."""

    linear: str
    activation: Activation = "identity"
    norm: str | None = None
    bias: bool = True
    norm_bias: bool = True


@dataclass(frozen=True, slots=True)
class HeadRow:
    """A head's layers in a row, and which token's state enters it; per_token: every one's."""

    parts: tuple[HeadPart, ...]
    pooling: Pooling = "cls"
    per_token: bool = False


@dataclass(frozen=True, slots=True)
class Family:
    """Checkpoints that share one mapping.

    keys: ModelSpec field -> config.json key, or several spellings of it. defaults: the value where config.json is
    silent, as transformers takes it; a field without one must be there. fixed: fields that no config.json says.
    derive: config and the fields so far -> the fields that take a rule to read (rotary positions, windows).
    pad_key: config key of the pad id after which positions are counted; None where they count from 0.
    names: our parameter -> the checkpoint's, without .weight and .bias; {} is the layer's number, and [1/3] the second
    third of its rows. So a fused matrix is cut here, and which half is activated is settled by who is called gate.
    other_names: what differs in a second spelling, taken where the checkpoint has its q.
    biases: whether a parameter has a bias, or the config key that says so (absent: it has none); not listed: it has.
    prefixes: one of these is taken off the front of a tensor's name. ignored: fnmatch patterns of unused tensors.
    exact: config keys that may be absent or null, but must otherwise have this value.
    code: fnmatch patterns of the classes of a repository's own code (auto_map) that the row computes exactly.
    norm_offset: added to the weight of every norm (Gemma's 1). first_norm: layer 0 has an attention_norm.
    decoder: its one label is a reward and no relevance, unless the model's files make it a scorer of pairs.
    heads: end of an architecture's name -> config to HeadRow; head: the one this checkpoint has.
    """

    name: str
    keys: Mapping[str, str | tuple[str, ...]]
    names: Mapping[str, str]
    prefixes: tuple[str, ...]
    ignored: tuple[str, ...]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    derive: Callable[[Config, Values], Values] = lambda config, values: {}
    pad_key: str | None = None
    other_names: Mapping[str, str] = field(default_factory=dict)
    biases: Mapping[str, bool | str] = field(default_factory=dict)
    exact: Mapping[str, Any] = field(default_factory=dict)
    code: tuple[str, ...] = ()
    norm_offset: float = 0.0
    first_norm: bool = True
    decoder: bool = False
    heads: Mapping[str, Callable[[Config], HeadRow]] = field(default_factory=dict)
    head: HeadRow | None = None


def read_spec(config: Config, family: Family) -> ModelSpec:
    """A config.json, parsed, and its family's row -> its numbers. Raises UnsupportedModel by key and value."""
    for key, wanted in family.exact.items():
        if config.get(key) not in (None, wanted):
            raise UnsupportedModel(
                f"config.json has {key} {config[key]!r}; a {family.name} model is served with {wanted!r}"
            )
    values = {field: _value(config, family, field) for field in family.keys} | dict(family.fixed)
    _split_heads(values, width=values["width"], num_heads=values["num_heads"])
    if family.pad_key is not None:
        values["position_offset"] = integer(family.pad_key, config.get(family.pad_key, 1), minimum=0) + 1
    return ModelSpec(family=family.name, **values | family.derive(config, values))


def activation(key: str, value: Any) -> Activation:
    """transformers' name of an activation -> ours. Raises UnsupportedModel for one that is not exact here."""
    if value not in ACTIVATIONS:
        raise UnsupportedModel(f"config.json has {key} {value!r}; supported: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[value]


def integer(key: str, value: Any, minimum: int) -> int:
    """value, if it is an integer of at least minimum. Raises UnsupportedModel."""
    if type(value) is not int or value < minimum:
        raise UnsupportedModel(f"config.json has {key} {value!r}; it must be an integer of at least {minimum}")
    return value


def real(key: str, value: Any) -> float:
    """value as a float, if it is a number. Raises UnsupportedModel."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnsupportedModel(f"config.json has {key} {value!r}; it must be a number")
    return float(value)


def _split_heads(values: Values, width: int, num_heads: int) -> None:
    values["num_kv_heads"] = values.get("num_kv_heads") or num_heads
    if not values.get("head_dim"):
        if width % num_heads:
            raise UnsupportedModel(f"{num_heads} heads do not divide a width of {width}")
        values["head_dim"] = width // num_heads
    if num_heads % values["num_kv_heads"]:
        raise UnsupportedModel(f"{values['num_kv_heads']} key heads do not divide {num_heads} heads")


def _value(config: Config, family: Family, field: str) -> Any:
    keys = family.keys[field]
    spellings = (keys,) if isinstance(keys, str) else keys
    key = next((spelling for spelling in spellings if config.get(spelling) is not None), spellings[0])
    value = config.get(key)
    if value is None:
        if field not in family.defaults:
            raise UnsupportedModel(f"config.json lacks {key}")
        value = family.defaults[field]
        if value is None:
            return None
    if field == "activation":
        return activation(key, value)
    if field in _REALS:
        return real(key, value)
    return integer(key, value, minimum=0 if field in _MAY_BE_ZERO else 1)
