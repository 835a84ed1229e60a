"""What config.json says of quantised weights: the FP8 that is read here, and everything else refused as what it is.

Two published forms have `X.weight` in e4m3 beside `X.weight_scale`, one for each output channel or one for all:
compressed-tensors (format float-quantized, what llm-compressor writes) and quant_method fp8 without blocks. Owns these
keys of config.json; never touches a tensor. Sources: vllm-project/compressed-tensors (quant_scheme.py, quant_args.py),
transformers (FineGrainedFP8Config), vllm (model_executor/layers/quantization/fp8.py).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from openbei.errors import UnsupportedModel
from openbei.weights.families import Config

KEYS = ("quantization_config", "compression_config")  # the second is compressed-tensors' older name
CHANNELS = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False}
TOKENS = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}


def plain_config(config: Config) -> dict[str, Any]:
    """A config.json -> the same without what it says of quantised weights. Raises UnsupportedModel if that is not read.

    The scales of activations are not looked at: a GPU makes its own for each token, and a CPU rounds none to FP8.
    """
    for key in KEYS:
        if config.get(key):
            _check(config[key])
    return {key: value for key, value in config.items() if key not in KEYS}


def fp8_scheme(not_quantised: Iterable[str]) -> dict[str, Any]:
    """The quantization_config of weights in FP8 with a scale for each output channel, as compressed-tensors says it.

    not_quantised: the linear layers that are not, by the names of their modules.
    """
    group = {"targets": ["Linear"], "weights": CHANNELS, "input_activations": TOKENS, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": sorted(not_quantised),
    }


def _check(scheme: Any) -> None:
    if not isinstance(scheme, dict):
        raise _refused(f"{scheme!r}")
    method = scheme.get("quant_method", "compressed-tensors")
    if method == "compressed-tensors":
        _check_compressed(scheme)
    elif method == "fp8":
        if scheme.get("weight_block_size"):
            raise _refused(f"FP8 with a scale for each block of {scheme['weight_block_size']} weights")
    else:
        raise _refused(f"quant_method {method}{_bits(scheme)}")


def _check_compressed(scheme: Mapping[str, Any]) -> None:
    for key, kind in (("sparsity_config", "sparse weights"), ("transform_config", "rotated weights")):
        if scheme.get(key) and scheme[key].get("format") != "dense":
            raise _refused(f"{kind} ({key})")
    groups = scheme.get("config_groups") or {}
    for group in groups.values():
        weights = group.get("weights") or {}
        kind, strategy = f"{weights.get('type')} {weights.get('num_bits')} bit", weights.get("strategy")
        if (weights.get("type"), weights.get("num_bits")) != ("float", 8):
            raise _refused(f"{kind} weights ({scheme.get('format')})")
        if strategy not in ("channel", "tensor"):
            raise _refused(f"FP8 with a scale for each {strategy}")
        if not weights.get("symmetric", True):
            raise _refused("FP8 with zero points")
    if scheme.get("format") not in ("float-quantized", "naive-quantized"):
        raise _refused(f"format {scheme.get('format')!r} of compressed-tensors")


def _bits(scheme: Mapping[str, Any]) -> str:
    bits = scheme.get("bits", scheme.get("w_bit"))
    return "" if bits is None else f", {bits} bit"


def _refused(what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"config.json has quantised weights: {what}; supported: FP8 (e4m3) with a scale for each output channel or for "
        "each tensor. Use the model that it was made from"
    )
