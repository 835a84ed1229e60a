"""Causal language models that rerank: what config.json and a name say of them, and the prompts that no file holds.

Owns which families do so and how their logits relate to a classifier's; never reads a file or a tensor.
"""

import re
from typing import Any

from openbei.errors import UnsupportedModel
from openbei.weights.checkpoint import PairTemplate
from openbei.weights.families.heads import SEQUENCE
from openbei.weights.families.row import Config

LANGUAGE_MODEL = "ForCausalLM"
_QWEN3_RERANKER = re.compile(r"qwen3-reranker", re.IGNORECASE)
_GEMMA2_SOFTCAP = 30.0

# Source: the model card of Qwen/Qwen3-Reranker-0.6B, and the template in its later revisions.
_QWEN3_PROMPT = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: {{ messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first "
    "| default('Given a web search query, retrieve relevant passages that answer the query') }}\n"
    "<Query>: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}\n"
    "<Document>: {{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n{{ '' }}"  # Jinja drops a newline at the very end
)

# Source: the model card of nvidia/llama-nemotron-rerank-1b-v2. The spaces are its own.
_NEMOTRON_PROMPT = (
    "question:{{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }} \n \n "
    "passage:{{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}"
)


def architecture_of(config: Config) -> str:
    """A config.json -> the first architecture that it names, "" for none."""
    return str((config.get("architectures") or [""])[0])


def is_qwen3_reranker(config: Config, name: str) -> bool:
    """Whether a model of this config.json and this name is one of Qwen3-Reranker, in whichever form."""
    return config.get("model_type") == "qwen3" and _QWEN3_RERANKER.search(name) is not None


def known_prompt(config: Config, name: str) -> PairTemplate | None:
    """A config.json and a model's name -> the prompt that its authors publish outside its files, if any."""
    if is_qwen3_reranker(config, name):
        return PairTemplate(_QWEN3_PROMPT)
    if config.get("model_type") == "llama_bidirec":
        return PairTemplate(_NEMOTRON_PROMPT, complete=False)
    return None


def as_classifier(config: Config) -> dict[str, Any]:
    """The config.json of a language model -> that of the classifier of one label that it amounts to.

    Raises UnsupportedModel where its logits are more than the output matrix times a state.
    """
    architecture = architecture_of(config)
    if not architecture.endswith((LANGUAGE_MODEL, SEQUENCE)):
        raise UnsupportedModel(f"architecture {architecture} has no logits to rerank by; supported: a ForCausalLM")
    softcap = config.get("final_logit_softcapping", _GEMMA2_SOFTCAP if config.get("model_type") == "gemma2" else None)
    if softcap is not None:
        raise UnsupportedModel(f"config.json has final_logit_softcapping {softcap!r}; supported to rerank by: null")
    named = architecture.removesuffix(LANGUAGE_MODEL).removesuffix(SEQUENCE) + SEQUENCE
    return {**config, "architectures": [named], "id2label": None}
