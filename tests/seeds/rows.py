"""The 24 models that openbei is made for, as data: what their published files say, and who judges them.

A row's config is the published config.json at its true size; tiny() shrinks its numbers and leaves its switches. What
no public document settles is chosen so that the rows together cover every case (bfloat16 beside float16, for one).
Sources: the models' repositories and pages; the parameter counts are those that the pages state.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import transformers
from tokenizers import Tokenizer

from tests.engine.chats import LLAMA_31, TULU
from tests.engine.kinds import KINDS
from tests.jina_oracle import JinaConfig, JinaOracle

Json = dict[str, Any]


@dataclass(frozen=True)
class Text:
    """The text side: a kind of tokenizer, tokens added behind its own, and tokenizer_config.json.

    ends: the judge's tokenizer is told to put both ends around a text, as the authors' code does, because
    tokenizer.json does not. baked: tokenizer.json cuts and pads every text to so many tokens.
    """

    kind: str
    config: Json
    added: tuple[str, ...] = ()
    ends: bool = False
    baked: int | None = None

    def tokenizer(self) -> Tokenizer:
        """As in tokenizer.json."""
        made = KINDS[self.kind]()
        made.add_special_tokens(list(self.added))
        if self.baked:
            made.enable_truncation(self.baked)
            made.enable_padding(length=self.baked)
        return made


@dataclass(frozen=True)
class Modules:
    """sentence-transformers' files. text_file: the one that holds the longest input."""

    pooling: Literal["cls_token", "mean_tokens", "lasttoken"]
    normalize: bool = True
    prompts: dict[str, str] | None = None
    text_file: str = "sentence_bert_config.json"


@dataclass(frozen=True)
class Stored:
    """The weight files: the prefix of the body's tensors, tensors that nobody uses, number type, and layout."""

    prefix: str = ""
    unused: tuple[str, ...] = ()
    dtype: torch.dtype = torch.float32
    layout: Literal["one", "bin"] | int = "one"


@dataclass(frozen=True)
class Seed:
    """One model. judge: its published config -> another implementation. limit: tokens that the tiny model reads.

    modules: None of a classifier, and of a folder that does not say how to pool; pooling then says it. layers: files of
    PyTorch's beside the network, each a linear layer on its states with so many rows.
    """

    judge: Callable[[Json], Any]
    config: Json
    parameters: int
    text: Text
    limit: int
    task: Literal["embed", "rerank", "classify", "reward"] = "embed"
    modules: Modules | None = None
    stored: Stored = Stored()
    pooling: str | None = None
    tiny: Json = field(default_factory=dict)
    layers: Mapping[str, int] = field(default_factory=dict)

    def tiny_config(self) -> Json:
        """The published config with small numbers and every switch as it is."""
        tokenizer = self.text.tokenizer()
        rows = tokenizer.get_vocab_size() + SPARE_ROWS
        small = {key: _small(key, value) for key, value in self.config.items()}
        if small.get("pad_token_id", 0) >= rows:
            small["pad_token_id"] = tokenizer.token_to_id(self.text.config["pad_token"])
        return {**small, **self.tiny, "vocab_size": rows}


SPARE_ROWS = 3
_SMALL: Json = {
    **{"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80},
    **{"n_embd": 48, "n_layer": 3, "n_head": 4, "n_inner": 80, "n_positions": 64, "max_trained_positions": 16},
    **{"num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 20, "attn_logit_softcapping": 5.0},
    **{"sliding_window": 7, "max_window_layers": 2, "model_max_length": 64},
}
_POSITIONS = {512: 64, 514: 66, 8194: 98}  # others: 96


def _small(key: str, value: Any) -> Any:
    if key == "max_position_embeddings":
        return _POSITIONS.get(value, 96)
    if key == "rope_scaling" and "original_max_position_embeddings" in value:
        return {**value, "original_max_position_embeddings": 64}
    return _SMALL.get(key, value)


# The judges


def _native(kind: str, **more: Any) -> Callable[[Json], Any]:
    """A class of transformers that reads the published config; more: what the authors' own code says instead of it."""

    def make(config: Json) -> Any:
        model = getattr(transformers, kind)
        foreign = ("auto_map", "architectures")
        return model(model.config_class(**{k: v for k, v in config.items() if k not in foreign}, **more)).eval()

    return make


def _nomic(config: Json) -> Any:
    keys = {
        "hidden_size": config["n_embd"],
        "num_hidden_layers": config["n_layer"],
        "num_attention_heads": config["n_head"],
        "intermediate_size": config["n_inner"],
        "layer_norm_eps": config["layer_norm_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": config["rotary_emb_base"]},
        "vocab_size": config["vocab_size"],
        "type_vocab_size": config["type_vocab_size"],
    }
    return transformers.NomicBertModel(transformers.NomicBertConfig(**keys)).eval()


def _gte(config: Json) -> Any:
    """transformers has no ntk rule; a linear one of these numbers is the same."""
    factor, head_dim = config["rope_scaling"]["factor"], config["hidden_size"] // config["num_attention_heads"]
    foreign = ("auto_map", "architectures", "rope_scaling", "rope_theta", "model_type")
    keys = {key: value for key, value in config.items() if key not in foreign}
    rope = {"rope_type": "linear", "rope_theta": config["rope_theta"] * factor, "factor": factor ** (2 / head_dim)}
    return transformers.GteForSequenceClassification(transformers.GteConfig(**keys, rope_parameters=rope)).eval()


def _jina(code: bool) -> Callable[[Json], Any]:
    def make(config: Json) -> Any:
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        return JinaOracle(JinaConfig(**{key: config[key] for key in sizes}, code=code))

    return make


# The configs


def _sizes(width: int, layers: int, heads: int, ffn: int, vocabulary: int) -> Json:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "vocab_size": vocabulary,
    }


def _labels(*names: str) -> Json:
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}


def _bert(sizes: Json, architecture: str = "BertModel") -> Json:
    return {
        **sizes,
        "model_type": "bert",
        "architectures": [architecture],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
    }


def _roberta(sizes: Json, positions: int, architecture: str = "XLMRobertaModel") -> Json:
    return {
        **sizes,
        "model_type": "xlm-roberta" if architecture.startswith("XLM") else "roberta",
        "architectures": [architecture],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": positions,
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "position_embedding_type": "absolute",
        "type_vocab_size": 1,
    }


def _jina_bert(vocabulary: int, code: str) -> Json:
    return {
        **_sizes(768, 12, 12, 3072, vocabulary),
        "model_type": "bert",
        "architectures": ["JinaBertForMaskedLM"],
        "auto_map": {
            "AutoConfig": f"{code}--configuration_bert.JinaBertConfig",
            "AutoModel": f"{code}--modeling_bert.JinaBertModel",
            "AutoModelForMaskedLM": f"{code}--modeling_bert.JinaBertForMaskedLM",
        },
        "emb_pooler": "mean",
        "feed_forward_type": "geglu",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 8192,
        "model_max_length": 8192,
        "pad_token_id": 0,
        "position_embedding_type": "alibi",
        "type_vocab_size": 2,
    }


_NOMIC = {
    "model_type": "nomic_bert",
    "architectures": ["NomicBertModel"],
    "auto_map": {
        "AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig",
        "AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel",
        "AutoModelForMaskedLM": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertForPreTraining",
    },
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": 3072,
    "n_positions": 8192,
    "vocab_size": 30528,
    "layer_norm_epsilon": 1e-12,
    "activation_function": "swiglu",
    "prenorm": False,
    "rotary_emb_base": 1000,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None,
    "max_trained_positions": 2048,
    "qkv_proj_bias": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "type_vocab_size": 2,
}
_GTE = {
    **_sizes(768, 12, 12, 3072, 250048),
    **_labels("LABEL_0"),
    "model_type": "new",
    "architectures": ["NewForSequenceClassification"],
    "auto_map": {
        "AutoConfig": "Alibaba-NLP/new-impl--configuration.NewConfig",
        "AutoModel": "Alibaba-NLP/new-impl--modeling.NewModel",
        "AutoModelForSequenceClassification": "Alibaba-NLP/new-impl--modeling.NewForSequenceClassification",
    },
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "layer_norm_type": "layer_norm",
    "logn_attention_clip1": False,
    "logn_attention_scale": False,
    "max_position_embeddings": 8192,
    "pack_qkv": True,
    "pad_token_id": 1,
    "position_embedding_type": "rope",
    "rope_scaling": {"type": "ntk", "factor": 8.0},
    "rope_theta": 20000,
    "type_vocab_size": 1,
    "unpad_inputs": False,
    "use_memory_efficient_attention": False,
}
_QWEN2 = {
    **_sizes(1536, 28, 12, 8960, 151646),
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "auto_map": {
        "AutoModel": "modeling_qwen.Qwen2Model",
        "AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM",
        "AutoModelForSequenceClassification": "modeling_qwen.Qwen2ForSequenceClassification",
    },
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "max_window_layers": 21,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
}


def _mistral(vocabulary: int, **more: Any) -> Json:
    return {
        **_sizes(4096, 32, 32, 14336, vocabulary),
        "model_type": "mistral",
        "architectures": ["MistralModel"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        **more,
    }


_GEMMA2 = {
    **_sizes(3584, 42, 16, 14336, 256002),
    "model_type": "gemma2",
    "architectures": ["Gemma2Model"],
    "attn_logit_softcapping": 50.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "final_logit_softcapping": 30.0,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "num_key_value_heads": 8,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
}


def _llama(sizes: Json, *labels: str, **more: Any) -> Json:
    return {
        **sizes,
        **_labels(*labels),
        "model_type": "llama",
        "architectures": ["LlamaForSequenceClassification"],
        "attention_bias": False,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        **more,
    }


_LLAMA31_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_MINI, _BERT_BASE = _sizes(384, 6, 12, 1536, 30522), _sizes(768, 12, 12, 3072, 30522)
_BERT_LARGE, _XLM_LARGE = _sizes(1024, 24, 16, 4096, 30522), _sizes(1024, 24, 16, 4096, 250002)
_ROBERTA_BASE, _XLM_BASE = _sizes(768, 12, 12, 3072, 50265), _sizes(768, 12, 12, 3072, 250002)
_LLAMA_8B, _LLAMA_70B = _sizes(4096, 32, 32, 14336, 128256), _sizes(8192, 80, 64, 28672, 128256)
_EMOTIONS = (
    *("admiration", "amusement", "anger", "annoyance", "approval", "caring", "confusion", "curiosity", "desire"),
    *("disappointment", "disapproval", "disgust", "embarrassment", "excitement", "fear", "gratitude", "grief", "joy"),
    *("love", "nervousness", "optimism", "pride", "realization", "relief", "remorse", "sadness", "surprise", "neutral"),
)
_LANGUAGES = (
    *("ja", "nl", "ar", "pl", "de", "it", "pt", "tr", "es", "hi"),
    *("el", "ur", "bg", "en", "fr", "zh", "ru", "th", "sw", "vi"),
)

# The text sides

_BERT_SPECIALS = {f"{role}_token": f"[{role.upper()}]" for role in ("unk", "sep", "pad", "cls", "mask")}
_ROBERTA_SPECIALS = {
    **{"bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>"},
    **{"unk_token": "<unk>", "pad_token": "<pad>"},
}
_LLAMA2_SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
_LLAMA3_SPECIALS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
_BOTH_ENDS = {"add_bos_token": True, "add_eos_token": True}


def _word_piece(max_length: int, **changes: Any) -> Text:
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "strip_accents": None, **_BERT_SPECIALS}
    return Text("bert", {**config, "model_max_length": max_length}, **changes)


def _unigram(max_length: int) -> Text:
    config = {"tokenizer_class": "XLMRobertaTokenizer", **_ROBERTA_SPECIALS, "model_max_length": max_length}
    return Text("xlm-roberta", config)


def _roberta_bpe(max_length: int) -> Text:
    return Text("roberta", {"tokenizer_class": "RobertaTokenizer", **_ROBERTA_SPECIALS, "model_max_length": max_length})


_MISTRAL_TEXT = Text(
    "mistral",
    {"tokenizer_class": "LlamaTokenizer", **_LLAMA2_SPECIALS, **_BOTH_ENDS, "model_max_length": 10**30},
    ends=True,
)
_ICL_TEXT = Text(
    "mistral",
    {**_MISTRAL_TEXT.config, "pad_token": "<unk>"},
    added=("<instruct>", "<query>", "<response>"),
    ends=True,
)
_GEMMA_TEXT = Text(
    "gemma",
    {
        "tokenizer_class": "GemmaTokenizer",
        **{"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"},
        **_BOTH_ENDS,
        "model_max_length": 10**30,
    },
    added=("<instruct>", "<query>"),
    ends=True,
)
_QWEN2_TEXT = Text(
    "qwen2",
    {
        "tokenizer_class": "Qwen2Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_qwen.Qwen2Tokenizer", "tokenization_qwen.Qwen2TokenizerFast"]},
        **{"add_eos_token": True, "bos_token": None},
        **{"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "model_max_length": 32768},
    },
    ends=True,
)


def _llama3_text(template: str | None, pad: str | None, max_length: int = 131072) -> Text:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **_LLAMA3_SPECIALS, "model_max_length": max_length}
    config |= {"chat_template": template} if template else {}
    return Text("llama3", config | ({"pad_token": pad} if pad else {}), added=(pad,) if pad else ())


_SEARCH = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "
_REPRESENT = "Represent this sentence for searching relevant passages: "
_E5_PROMPTS = {
    "web_search_query": _SEARCH,
    "sts_query": "Instruct: Retrieve semantically similar text.\nQuery: ",
    "summarization_query": ("Instruct: Given a news summary, retrieve other semantically similar summaries\nQuery: "),
    "bitext_query": "Instruct: Retrieve parallel sentences.\nQuery: ",
}
_GEMMA_PROMPTS = {
    "web_search_query": "<instruct>Given a web search query, retrieve relevant passages that answer the query.\n<query>"
}
_POSITION_IDS = ("embeddings.position_ids",)
_ROBERTA_HEAD, _LLAMA_HEAD = "XLMRobertaForSequenceClassification", "LlamaForSequenceClassification"
_BGE_LARGE = Seed(
    _native("BertModel"),
    _bert(_BERT_LARGE),
    335_141_888,
    _word_piece(512),
    64,
    modules=Modules("cls_token"),
    stored=Stored(unused=_POSITION_IDS),
)

SEEDS: dict[str, Seed] = {
    "all-MiniLM-L6-v2": Seed(
        _native("BertModel"),
        _bert(_MINI),
        22_713_216,
        _word_piece(512, baked=16),
        32,
        modules=Modules("mean_tokens"),
        stored=Stored(unused=_POSITION_IDS),
    ),
    "bge-large-en-v1.5": _BGE_LARGE,
    "UAE-Large-V1": Seed(
        _native("BertModel"),
        _bert(_BERT_LARGE),
        335_141_888,
        _word_piece(512),
        64,
        modules=Modules("cls_token", normalize=False),
    ),
    "mxbai-embed-large-v1": Seed(
        _native("BertModel"),
        _bert(_BERT_LARGE),
        335_141_888,
        _word_piece(512),
        64,
        modules=Modules("cls_token", normalize=False, prompts={"query": _REPRESENT, "passage": ""}),
        stored=Stored(dtype=torch.float16),
    ),
    "bge-m3": Seed(
        _native("XLMRobertaModel"),
        _roberta(_XLM_LARGE, 8194),
        567_754_752,
        _unigram(8192),
        80,
        modules=Modules("cls_token"),
        stored=Stored(layout="bin"),
        layers={"sparse_linear.pt": 1, "colbert_linear.pt": 48},
    ),
    "snowflake-arctic-embed-l-v2.0": Seed(
        _native("XLMRobertaModel"),
        _roberta(_XLM_LARGE, 8194),
        567_754_752,
        _unigram(8192),
        96,
        modules=Modules("cls_token", prompts={"query": "query: "}),
    ),
    "multilingual-e5-large-instruct": Seed(
        _native("XLMRobertaModel"),
        _roberta(_XLM_LARGE, 514),
        559_890_432,
        _unigram(512),
        64,
        modules=Modules("mean_tokens", text_file="sentence_xlm-roberta_config.json"),
        stored=Stored(dtype=torch.float16),
    ),
    "jina-embeddings-v2-base-en": Seed(
        _jina(code=False),
        _jina_bert(30528, "jinaai/jina-bert-implementation"),
        137_368_320,
        _word_piece(2147483648),
        64,
        modules=Modules("mean_tokens"),
        stored=Stored("bert.", ("cls.predictions.bias",), dtype=torch.bfloat16),
        tiny={"num_attention_heads": 12},
    ),
    "jina-embeddings-v2-base-code": Seed(
        _jina(code=True),
        _jina_bert(61056, "jinaai/jina-bert-v2-qk-post-norm"),
        160_869_120,
        _roberta_bpe(8192),
        64,
        modules=Modules("mean_tokens", normalize=False),
        stored=Stored(dtype=torch.float16),
        tiny={"num_attention_heads": 12},
    ),
    "nomic-embed-text-v1.5": Seed(
        _nomic,
        _NOMIC,
        136_731_648,
        _word_piece(8192),
        64,
        modules=Modules("mean_tokens", normalize=False),
    ),
    "gte-Qwen2-1.5B-instruct": Seed(
        _native("Qwen2Model", is_causal=False),
        _QWEN2,
        1_543_268_864,
        _QWEN2_TEXT,
        96,
        modules=Modules("lasttoken", prompts={"query": _SEARCH}),
        stored=Stored("model.", ("lm_head.weight",), layout=2),
    ),
    "e5-mistral-7b-instruct": Seed(
        _native("MistralModel"),
        _mistral(32000),
        7_110_660_096,
        _MISTRAL_TEXT,
        90,
        modules=Modules("lasttoken", prompts=_E5_PROMPTS),
        stored=Stored(dtype=torch.float16, layout=2),
    ),
    "SFR-Embedding-Mistral": Seed(
        _native("MistralModel"),
        _mistral(32000, torch_dtype="float32"),
        7_110_660_096,
        _MISTRAL_TEXT,
        80,
        modules=Modules("lasttoken", normalize=False),
        stored=Stored(dtype=torch.float16, layout=3),
    ),
    "bge-en-icl": Seed(
        _native("MistralModel"),
        _mistral(32003),
        7_110_672_384,
        _ICL_TEXT,
        96,
        stored=Stored(layout=3),
        pooling="last-token",
    ),
    "bge-multilingual-gemma2": Seed(
        _native("Gemma2Model", attn_implementation="eager"),
        _GEMMA2,
        9_241_713_152,
        _GEMMA_TEXT,
        96,
        modules=Modules("lasttoken", prompts=_GEMMA_PROMPTS),
        stored=Stored(layout=4),
    ),
    "bge-reranker-large": Seed(
        _native(_ROBERTA_HEAD),
        {**_roberta(_XLM_LARGE, 514, _ROBERTA_HEAD), **_labels("LABEL_0")},
        559_891_457,
        _unigram(512),
        64,
        "rerank",
        stored=Stored("roberta.", ("roberta.embeddings.position_ids",)),
    ),
    "bge-reranker-v2-m3": Seed(
        _native(_ROBERTA_HEAD),
        {**_roberta(_XLM_LARGE, 8194, _ROBERTA_HEAD), **_labels("LABEL_0")},
        567_755_777,
        _unigram(8192),
        96,
        "rerank",
        stored=Stored("roberta."),
    ),
    "MedCPT-Cross-Encoder": Seed(
        _native("BertForSequenceClassification"),
        {**_bert(_BERT_BASE, "BertForSequenceClassification"), **_labels("LABEL_0")},
        109_483_009,
        _word_piece(512),
        64,
        "rerank",
        stored=Stored("bert.", ("bert.embeddings.position_ids",), layout="bin"),
    ),
    "gte-multilingual-reranker-base": Seed(
        _gte, _GTE, 305_959_681, _unigram(8192), 96, "rerank", stored=Stored("new.", dtype=torch.float16)
    ),
    "roberta-base-go_emotions": Seed(
        _native("RobertaForSequenceClassification"),
        {
            **_roberta(_ROBERTA_BASE, 514, "RobertaForSequenceClassification"),
            **_labels(*_EMOTIONS),
            "problem_type": "multi_label_classification",
        },
        124_667_164,
        _roberta_bpe(512),
        64,
        "classify",
        stored=Stored("roberta."),
    ),
    "xlm-roberta-base-language-detection": Seed(
        _native(_ROBERTA_HEAD),
        {**_roberta(_XLM_BASE, 514, _ROBERTA_HEAD), **_labels(*_LANGUAGES)},
        278_059_028,
        _unigram(512),
        64,
        "classify",
        stored=Stored("roberta."),
    ),
    "Skywork-Reward-Llama-3.1-8B-v0.2": Seed(
        _native(_LLAMA_HEAD),
        _llama(_LLAMA_8B, "LABEL_0", rope_scaling=_LLAMA31_ROPE, pad_token_id=128004),
        7_504_928_768,
        _llama3_text(LLAMA_31, "<|finetune_right_pad_id|>"),
        96,
        "reward",
        stored=Stored("model.", dtype=torch.bfloat16, layout=4),
    ),
    "Llama-3.1-Tulu-3-8B-RM": Seed(
        _native(_LLAMA_HEAD),
        _llama({**_LLAMA_8B, "vocab_size": 128264}, "LABEL_0", rope_scaling=_LLAMA31_ROPE, pad_token_id=128256),
        7_504_961_536,
        _llama3_text(TULU, "<pad>"),
        96,
        "reward",
        stored=Stored("model.", dtype=torch.bfloat16, layout=4),
    ),
    "Meta-Llama-3-70B-InstructForSequenceClassification": Seed(
        _native(_LLAMA_HEAD),
        _llama(_LLAMA_70B, "LABEL_0", "LABEL_1", max_position_embeddings=8192),
        69_503_049_728,
        _llama3_text(None, None, 8192),
        96,
        "classify",
        stored=Stored("model.", dtype=torch.bfloat16, layout=2),
    ),
}
