"""Causal language models that rerank by one word, such as Qwen3-Reranker -> classifiers of one label.

Such a model reads a query and a document in a prompt, and its answer is the logit of one token after it (yes), less
that of another (no), if there is one. Both are rows of the output matrix, so their difference is the row of a head.
Owns how these models are told from others, that row, and where their prompt stands; never runs a template.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from openbei.errors import ModelError, UnsupportedModel, WeightsError
from openbei.model.spec import Array
from openbei.weights.checkpoint import PairTemplate
from openbei.weights.families.causal import LANGUAGE_MODEL, architecture_of, is_qwen3_reranker, known_prompt
from openbei.weights.families.row import Config
from openbei.weights.files import read_object
from openbei.weights.fill import EXACT
from openbei.weights.module_files import text_config
from openbei.weights.modules import Outline
from openbei.weights.repo import Source
from openbei.weights.text import chat_template


@dataclass(frozen=True, slots=True)
class Verdict:
    """Ids of the tokens whose logits are the score: yes less no, or yes alone."""

    yes: int
    no: int | None = None


class _Messages(NamedTuple):
    """How a pair becomes chat messages. structured: content is a list of parts. opens_answer: add_generation_prompt."""

    structured: bool
    opens_answer: bool


def read_verdict(source: Source, config: Config, outline: Outline, tensors: Collection[str]) -> Verdict | None:
    """A model's folder, its config.json, modules.json and tensors -> its Verdict, None of a model that has none.

    Told by a LogitScore module (sentence-transformers), by classifier_from_token in config.json (vLLM), or, in a
    folder without modules.json, by the name of Qwen3-Reranker. Raises UnsupportedModel, also for a language model that
    is called a reranker and says no more, or ModelError.
    """
    if outline.logit_score is not None:
        return _from_module(source.folder / outline.logit_score)
    tokens = config.get("classifier_from_token")
    if tokens and "score.weight" not in tensors:
        return _from_tokens(source.folder / outline.transformer, config, tokens)
    if outline.given or not architecture_of(config).endswith(LANGUAGE_MODEL):
        return None
    if is_qwen3_reranker(config, _names(config, source)):
        yes, no = token_ids(source.folder, ("yes", "no"))
        return Verdict(yes, no)
    if "rerank" in _names(config, source).lower():
        raise UnsupportedModel(
            f"{source.model_id} is a language model, and nothing in its files says by which tokens it reranks: "
            "it needs a LogitScore module, or classifier_from_token and method in config.json"
        )
    return None


def score_row(verdict: Verdict, config: Config, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The rows of a Verdict in the output matrix -> score.weight (1, C), float32.

    The matrix is lm_head, or the embedding where the config ties the two or no lm_head is stored. Raises WeightsError.
    """
    if "lm_head.bias" in tensors:
        raise WeightsError("lm_head has a bias, which is not supported to rerank by")
    tied = config.get("tie_word_embeddings")
    names = ("lm_head.weight", "model.embed_tokens.weight", "embed_tokens.weight")
    wanted = names[1:] if tied else names if tied is None else names[:1]
    matrix = next((tensors[name] for name in wanted if name in tensors), None)
    if matrix is None:
        raise WeightsError(f"the weights lack {wanted[0]}, whose rows are the score")
    yes = _row(matrix, verdict.yes)
    return {"score.weight": yes if verdict.no is None else yes - _row(matrix, verdict.no)}


def read_pair_template(source: Source, config: Config, outline: Outline) -> PairTemplate | None:
    """A model's folder -> how it puts a pair in one text, None where the tokenizer joins the two.

    sentence-transformers' files say it; without them, the prompts of two families are known here.
    """
    body = source.folder / outline.transformer
    own = chat_template(body, read_object(body / "tokenizer_config.json", optional=True))
    if outline.given:
        messages = _messages(body)
        if messages is None:
            return None
        if own is None:
            raise ModelError("sentence_bert_config.json makes messages of a pair, and there is no chat template")
        instruction = _default_prompt(source.folder)
        return PairTemplate(own, instruction, structured=messages.structured, generation_prompt=messages.opens_answer)
    known = known_prompt(config, _names(config, source))
    if own is not None and _names_roles(own) and (known or config.get("classifier_from_token")):
        return PairTemplate(own)
    return known


def token_ids(body: Path, tokens: tuple[str, ...]) -> list[int]:
    """Tokens, as the vocabulary of tokenizer.json spells them -> their ids. Raises ModelError for one that it lacks."""
    known = known_ids(body, tokens)
    for token in tokens:
        if token not in known:
            raise ModelError(f"tokenizer.json has no token {token!r}, which the model's other files name")
    return [known[token] for token in tokens]


def known_ids(body: Path, tokens: tuple[str, ...]) -> dict[str, int]:
    """Tokens -> the ids of those that are in the vocabulary of tokenizer.json."""
    file = read_object(body / "tokenizer.json")
    vocabulary: Any = (file.get("model") or {}).get("vocab") or {}
    if isinstance(vocabulary, list):  # Unigram: pieces with their scores
        vocabulary = {piece: number for number, (piece, _) in enumerate(vocabulary)}
    known = vocabulary | {added["content"]: added["id"] for added in file.get("added_tokens") or ()}
    return {token: known[token] for token in tokens if token in known}


def _messages(body: Path) -> _Messages | None:
    config = text_config(body)
    message = (config.get("modality_config") or {}).get("message")
    if message is None:
        return None
    form = message.get("format", "structured")
    wanted = {"method": "forward", "method_output_name": "logits", "format": form}
    if message != wanted or form not in ("flat", "structured"):
        raise UnsupportedModel(f"sentence_bert_config.json makes messages by {message!r}, which is not supported")
    options = dict(config.get("processing_kwargs") or {})
    chat = dict(options.pop("chat_template", None) or {})
    opens_answer = bool(chat.pop("add_generation_prompt", False))
    if options or chat:
        raise UnsupportedModel(
            f"sentence_bert_config.json has processing_kwargs {config['processing_kwargs']!r}; "
            "supported: add_generation_prompt of chat_template"
        )
    return _Messages(form == "structured", opens_answer)


def _from_module(folder: Path) -> Verdict:
    config = read_object(folder / "config.json")
    yes, no = config.get("true_token_id"), config.get("false_token_id")
    if type(yes) is not int or not (no is None or type(no) is int):
        raise ModelError(f"{folder.name}/config.json must give token ids, got true {yes!r} and false {no!r}")
    name = config.get("module_input_name", "causal_logits")
    if name != "causal_logits":
        raise UnsupportedModel(f"{folder.name}/config.json has module_input_name {name!r}; supported: causal_logits")
    return Verdict(yes, no)


def _from_tokens(body: Path, config: Config, tokens: Any) -> Verdict:
    """vLLM's keys: [no, yes] whose rows are subtracted, or one token."""
    method = config.get("method", "from_2_way_softmax" if config.get("is_original_qwen3_reranker") else None)
    ids = token_ids(body, tuple(tokens))
    if len(ids) == 2 and method == "from_2_way_softmax":
        return Verdict(ids[1], ids[0])
    if len(ids) == 1 and method in (None, "no_post_processing"):
        return Verdict(ids[0])
    raise UnsupportedModel(
        f"config.json has classifier_from_token {tokens!r} with method {method!r}; "
        "supported: two tokens from_2_way_softmax, or one"
    )


def _row(matrix: Array, token: int) -> NDArray[np.float32]:
    if matrix.dtype not in EXACT:
        raise WeightsError(f"the output matrix is stored as {matrix.dtype}, not float32, float16 or bfloat16")
    if not 0 <= token < len(matrix):
        raise WeightsError(f"token {token}, by whose logit the model reranks, is none of {len(matrix)} rows")
    return matrix[token : token + 1].astype(np.float32)


def _names(config: Config, source: Source) -> str:
    return f"{source.model_id} {config.get('_name_or_path')}"


def _names_roles(template: str) -> bool:
    return all(f"'{role}'" in template or f'"{role}"' in template for role in ("query", "document"))


def _default_prompt(folder: Path) -> str | None:
    file = read_object(folder / "config_sentence_transformers.json", optional=True)
    name = file.get("default_prompt_name")
    if name is None:
        return None
    prompts = file.get("prompts") or {}
    if name not in prompts:
        raise ModelError(f"config_sentence_transformers.json has default_prompt_name {name!r} and no such prompt")
    return str(prompts[name])
