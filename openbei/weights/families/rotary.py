"""The rows of the encoders with rotary positions: NomicBERT, GTE and ModernBERT. Data, and the rules of their numbers.

Sources: transformers' configuration and modeling files of each, and the models' own code for its older config keys.
"""

from openbei.errors import UnsupportedModel
from openbei.model.spec import Rope
from openbei.weights.families.encoders import BERT
from openbei.weights.families.heads import SEQUENCE, TOKEN, modern_head, modern_token_head, pooler_head, token_head
from openbei.weights.families.rope import FULL, LOCAL, RopeKeys, read_rope
from openbei.weights.families.row import Config, Family, Values, integer, real


def _nomic(config: Config, values: Values) -> Values:
    """rotary_scaling_factor asks for the dynamic rule, beyond max_trained_positions."""
    rope = read_rope(config, RopeKeys("rotary_emb_base", None))
    factor = config.get("rotary_scaling_factor")
    if factor is not None:
        trained = integer("max_trained_positions", config.get("max_trained_positions"), minimum=1)
        rope = Rope(rope.theta, "dynamic", real("rotary_scaling_factor", factor), original_length=trained)
    return {"rope": rope}


_NATIVE_NAMES = {
    "embedding_norm": "embeddings.LayerNorm",
    "q": "layers.{}.self_attn.q_proj",
    "k": "layers.{}.self_attn.k_proj",
    "v": "layers.{}.self_attn.v_proj",
    "out": "layers.{}.self_attn.o_proj",
    "attention_norm": "layers.{}.post_attention_layernorm",
    "gate": "layers.{}.mlp.gate_proj",
    "up": "layers.{}.mlp.up_proj",
    "down": "layers.{}.mlp.down_proj",
    "ffn_norm": "layers.{}.post_mlp_layernorm",
}

NOMIC = Family(
    name="nomic_bert",
    keys={
        "vocab_size": "vocab_size",
        "width": ("n_embd", "hidden_size"),
        "num_layers": ("n_layer", "num_hidden_layers"),
        "num_heads": ("n_head", "num_attention_heads"),
        "ffn_width": ("n_inner", "intermediate_size"),
        "norm_eps": ("layer_norm_epsilon", "layer_norm_eps"),
        "activation": "hidden_act",
        "num_positions": ("n_positions", "max_position_embeddings"),
        "num_segments": "type_vocab_size",
    },
    defaults={"norm_eps": 1e-12, "activation": "silu", "num_segments": 2},
    derive=_nomic,
    names={
        "word": "embeddings.word_embeddings",
        "segment": "embeddings.token_type_embeddings",
        "embedding_norm": "emb_ln",
        "q": "encoder.layers.{}.attn.Wqkv[1/3]",
        "k": "encoder.layers.{}.attn.Wqkv[2/3]",
        "v": "encoder.layers.{}.attn.Wqkv[3/3]",
        "out": "encoder.layers.{}.attn.out_proj",
        "attention_norm": "encoder.layers.{}.norm1",
        "gate": "encoder.layers.{}.mlp.fc12",
        "up": "encoder.layers.{}.mlp.fc11",
        "down": "encoder.layers.{}.mlp.fc2",
        "ffn_norm": "encoder.layers.{}.norm2",
    },
    other_names=_NATIVE_NAMES,
    biases={
        **dict.fromkeys(("q", "k", "v", "out"), "qkv_proj_bias"),
        **dict.fromkeys(("gate", "up"), "mlp_fc1_bias"),
        "down": "mlp_fc2_bias",
    },
    prefixes=("bert.", "nomic_bert."),
    ignored=("embeddings.position_ids", "pooler.*", "cls.*", "*rotary_emb.inv_freq", "*original_inv_freq"),
    exact={
        "activation_function": "swiglu",
        "prenorm": False,
        "use_rms_norm": False,
        "parallel_block": False,
        "causal": False,
        "rotary_emb_fraction": 1.0,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "moe_every_n_layers": 0,
        "quantization_config": None,
    },
    code=("*modeling_hf_nomic_bert.NomicBert*",),
    heads={SEQUENCE: pooler_head, TOKEN: token_head},
)


def _gte(config: Config, values: Values) -> Values:
    native = config.get("model_type") == "gte"
    return {"rope": read_rope(config, RopeKeys(default=160_000.0 if native else 10_000.0))}


GTE = Family(
    name="gte",
    keys=BERT.keys,
    defaults={"norm_eps": 1e-12, "activation": "gelu", "num_segments": 1},
    derive=_gte,
    names={
        "word": "embeddings.word_embeddings",
        "segment": "embeddings.token_type_embeddings",
        "embedding_norm": "embeddings.LayerNorm",
        "q": "encoder.layer.{}.attention.qkv_proj[1/3]",
        "k": "encoder.layer.{}.attention.qkv_proj[2/3]",
        "v": "encoder.layer.{}.attention.qkv_proj[3/3]",
        "out": "encoder.layer.{}.attention.o_proj",
        "attention_norm": "encoder.layer.{}.attn_ln",
        "up": "encoder.layer.{}.mlp.up_gate_proj[1/2]",
        "gate": "encoder.layer.{}.mlp.up_gate_proj[2/2]",
        "down": "encoder.layer.{}.mlp.down_proj",
        "ffn_norm": "encoder.layer.{}.mlp_ln",
    },
    other_names=_NATIVE_NAMES,
    biases={"gate": False, "up": False},
    prefixes=("new.", "gte."),
    ignored=("embeddings.position_ids", "pooler.*", "lm_head.*", "*rotary_emb.inv_freq", "*original_inv_freq"),
    exact={
        "position_embedding_type": "rope",
        "layer_norm_type": "layer_norm",
        "logn_attention_scale": False,
        "logn_attention_clip1": False,
        "pack_qkv": True,
        "quantization_config": None,
    },
    # Alibaba-NLP/new-impl, and the copy of it under other names that Snowflake/snowflake-arctic-embed-m-v2.0 brings.
    code=("*modeling.New*", "*modeling_hf_alibaba_nlp_gte.Gte*"),
    heads={SEQUENCE: pooler_head, TOKEN: token_head},
)


def _modernbert(config: Config, values: Values) -> Values:
    every = integer("global_attn_every_n_layers", config.get("global_attn_every_n_layers", 3), minimum=1)
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = [LOCAL if number % every else FULL for number in range(values["num_layers"])]
    if len(kinds) != values["num_layers"] or set(kinds) - {FULL, LOCAL}:
        raise UnsupportedModel(f"config.json has layer_types {kinds!r}; supported: {FULL} and {LOCAL}, one a layer")
    return {
        "window": integer("local_attention", config.get("local_attention", 128), minimum=1),
        "local_layers": tuple(kind == LOCAL for kind in kinds),
        "rope": read_rope(config, RopeKeys("global_rope_theta", 160_000.0)),
        "local_rope": read_rope(config, RopeKeys("local_rope_theta", 10_000.0, LOCAL)),
    }


MODERNBERT = Family(
    name="modernbert",
    keys={
        **{field: key for field, key in BERT.keys.items() if field != "num_segments"},
        "norm_eps": "norm_eps",
        "activation": "hidden_activation",
    },
    defaults={"norm_eps": 1e-5, "activation": "gelu"},
    fixed={"norm_placement": "pre"},
    derive=_modernbert,
    names={
        "word": "embeddings.tok_embeddings",
        "embedding_norm": "embeddings.norm",
        "final_norm": "final_norm",
        "q": "layers.{}.attn.Wqkv[1/3]",
        "k": "layers.{}.attn.Wqkv[2/3]",
        "v": "layers.{}.attn.Wqkv[3/3]",
        "out": "layers.{}.attn.Wo",
        "attention_norm": "layers.{}.attn_norm",
        "gate": "layers.{}.mlp.Wi[1/2]",
        "up": "layers.{}.mlp.Wi[2/2]",
        "down": "layers.{}.mlp.Wo",
        "ffn_norm": "layers.{}.mlp_norm",
    },
    biases={
        **dict.fromkeys(("embedding_norm", "attention_norm", "ffn_norm", "final_norm"), "norm_bias"),
        **dict.fromkeys(("q", "k", "v", "out"), "attention_bias"),
        **dict.fromkeys(("gate", "up", "down"), "mlp_bias"),
    },
    prefixes=("model.",),
    ignored=("head.*", "decoder.*"),
    exact={"quantization_config": None},
    first_norm=False,
    heads={SEQUENCE: modern_head, TOKEN: modern_token_head},
)

ROTARY: dict[str, Family] = {"nomic_bert": NOMIC, "new": GTE, "gte": GTE, "modernbert": MODERNBERT}
