"""tokenizer_config.json and the files beside it -> TextSpec, the text side of a model.

Owns what tokenizer.json leaves out: length limits, prompts, the tokens at the ends of a text, tokens added later, the
chat template. Never reads tokenizer.json itself: the engine's tokenizer does, and settles where the files differ.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openbei.errors import ModelError, ModelNotFound, UnsupportedModel
from openbei.weights.checkpoint import AddedToken, Edge, TextSpec
from openbei.weights.files import read_object
from openbei.weights.module_files import text_config

_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

# What a folder without tokenizer.json may hold instead; only the authors' Python code makes ids of these.
_SLOW_FILES = ("tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "vocab.json", "vocab.txt")

# Tokenizer classes that, in transformers 4, always built the ends of a text from add_bos_token and add_eos_token.
# Every other class left them to tokenizer.json, so there a false is no wish.
_BUILDERS = ("Llama", "CodeLlama", "Gemma", "Cohere")

# Classes of which transformers makes the normalizer anew, by these keys of tokenizer_config.json.
_BERT_CLASSES = ("Bert", "DistilBert", "Electra", "MPNet")
_BERT_KEYS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}

# gte-Qwen2's tokenizer code does one thing that tokenizer.json does not: it appends this token.
_GTE_QWEN2_MODEL, _GTE_QWEN2_CODE, _GTE_QWEN2_LAST = "modeling_qwen.Qwen2Model", "tokenization_qwen.", "<|endoftext|>"
_NO_LIMIT = 1_000_000


def read_text(folder: Path, body: Path, limit: int) -> TextSpec:
    """A model's folder and its network's -> the text side. limit: rows of the position table that tokens can take.

    The longest input is max_seq_length of sentence_bert_config.json, else model_max_length of
    tokenizer_config.json, else limit, and never more than limit.
    """
    file = tokenizer_file(body)
    config, tokenizer = text_config(body), read_object(body / "tokenizer_config.json", optional=True)
    refuse_own_code(tokenizer)
    tokens = special_tokens(body, tokenizer)
    first, last = edges(tokenizer, tokens, read_object(body / "config.json", optional=True))
    return TextSpec(
        tokenizer_file=file,
        max_length=_max_length(config, tokenizer, limit),
        prompts=_prompts(folder),
        lower_case=bool(config.get("do_lower_case", False)),
        first=first,
        last=last,
        added_tokens=added_tokens(tokenizer),
        special_tokens=tokens,
        chat_template=chat_template(body, tokenizer),
        bert_normalizer=bert_normalizer(tokenizer),
        split_special_tokens=bool(tokenizer.get("split_special_tokens", False)),
    )


def tokenizer_file(body: Path) -> Path:
    """The folder of a network -> its tokenizer.json. Raises ModelNotFound, naming what is there instead."""
    file = body / "tokenizer.json"
    if file.exists():
        return file
    slow = [name for name in _SLOW_FILES if (body / name).exists()]
    instead = f" (only {', '.join(slow)}, which openbei does not read)" if slow else ""
    raise ModelNotFound(
        f"{body} has no tokenizer.json{instead}: make one with transformers, "
        "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    )


def refuse_own_code(config: Mapping[str, Any]) -> None:
    """Raise UnsupportedModel where tokenizer_config.json takes the tokenizer from Python code of the model's own."""
    named = (config.get("auto_map") or {}).get("AutoTokenizer") or ()
    for name in [named] if isinstance(named, str) else named:
        if name and not _tail(name).startswith(_GTE_QWEN2_CODE):
            raise UnsupportedModel(
                f"tokenizer_config.json takes the tokenizer from the model's own code, {name}, which openbei does not "
                "run: it may give other ids than tokenizer.json"
            )


def special_tokens(body: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """tokenizer_config.json and special_tokens_map.json -> special tokens by role, those that are set.

    As transformers reads them: the map wins in a folder without added_tokens_decoder, else it is not looked at.
    """
    if "added_tokens_decoder" not in config:
        config = {**config, **read_object(body / "special_tokens_map.json", optional=True)}
    tokens = {role: _content(config.get(role)) for role in _ROLES}
    return {role: token for role, token in tokens.items() if token is not None}


def added_tokens(config: Mapping[str, Any]) -> dict[int, AddedToken]:
    """added_tokens_decoder of tokenizer_config.json -> tokens by id."""
    tokens = config.get("added_tokens_decoder") or {}
    try:
        return {
            int(number): AddedToken(token["content"], **{flag: token[flag] for flag in _FLAGS if flag in token})
            for number, token in tokens.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"tokenizer_config.json: added_tokens_decoder must map ids to tokens: {error!r}") from error


def bert_normalizer(config: Mapping[str, Any]) -> dict[str, bool | None]:
    """tokenizer_config.json -> settings of the BertNormalizer, those that are given, where its class reads them."""
    if not str(config.get("tokenizer_class", "")).startswith(_BERT_CLASSES):
        return {}
    return {name: config[key] for key, name in _BERT_KEYS.items() if key in config}


def edges(
    config: Mapping[str, Any], tokens: Mapping[str, str], network: Mapping[str, Any]
) -> tuple[Edge | None, Edge | None]:
    """What tokenizer_config.json (or, of gte-Qwen2, config.json) wants before and after every text.

    The tokenizers library knows only tokenizer.json, and so loses an EOS that is asked for here alone; last-token
    pooling would then read another token. Raises ModelError if the token has no name.
    """
    first, last = (_edge(config, tokens, role) for role in ("bos", "eos"))
    auto_model = (network.get("auto_map") or {}).get("AutoModel") or ""
    if network.get("model_type") == "qwen2" and _tail(auto_model) == _GTE_QWEN2_MODEL:
        last = Edge(_GTE_QWEN2_LAST, wanted=True)
    return first, last


def chat_template(body: Path, config: Mapping[str, Any]) -> str | None:
    """The Jinja template that makes a text of messages, the "default" one where there are several; or None."""
    file = body / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template") or read_object(body / "chat_template.json", optional=True).get(
        "chat_template"
    )
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _max_length(config: Mapping[str, Any], tokenizer: Mapping[str, Any], limit: int) -> int:
    length = config.get("max_seq_length")
    if length is None:
        length = tokenizer.get("model_max_length") or limit
    if not isinstance(length, int | float) or length < 1:
        raise UnsupportedModel(f"the model's files limit inputs to {length!r} tokens; it must be at least 1")
    return limit if length >= _NO_LIMIT else min(int(length), limit)


def _prompts(folder: Path) -> dict[str, str]:
    prompts = read_object(folder / "config_sentence_transformers.json", optional=True).get("prompts") or {}
    for name, text in prompts.items():
        if not isinstance(text, str):
            raise UnsupportedModel(f"config_sentence_transformers.json has a prompt {name!r} that is not text")
    return dict(prompts)


def _edge(config: Mapping[str, Any], tokens: Mapping[str, str], role: str) -> Edge | None:
    wanted, token = config.get(f"add_{role}_token"), tokens.get(f"{role}_token")
    if wanted and token is None:
        raise ModelError(f"tokenizer_config.json has add_{role}_token true, but no {role}_token")
    if token is None or wanted is None:
        return None
    if not wanted and not str(config.get("tokenizer_class", "")).startswith(_BUILDERS):
        return None
    return Edge(token, bool(wanted))


def _content(token: Any) -> str | None:
    """A special token as the files write it, a string or an object with content."""
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def _tail(name: str) -> str:
    """A class of auto_map without the repository that may stand before it."""
    return name.rpartition("--")[2]
