"""Tiny decoders, every switch set so that a mistake shows, as transformers makes and judges them.

Windows are shorter than the longest sequence, key heads fewer than heads, head_dim is not width / heads where the
family allows it, query_pre_attn_scalar is not head_dim, the softcap is small, and all bands of llama3 occur.
"""

from typing import Any

import transformers

from tests.tiny import Tiny, byte_level_bpe

_SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "max_position_embeddings": 96,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_GEMMA = {**_SIZES, "head_dim": 16, "query_pre_attn_scalar": 20, "sliding_window": 7, "attn_implementation": "eager"}
_TWO_THETAS = {
    "full_attention": {"rope_type": "linear", "rope_theta": 5e4, "factor": 2.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
}
_GEMMA3 = {
    **_GEMMA,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    "rope_parameters": _TWO_THETAS,
}


def _tiny(config: Any, model: Any, keys: dict[str, Any], plain_norms: bool = False) -> Tiny:
    return Tiny(config, model, keys, byte_level_bpe, "<pad>", plain_norms=plain_norms)


DECODERS = {
    "llama": _tiny(
        transformers.LlamaConfig, transformers.LlamaModel, {**_SIZES, "rope_parameters": _LLAMA3, "rms_norm_eps": 1e-5}
    ),
    "mistral": _tiny(
        transformers.MistralConfig,
        transformers.MistralModel,
        {**_SIZES, "head_dim": 16, "sliding_window": 7, "rms_norm_eps": 1e-5},
    ),
    "qwen2": _tiny(
        transformers.Qwen2Config,
        transformers.Qwen2Model,
        {**_SIZES, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
    ),
    "qwen2-both-sides": _tiny(
        transformers.Qwen2Config,
        transformers.Qwen2Model,
        {**_SIZES, "is_causal": False, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ),
    "qwen3": _tiny(transformers.Qwen3Config, transformers.Qwen3Model, {**_SIZES, "head_dim": 16}),
    "gemma2": _tiny(
        transformers.Gemma2Config, transformers.Gemma2Model, {**_GEMMA, "attn_logit_softcapping": 5.0}, True
    ),
    "gemma3": _tiny(transformers.Gemma3TextConfig, transformers.Gemma3TextModel, _GEMMA3, True),
    "gemma3-both-sides": _tiny(
        transformers.Gemma3TextConfig,
        transformers.Gemma3TextModel,
        {**_GEMMA3, "use_bidirectional_attention": True, "sliding_window": 9},
        True,
    ),
}
