"""EngineConfig and Checkpoint -> the facts that an engine runs by: limits, prompts, names.

Owns which of a flag and a model's file wins; never touches requests or threads.
"""

import logging
from dataclasses import dataclass, field, replace

from openbei.config import EngineConfig
from openbei.engine.cores import count_cores
from openbei.engine.executor import Device
from openbei.engine.finish import Activation
from openbei.engine.request import EngineInfo, Kind, Task
from openbei.errors import ConfigError
from openbei.model.spec import Model
from openbei.weights.checkpoint import ByToken, Checkpoint, Lookup, TextSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Served:
    """All that the half of an engine knows which reads requests: small, and it can be sent to another process.

    text: with the length limit in force. prompt: put before every input that names no prompt of its own. activation:
    of labels, or of SPLADE's words. by_token: which tokens count.
    """

    config: EngineConfig
    info: EngineInfo
    text: TextSpec
    prompt: str | None
    activation: Activation
    by_token: ByToken = field(default_factory=ByToken)
    lookup: Lookup | None = None


def describe(checkpoint: Checkpoint, text: TextSpec, config: EngineConfig, device: Device) -> EngineInfo:
    """What will be served, for /info and the start banner."""
    return EngineInfo(
        model_id=checkpoint.model_id,
        revision=checkpoint.revision,
        served_model_name=config.served_model_name or checkpoint.model_id,
        dtype=device.dtype,
        device=device.name,
        pooling="splade" if checkpoint.model.num_logs else checkpoint.model.pooling or "none",
        embedding_dim=checkpoint.model.embedding_dim,
        vocab_size=checkpoint.model.spec.vocab_size,
        max_input_length=text.max_length,
        max_batch_tokens=device.batch_tokens(config.max_batch_tokens),
        tokenization_workers=config.tokenization_workers or count_cores(),
        prompts=text.prompts,
        kind=kind_of(checkpoint),
        labels=checkpoint.labels.names if checkpoint.labels else (),
        takes_instruction=text.pair_template is not None,
        more_tasks=_more_tasks(checkpoint.model),
        multi_dim=checkpoint.model.multi_dim,
    )


def kind_of(checkpoint: Checkpoint) -> Kind:
    """What a model is, by its labels; without any, by how it embeds."""
    labels, model = checkpoint.labels, checkpoint.model
    if labels is None:
        return "sparse" if model.num_logs else "embedding" if model.pooling else "multi_vector"
    if labels.per_token:
        return "token_classifier"
    return "reranker" if labels.reranker else "classifier"


def activation_of(checkpoint: Checkpoint) -> Activation:
    """What turns the model's rows into scores, or SPLADE's into weights of words."""
    if checkpoint.labels is not None:
        return checkpoint.labels.activation
    by_logs: tuple[Activation, ...] = ("identity", "log1p_relu", "log1p_log1p_relu")
    return by_logs[0 if checkpoint.model.pooling == "sum" else checkpoint.model.num_logs]


def _more_tasks(model: Model) -> tuple[Task, ...]:
    sparse: tuple[Task, ...] = ("embed_sparse",) if model.weigher else ()
    multi: tuple[Task, ...] = ("embed_multi",) if model.multi else ()
    return sparse + multi


def limited(text: TextSpec, config: EngineConfig) -> TextSpec:
    """The model's length limits, lowered to max_input_length, and to max_batch_tokens where texts may be cut."""
    if config.max_input_length is not None:
        text = _at_most(text, config.max_input_length)
    limit = config.max_batch_tokens
    longest = max(text.max_length, text.max_query_length or 0)
    if limit is None or limit >= longest:
        return text
    if not config.auto_truncate:
        raise ConfigError(f"max_batch_tokens {limit} < max_input_length {longest} needs auto_truncate")
    return _at_most(text, limit)


def _at_most(text: TextSpec, limit: int) -> TextSpec:
    if text.expansion is not None and limit < text.expansion.length:
        raise ConfigError(f"inputs of at most {limit} tokens, but queries are filled up to {text.expansion.length}")
    query_length = text.max_query_length and min(limit, text.max_query_length)
    return replace(text, max_length=min(limit, text.max_length), max_query_length=query_length)


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
    elif prompt is not None and kind not in ("embedding", "sparse", "multi_vector"):
        log.warning("the default prompt is put before single texts only; pairs, and texts to tag by token, take none")
    return prompt
