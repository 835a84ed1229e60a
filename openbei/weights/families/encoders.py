"""The rows of BERT and its kin: RoBERTa, XLM-RoBERTa, DistilBERT, MPNet, and JinaBERT v2 in both kinds. Data.

Sources: transformers' configuration and modeling files of each; for JinaBERT the equations of the model's own code.
"""

from dataclasses import replace

from openbei.weights.families.heads import SEQUENCE, TOKEN, distilbert_head, pooler_head, roberta_head, token_head
from openbei.weights.families.row import Family

BERT = Family(
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
    heads={SEQUENCE: pooler_head, TOKEN: token_head},
)

ROBERTA = replace(
    BERT,
    name="roberta",
    pad_key="pad_token_id",
    prefixes=("roberta.",),
    ignored=("embeddings.position_ids", "embeddings.token_type_ids", "pooler.*", "lm_head.*"),
    heads={SEQUENCE: roberta_head, TOKEN: token_head},
)

XLM_ROBERTA = replace(ROBERTA, name="xlm-roberta", prefixes=("roberta.", "xlm-roberta."))

DISTILBERT = Family(
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
    heads={SEQUENCE: distilbert_head, TOKEN: token_head},
)

MPNET = replace(
    BERT,
    name="mpnet",
    keys={field: key for field, key in BERT.keys.items() if field != "num_segments"}
    | {"num_relative_buckets": "relative_attention_num_buckets"},
    defaults={"norm_eps": 1e-12, "activation": "gelu", "num_relative_buckets": 32},
    # transformers' MPNetEmbeddings counts from pad id 1 whatever config.json says.
    fixed={"position_offset": 2},
    names={name: tensor for name, tensor in BERT.names.items() if name != "segment"}
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
    heads={SEQUENCE: roberta_head, TOKEN: token_head},
)

JINA = replace(
    BERT,
    name="jina-bert",
    keys={field: key for field, key in BERT.keys.items() if field != "activation"}
    | {"num_positions": ("model_max_length", "max_position_embeddings")},
    defaults={"norm_eps": 1e-12, "num_segments": 2},
    fixed={"activation": "gelu", "alibi": True},
    names={
        **{name: tensor for name, tensor in BERT.names.items() if name != "position"},
        "gate": "encoder.layer.{}.mlp.gated_layers[1/2]",
        "up": "encoder.layer.{}.mlp.gated_layers[2/2]",
        "down": "encoder.layer.{}.mlp.wo",
        "ffn_norm": "encoder.layer.{}.mlp.layernorm",
    },
    biases={"gate": False, "up": False},
    exact={**BERT.exact, "position_embedding_type": "alibi", "feed_forward_type": "geglu"},
    code=("*modeling_bert.JinaBert*",),
    # jina-reranker-v1-tiny-en and -turbo-en hold a head's tensors and name the model without one.
    heads={SEQUENCE: pooler_head, "JinaBertModel": pooler_head},
)

JINA_CODE = replace(
    JINA,
    name="jina-bert-qk-norm",
    names={
        **JINA.names,
        "q_norm": "encoder.layer.{}.attention.self.layer_norm_q",
        "k_norm": "encoder.layer.{}.attention.self.layer_norm_k",
        "inner_norm": "encoder.layer.{}.attention.output.LayerNorm",
        "attention_norm": "encoder.layer.{}.layer_norm_1",
        "up": "encoder.layer.{}.mlp.up_gated_layer[1/2]",
        "gate": "encoder.layer.{}.mlp.up_gated_layer[2/2]",
        "down": "encoder.layer.{}.mlp.down_layer",
        "ffn_norm": "encoder.layer.{}.layer_norm_2",
    },
    heads={},
)

ENCODERS: dict[str, Family] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "camembert": ROBERTA,
    "xlm-roberta": XLM_ROBERTA,
    "distilbert": DISTILBERT,
    "mpnet": MPNET,
}
