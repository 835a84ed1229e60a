"""Rotary positions as config.json states them -> Rope, in the older and the newer spelling.

Older: rope_theta beside rope_scaling {type or rope_type, ...}. Newer: rope_parameters with both, or one such object
for each type of layer. A rule or a setting that openbei does not compute is refused by name.
"""

from dataclasses import dataclass

from openbei.errors import UnsupportedModel
from openbei.model.spec import Rope
from openbei.weights.families.row import Config, Values, integer, real

FULL, LOCAL = "full_attention", "sliding_attention"

# Rule -> the settings it must have; others that change nothing in it may stand there too.
_RULES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "ntk": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_KNOWN = {"rope_type", "type", "rope_theta", "factor", "mixed_b", "partial_rotary_factor", "attention_factor"} | {
    setting for settings in _RULES.values() for setting in settings
}


@dataclass(frozen=True, slots=True)
class RopeKeys:
    """Where a family keeps theta: its config key and the value where that is absent (None: it must be there).

    scaled: rope_scaling, which is one for all layers, means this type of layer too.
    """

    theta: str = "rope_theta"
    default: float | None = 10_000.0
    layers: str = FULL
    scaled: bool = True


def read_rope(config: Config, keys: RopeKeys) -> Rope:
    """config.json -> the rotary positions of one type of layer. Raises UnsupportedModel by the setting's name."""
    settings = _settings(config, keys)
    if unknown := sorted(settings.keys() - _KNOWN):
        raise UnsupportedModel(
            f"config.json scales RoPE with {unknown[0]} {settings[unknown[0]]!r}, which is not known"
        )
    for key in ("partial_rotary_factor", "attention_factor"):
        if settings.get(key) not in (None, 1):
            raise UnsupportedModel(f"config.json has RoPE with {key} {settings[key]!r}; supported: 1.0")
    rule = settings.get("rope_type") or settings.get("type") or "default"
    if rule not in _RULES:
        raise UnsupportedModel(f"config.json has RoPE of type {rule!r}; supported: {', '.join(_RULES)}")
    if absent := [setting for setting in _RULES[rule] if settings.get(setting) is None]:
        raise UnsupportedModel(f"config.json has RoPE of type {rule!r} without {absent[0]}")
    return _rope(rule, settings, config)


def _settings(config: Config, keys: RopeKeys) -> Values:
    given = config.get("rope_parameters")
    if given is None:
        settings = dict(config.get("rope_scaling") or {}) if keys.scaled else {}
    else:
        nested = FULL in given or LOCAL in given
        settings = dict((given.get(keys.layers) if nested else given) or {})
    if settings.get("rope_theta") is None:
        settings["rope_theta"] = config.get(keys.theta, keys.default)
    if settings["rope_theta"] is None:
        raise UnsupportedModel(f"config.json lacks {keys.theta}")
    return settings


def _rope(rule: str, settings: Values, config: Config) -> Rope:
    theta = real("rope_theta", settings["rope_theta"])
    numbers = {setting: real(setting, settings[setting]) for setting in _RULES[rule]}
    factor = numbers.get("factor", 1.0)
    if rule == "linear":
        return Rope(theta, "linear", factor)
    if rule == "ntk":
        mixed_b = settings.get("mixed_b")
        return Rope(theta, "ntk", factor) if mixed_b is None else Rope(theta, "ntk_mixed", factor, float(mixed_b))
    if rule == "dynamic":
        trained = integer("max_position_embeddings", config.get("max_position_embeddings"), minimum=1)
        return Rope(theta, "dynamic", factor, original_length=trained)
    if rule == "llama3":
        return Rope(
            theta,
            "llama3",
            factor,
            low_freq_factor=numbers["low_freq_factor"],
            high_freq_factor=numbers["high_freq_factor"],
            original_length=int(numbers["original_max_position_embeddings"]),
        )
    return Rope(theta)
