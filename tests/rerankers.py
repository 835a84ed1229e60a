"""A tiny random language model that reranks by its yes and no, in every form that such a folder is published in.

The files are those that sentence-transformers 5.4 and later writes (docs/cross_encoder/usage/custom_models.rst of
huggingface/sentence-transformers), the prompt is that of the model card of Qwen/Qwen3-Reranker-0.6B, and the judge is
transformers' own causal language model, with logits of all the vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.decoders import DECODERS
from tests.engine.kinds import LLAMA_REGEX
from tests.families import write_json

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
BODY = "<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {document}"
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"

TEMPLATE = (
    '{%- set wish = messages | selectattr("role", "eq", "system") | map(attribute="content") | first'
    f' | default("{INSTRUCTION}") -%}}\n'
    '{%- set query = messages | selectattr("role", "eq", "query") | map(attribute="content") | first -%}\n'
    '{%- set document = messages | selectattr("role", "eq", "document") | map(attribute="content") | first -%}\n'
    + PREFIX
    + BODY.format(instruction="{{ wish }}", query="{{ query }}", document="{{ document }}")
    + SUFFIX
    + "\n"
)
PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message.role == 'user' %}{{ message.content }}{% endif %}{% endfor %}"
)


def qwen_pieces() -> Tokenizer:
    """Qwen's kind: bytes as letters, no ends, words that never cross a special token; yes and no are tokens."""
    merges = [("y", "e"), ("ye", "s"), ("n", "o"), ("t", "h"), ("th", "e"), ("Ġ", "the"), ("e", "r")]
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, merges))
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(LLAMA_REGEX), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(special, special=True, normalized=False) for special in SPECIALS])
    return tokenizer


YES, NO = qwen_pieces().token_to_id("yes"), qwen_pieces().token_to_id("no")


def language_model(family: str = "qwen3", tied: bool = True, **changes: Any) -> PreTrainedModel:
    """A ForCausalLM with weights N(0, 0.2) and norms around one, always the same."""
    tiny = DECODERS[family]
    made = getattr(transformers, f"{tiny.model.__name__.removesuffix('Model').removesuffix('Text')}ForCausalLM")
    sizes = {"vocab_size": qwen_pieces().get_vocab_size() + 3, "max_position_embeddings": 1024}
    keys = {**tiny.keys, **sizes, "tie_word_embeddings": tied, "pad_token_id": 0, **changes}
    model: PreTrainedModel = made(tiny.config(**keys)).eval()
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
            if name.endswith("norm.weight") and not tiny.plain_norms:
                parameter.add_(1.0)
    return model


def save(folder: Path, model: PreTrainedModel, template: str | None = TEMPLATE, max_length: int = 1024) -> Path:
    """A plain transformers folder, as Qwen first published theirs -> the folder."""
    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=qwen_pieces(),
        pad_token=SPECIALS[0],
        eos_token=SPECIALS[2],
        model_max_length=max_length,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def as_cross_encoder(folder: Path, no: int | None = NO, form: str = "flat", **processing: Any) -> Path:
    """Add the files of sentence-transformers, as Qwen's later revisions have them -> the folder."""
    types = ("base.modules.transformer.Transformer", "cross_encoder.modules.logit_score.LogitScore")
    entries = [
        {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.{kind}"}
        for idx, (path, kind) in enumerate(zip(("", "1_LogitScore"), types, strict=True))
    ]
    logits = {"method": "forward", "method_output_name": "logits"}
    write_json(folder / "modules.json", entries)
    write_json(folder / "1_LogitScore" / "config.json", {"true_token_id": YES, "false_token_id": no})
    write_json(
        folder / "sentence_bert_config.json",
        {
            "transformer_task": "text-generation",
            "modality_config": {"text": logits, "message": {**logits, "format": form}},
            "module_output_name": "causal_logits",
            **processing,
        },
    )
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "activation_fn": "torch.nn.modules.linear.Identity",
            "default_prompt_name": "query",
            "model_type": "CrossEncoder",
            "prompts": {"query": INSTRUCTION, "facts": "Find facts."},
        },
    )
    return folder


def prompted(query: str, document: str, instruction: str = INSTRUCTION) -> str:
    """A pair in the prompt of the model card."""
    return PREFIX + BODY.format(instruction=instruction, query=query, document=document) + SUFFIX


def verdicts(model: PreTrainedModel, ids: Sequence[Sequence[int]]) -> list[float]:
    """The judge: the logit of yes less that of no, after each sequence by itself."""
    with torch.inference_mode():
        rows = [model(input_ids=torch.tensor([sequence])).logits[0, -1] for sequence in ids]
    return [float(row[YES] - row[NO]) for row in rows]
