"""Tiny encoders past BERT and its kin: NomicBERT, GTE, ModernBERT as transformers judges them, JinaBERT by our oracle.

transformers writes nomic's and gte's tensors under their published names, fused, and its own config keys beside them.
nomic and gte-new have the published keys too; nomic-native and gte-native have transformers' own names of tensors.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.jina_oracle import JinaConfig, JinaOracle
from tests.tiny import Tiny, bert_pieces, byte_level_bpe, unigram

_SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "type_vocab_size": 2,
    "max_position_embeddings": 64,
}
_NTK = {"rope_type": "linear", "rope_theta": 20000 * 8.0, "factor": 8.0 ** (2 / 12)}  # equals GTE's static NTK rule


def nomic_as_published(folder: Path, model: nn.Module) -> None:
    """The keys of nomic-embed-text-v1.5 in place of transformers'."""
    config = json.loads((folder / "config.json").read_text())
    dynamic = config["rope_parameters"]["rope_type"] == "dynamic"
    published = {
        "model_type": "nomic_bert",
        "architectures": ["NomicBertModel"],
        "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"},
        "activation_function": "swiglu",
        "n_embd": config["hidden_size"],
        "n_layer": config["num_hidden_layers"],
        "n_head": config["num_attention_heads"],
        "n_inner": config["intermediate_size"],
        "n_positions": 64,
        "max_trained_positions": config["max_position_embeddings"],
        "layer_norm_epsilon": config["layer_norm_eps"],
        "rotary_emb_base": config["rope_parameters"]["rope_theta"],
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "rotary_scaling_factor": config["rope_parameters"]["factor"] if dynamic else None,
        "prenorm": False,
        "qkv_proj_bias": False,
        "mlp_fc1_bias": False,
        "mlp_fc2_bias": False,
        "type_vocab_size": 2,
        "vocab_size": config["vocab_size"],
    }
    (folder / "config.json").write_text(json.dumps(published))


def gte_as_published(folder: Path, model: nn.Module) -> None:
    """The keys and the prefix of gte-multilingual-base, with the ntk rule; transformers has it as a linear one."""
    config = json.loads((folder / "config.json").read_text())
    del config["rope_parameters"]
    published = {
        "model_type": "new",
        "auto_map": {"AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel"},
        "rope_theta": 20000,
        "rope_scaling": {"type": "ntk", "factor": 8.0},
        "position_embedding_type": "rope",
        "layer_norm_type": "layer_norm",
        "logn_attention_scale": False,
        "logn_attention_clip1": False,
        "pack_qkv": True,
    }
    (folder / "config.json").write_text(json.dumps(config | published))
    save_file(_prefixed("new.", load_file(folder / "model.safetensors")), folder / "model.safetensors")


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The body's names with the prefix, once; a head's own stay."""
    plain = (prefix, "classifier.", "lm_head.", "cls.")
    bare = {name.removeprefix("gte.") if prefix == "new." else name: tensor for name, tensor in tensors.items()}
    return {name if name.startswith(plain) else f"{prefix}{name}": tensor for name, tensor in bare.items()}


def _own_names(prefix: str) -> Callable[[Path, nn.Module], None]:
    def rewrite(folder: Path, model: nn.Module) -> None:
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}  # tied ones share memory
        save_file(_prefixed(prefix, tensors), folder / "model.safetensors")

    return rewrite


_GTE = {**_SIZES, "type_vocab_size": 1, "rope_parameters": _NTK, "pad_token_id": 1}
_MODERN = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 64,
    "local_attention": 8,
    "global_attn_every_n_layers": 3,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 5e4},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e3},
    },
}
_JINA = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 12, "intermediate_size": 80}

_NOMIC = (transformers.NomicBertConfig, transformers.NomicBertModel, _SIZES, bert_pieces, "[PAD]")
_DYNAMIC = {
    **_SIZES,
    "max_position_embeddings": 16,
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 2.0},
}
_GTE_ROW = (transformers.GteConfig, transformers.GteModel, _GTE, unigram, "<pad>")

ENCODERS = {
    "nomic": Tiny(*_NOMIC, nomic_as_published),
    "nomic-native": Tiny(*_NOMIC, _own_names("nomic_bert.")),
    "nomic-dynamic": Tiny(*_NOMIC[:2], _DYNAMIC, *_NOMIC[3:], nomic_as_published),
    "gte-new": Tiny(*_GTE_ROW, gte_as_published),
    "gte-native": Tiny(*_GTE_ROW, _own_names("gte.")),
    "modernbert": Tiny(transformers.ModernBertConfig, transformers.ModernBertModel, _MODERN, bert_pieces, "[PAD]"),
    "jina-en": Tiny(JinaConfig, JinaOracle, {**_JINA, "code": False}, bert_pieces, "[PAD]"),
    "jina-code": Tiny(JinaConfig, JinaOracle, {**_JINA, "code": True}, byte_level_bpe, "<pad>"),
}
