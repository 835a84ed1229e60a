"""config.json -> ModelSpec, and the checkpoint's tensor names -> ours. A family is a row of FAMILIES, not a class.

Owns every model_type, config key and tensor name that openbei knows; below this package nobody asks which family it
is. Never reads a file. What a row cannot say exactly is refused here by name.

To add a family, write its row in encoders.py, rotary.py or decoders.py and key it by model_type; row.py says what a
row holds.
"""

from collections.abc import Collection
from dataclasses import replace
from fnmatch import fnmatchcase

from openbei.errors import UnsupportedModel
from openbei.model.spec import ModelSpec
from openbei.weights.families.decoders import DECODERS
from openbei.weights.families.encoders import ENCODERS, JINA, JINA_CODE
from openbei.weights.families.rotary import ROTARY
from openbei.weights.families.row import Config, Family, HeadRow, read_spec

__all__ = ["FAMILIES", "Config", "Family", "HeadRow", "known_type", "read_config"]

FAMILIES: dict[str, Family] = ENCODERS | ROTARY | DECODERS
_HEAD_TENSORS = ("classifier.", "pre_classifier.", "score.")
_CLASSIFICATION = ("ForSequenceClassification", "ForTokenClassification")


def read_config(config: Config, tensors: Collection[str] = (), *, with_head: bool = True) -> tuple[ModelSpec, Family]:
    """A config.json, parsed, and the names of the checkpoint's tensors -> its numbers and its family's row.

    The row comes back resolved: names in the checkpoint's spelling, biases known, head set if there is one.
    with_head: False leaves a head aside, where the model's other files say that it is an embedder.
    Raises UnsupportedModel, naming the key and the value, for whatever would not be computed exactly.
    """
    family = _family(config, tensors)
    _refuse_foreign_code(config, family)
    spec = read_spec(config, family)
    names = dict(family.names)
    if family.other_names and any(family.other_names["q"].format(0) in name for name in tensors):
        names |= family.other_names
    biases = {name: bool(config.get(says)) if isinstance(says, str) else says for name, says in family.biases.items()}
    resolved = replace(family, names=names, biases=biases)
    if with_head:
        return spec, replace(resolved, head=_head(config, family, tensors))
    return spec, replace(resolved, ignored=(*family.ignored, *(f"{name}*" for name in _HEAD_TENSORS)))


def known_type(config: Config) -> str:
    """A config.json, parsed -> its model_type. Raises UnsupportedModel if no family has it."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UnsupportedModel(f"model_type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}")
    return model_type


def _family(config: Config, tensors: Collection[str]) -> Family:
    """The row of the model_type; JinaBERT calls itself bert, and its two kinds are told apart by their tensors."""
    model_type = known_type(config)
    family = FAMILIES[model_type]
    said = f"{config.get('auto_map')} {config.get('_name_or_path')}"
    if model_type != "bert" or not ("jina-bert" in said or config.get("position_embedding_type") == "alibi"):
        return family
    return JINA_CODE if any("mlp.up_gated_layer" in name for name in tensors) else JINA


def _refuse_foreign_code(config: Config, family: Family) -> None:
    code = {key: value for key, value in (config.get("auto_map") or {}).items() if key.startswith("AutoModel")}
    unknown = [
        f"{key} = {value}"
        for key, value in code.items()
        if not any(fnmatchcase(str(value), known) for known in family.code)
    ]
    if unknown:
        raise UnsupportedModel(
            f"config.json asks for the repository's own code ({', '.join(unknown)}); openbei runs none"
        )


def _head(config: Config, family: Family, tensors: Collection[str]) -> HeadRow | None:
    """The head that the architecture names, if its tensors are there: some embedders name one that they lack."""
    if not any(name.startswith(_HEAD_TENSORS) for name in tensors):
        return None
    for architecture in config.get("architectures") or ():
        for ending, make in family.heads.items():
            if architecture.endswith(ending):
                return make(config)
        if architecture.endswith(_CLASSIFICATION):
            raise UnsupportedModel(f"architecture {architecture} is not supported for {family.name} models")
    return None
