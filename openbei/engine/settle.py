"""EngineConfig and Checkpoint -> the facts that an engine runs by: limits, prompts, names.

Owns which of a flag and a model's file wins; never touches requests or threads.
"""

import logging
import os
from dataclasses import dataclass, replace

from openbei.config import EngineConfig
from openbei.engine.executor import Device
from openbei.engine.request import EngineInfo, Kind
from openbei.errors import ConfigError
from openbei.weights.checkpoint import Checkpoint, Labels, TextSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """All that the half of an engine knows which reads requests: small, and it can be sent to another process.

    text: with the length limit in force. prompt: put before every input that names no prompt of its own.
    """

    config: EngineConfig
    info: EngineInfo
    text: TextSpec
    prompt: str | None
    labels: Labels | None


def describe(checkpoint: Checkpoint, text: TextSpec, config: EngineConfig, device: Device) -> EngineInfo:
    """What will be served, for /info and the start banner."""
    return EngineInfo(
        model_id=checkpoint.model_id,
        revision=checkpoint.revision,
        served_model_name=config.served_model_name or checkpoint.model_id,
        dtype=device.dtype,
        device=device.name,
        pooling=checkpoint.model.pooling,
        embedding_dim=checkpoint.model.embedding_dim,
        vocab_size=checkpoint.model.spec.vocab_size,
        max_input_length=text.max_length,
        max_batch_tokens=config.max_batch_tokens or device.max_batch_tokens,
        tokenization_workers=config.tokenization_workers or os.cpu_count() or 1,
        prompts=text.prompts,
        kind=kind_of(checkpoint.labels),
        labels=checkpoint.labels.names if checkpoint.labels else (),
        takes_instruction=text.pair_template is not None,
    )


def kind_of(labels: Labels | None) -> Kind:
    """What a model is, by its labels; without any it embeds."""
    if labels is None:
        return "embedding"
    if labels.per_token:
        return "token_classifier"
    return "reranker" if labels.reranker else "classifier"


def limited(text: TextSpec, config: EngineConfig) -> TextSpec:
    """The model's length limit, lowered to max_input_length, and to max_batch_tokens where texts may be cut."""
    length, limit = min(text.max_length, config.max_input_length or text.max_length), config.max_batch_tokens
    if limit is None or limit >= length:
        return replace(text, max_length=length)
    if not config.auto_truncate:
        raise ConfigError(f"max_batch_tokens {limit} < max_input_length {length} needs auto_truncate")
    return replace(text, max_length=limit)


def default_prompt(text: TextSpec, config: EngineConfig, kind: Kind) -> str | None:
    """The text put before every input that names no prompt of its own, if any; where a template makes one text of a
    pair, the instruction in it. Raises ConfigError.
    """
    name, prompts = config.default_prompt_name, text.prompts
    if name is not None and name not in prompts:
        raise ConfigError(f"default_prompt_name {name!r} is not a prompt of this model; it has {sorted(prompts)}")
    prompt = config.default_prompt if name is None else prompts[name]
    if prompt is not None and text.pair_template is not None:
        log.info("the default prompt is the instruction by which pairs are judged")
    elif prompt is not None and kind != "embedding":
        log.warning("the default prompt is put before single texts only; pairs, and texts to tag by token, take none")
    return prompt
