"""The rows of the decoders: Llama, Mistral, Qwen2, Qwen3, Gemma2, Gemma3 text. Data, and the rules of their windows.

All are pre-norm with RMS, rotary positions, gated feed-forward, and a norm at the end. Sources: transformers'
configuration and modeling files of each.
"""

from dataclasses import replace
from fnmatch import fnmatchcase

from openbei.errors import UnsupportedModel
from openbei.weights.families.heads import SEQUENCE, TOKEN, bidirectional_llama_head, score_head, score_token_head
from openbei.weights.families.rope import FULL, LOCAL, RopeKeys, read_rope
from openbei.weights.families.row import Config, Family, Values, integer, real

_QWEN2_CODE = "*modeling_qwen.Qwen2Model"


def is_causal(config: Config) -> bool:
    """False where the config asks for attention to both sides, in whichever way."""
    both_sides = config.get("is_causal") is False or bool(config.get("use_bidirectional_attention"))
    qwen_of_gte = fnmatchcase(str((config.get("auto_map") or {}).get("AutoModel")), _QWEN2_CODE)
    return not (both_sides or qwen_of_gte or config.get("model_type") == "llama_bidirec")


def _llama(config: Config, values: Values) -> Values:
    return {"causal": is_causal(config), "rope": read_rope(config, RopeKeys())}


def _mistral(config: Config, values: Values) -> Values:
    window = config.get("sliding_window", 4096)
    return _llama(config, values) | _windowed(config, window, (True,) * values["num_layers"])


def _qwen(config: Config, values: Values) -> Values:
    window = config.get("sliding_window", 4096) if config.get("use_sliding_window") else None
    first = config.get("max_window_layers", 28)
    by_rule = tuple(number >= first for number in range(values["num_layers"]))
    return _llama(config, values) | _windowed(config, window, _local_layers(config, by_rule))


def _gemma2(config: Config, values: Values) -> Values:
    by_rule = tuple(number % 2 == 0 for number in range(values["num_layers"]))
    softcap = config.get("attn_logit_softcapping", 50.0)
    return (
        _llama(config, values)
        | _windowed(config, config.get("sliding_window", 4096), _local_layers(config, by_rule))
        | _gemma_scales(config, values)
        | {"softcap": None if softcap is None else real("attn_logit_softcapping", softcap)}
    )


def _gemma3(config: Config, values: Values) -> Values:
    """With attention to both sides, sliding_window counts both: a token sees half of it to each."""
    pattern = config.get("sliding_window_pattern") or 6
    by_rule = tuple((number + 1) % pattern != 0 for number in range(values["num_layers"]))
    softcap = config.get("attn_logit_softcapping")
    return {
        "causal": is_causal(config),
        "window": integer("sliding_window", config.get("sliding_window", 4096), minimum=1),
        "local_layers": _local_layers(config, by_rule),
        "rope": read_rope(config, RopeKeys(default=1_000_000.0)),
        "local_rope": read_rope(config, RopeKeys("rope_local_base_freq", 10_000.0, LOCAL, scaled=False)),
        "softcap": None if softcap is None else real("attn_logit_softcapping", softcap),
    } | _gemma_scales(config, values)


def _gemma_scales(config: Config, values: Values) -> Values:
    scalar = real("query_pre_attn_scalar", config.get("query_pre_attn_scalar", 256))
    return {"score_scale": scalar**-0.5, "embed_scale": values["width"] ** 0.5}


def _local_layers(config: Config, by_rule: tuple[bool, ...]) -> tuple[bool, ...]:
    kinds = config.get("layer_types")
    if kinds is None:
        return by_rule
    if len(kinds) != len(by_rule) or set(kinds) - {FULL, LOCAL}:
        raise UnsupportedModel(f"config.json has layer_types {kinds!r}; supported: {FULL} and {LOCAL}, one a layer")
    return tuple(kind == LOCAL for kind in kinds)


def _windowed(config: Config, window: int | None, local_layers: tuple[bool, ...]) -> Values:
    if window is None or not any(local_layers):
        return {}
    if not is_causal(config):
        raise UnsupportedModel(f"config.json has sliding_window {window!r} and no causal mask, which is not supported")
    return {"window": integer("sliding_window", window, minimum=1), "local_layers": local_layers}


LLAMA = Family(
    name="llama",
    keys={
        "vocab_size": "vocab_size",
        "width": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "num_kv_heads": "num_key_value_heads",
        "head_dim": "head_dim",
        "ffn_width": "intermediate_size",
        "norm_eps": "rms_norm_eps",
        "activation": "hidden_act",
        "num_positions": "max_position_embeddings",
    },
    defaults={"num_kv_heads": None, "head_dim": None, "norm_eps": 1e-6, "activation": "silu"},
    fixed={"norm": "rms", "norm_placement": "pre"},
    derive=_llama,
    names={
        "word": "embed_tokens",
        "final_norm": "norm",
        "q": "layers.{}.self_attn.q_proj",
        "k": "layers.{}.self_attn.k_proj",
        "v": "layers.{}.self_attn.v_proj",
        "out": "layers.{}.self_attn.o_proj",
        "attention_norm": "layers.{}.input_layernorm",
        "gate": "layers.{}.mlp.gate_proj",
        "up": "layers.{}.mlp.up_proj",
        "down": "layers.{}.mlp.down_proj",
        "ffn_norm": "layers.{}.post_attention_layernorm",
    },
    biases={
        **dict.fromkeys(("q", "k", "v", "out"), "attention_bias"),
        **dict.fromkeys(("gate", "up", "down"), "mlp_bias"),
        **dict.fromkeys(("attention_norm", "ffn_norm", "final_norm", "q_norm", "k_norm"), False),
        **dict.fromkeys(("attention_out_norm", "ffn_out_norm"), False),
    },
    prefixes=("model.",),
    ignored=("lm_head.*", "*rotary_emb.inv_freq", "*original_inv_freq"),
    exact={"quantization_config": None, "is_decoder": False, "add_cross_attention": False},
    decoder=True,
    heads={SEQUENCE: score_head, TOKEN: score_token_head},
)

# NVIDIA's llama-nemotron-embed and -rerank. Its code (llama_bidirectional_model.py) never masks, and pools by config.
BIDIRECTIONAL_LLAMA = replace(
    LLAMA,
    name="llama_bidirec",
    exact={**LLAMA.exact, "is_causal": False},
    code=("*.LlamaBidirectionalModel", "*.LlamaBidirectionalForSequenceClassification"),
    heads={SEQUENCE: bidirectional_llama_head},
)

MISTRAL = replace(
    LLAMA,
    name="mistral",
    derive=_mistral,
    biases={**LLAMA.biases, **dict.fromkeys(("q", "k", "v", "out", "gate", "up", "down"), False)},
    exact={**LLAMA.exact, "layer_types": None},
)

QWEN2 = replace(
    LLAMA,
    name="qwen2",
    derive=_qwen,
    biases={
        **LLAMA.biases,
        **dict.fromkeys(("q", "k", "v"), True),
        **dict.fromkeys(("out", "gate", "up", "down"), False),
    },
    code=("*modeling_qwen.Qwen2*",),
)

QWEN3 = replace(
    LLAMA,
    name="qwen3",
    derive=_qwen,
    defaults={**LLAMA.defaults, "head_dim": 128},
    names={**LLAMA.names, "q_norm": "layers.{}.self_attn.q_norm", "k_norm": "layers.{}.self_attn.k_norm"},
    biases={**LLAMA.biases, **dict.fromkeys(("gate", "up", "down"), False)},
)

GEMMA2 = replace(
    LLAMA,
    name="gemma2",
    keys={**LLAMA.keys, "activation": "hidden_activation"},
    defaults={"num_kv_heads": 4, "head_dim": 256, "norm_eps": 1e-6, "activation": "gelu_pytorch_tanh"},
    derive=_gemma2,
    names={
        **LLAMA.names,
        "attention_out_norm": "layers.{}.post_attention_layernorm",
        "ffn_norm": "layers.{}.pre_feedforward_layernorm",
        "ffn_out_norm": "layers.{}.post_feedforward_layernorm",
    },
    biases={**LLAMA.biases, **dict.fromkeys(("gate", "up", "down"), False)},
    norm_offset=1.0,
    exact={**LLAMA.exact, "use_bidirectional_attention": False},
)

GEMMA3 = replace(
    GEMMA2,
    name="gemma3_text",
    derive=_gemma3,
    names={**GEMMA2.names, "q_norm": QWEN3.names["q_norm"], "k_norm": QWEN3.names["k_norm"]},
    exact=LLAMA.exact,
    heads={SEQUENCE: score_head},
)

DECODERS: dict[str, Family] = {
    "llama": LLAMA,
    "llama_bidirec": BIDIRECTIONAL_LLAMA,
    "mistral": MISTRAL,
    "qwen2": QWEN2,
    "qwen3": QWEN3,
    "gemma2": GEMMA2,
    "gemma3_text": GEMMA3,
}
