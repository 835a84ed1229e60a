"""What openbei understood of a model or serves, as facts (a dict ready for JSON) and as text for a person.

Owns wording and alignment only; never reads files, loads models or prints.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from openbei.config import EngineConfig
from openbei.engine.request import EngineInfo, Kind
from openbei.model.spec import HeadLayer, Model, ModelSpec, num_parameters
from openbei.model.stored import stored_as
from openbei.weights.checkpoint import Checkpoint
from openbei.weights.store import SHORT, Entry

Facts = dict[str, Any]

EXAMPLES: dict[Kind, tuple[str, str]] = {  # path and body of a first request
    "embedding": ("/v1/embeddings", '{"input": "The sky is blue."}'),
    "sparse": ("/embed_sparse", '{"inputs": "The sky is blue."}'),
    "multi_vector": ("/v1/multi-vector", '{"input": "The sky is blue."}'),
    "classifier": ("/predict", '{"inputs": "The sky is blue."}'),
    "reranker": ("/rerank", '{"query": "colour of the sky", "texts": ["Grass is green.", "The sky is blue."]}'),
    "token_classifier": ("/predict_tokens", '{"inputs": "Ada lives in Paris.", "aggregation_strategy": "simple"}'),
}


def checkpoint_facts(checkpoint: Checkpoint) -> Facts:
    """A checkpoint -> what openbei understood of it; every value is plain JSON."""
    model, text = checkpoint.model, checkpoint.text
    return {
        "model": checkpoint.model_id,
        "revision": checkpoint.revision,
        "folder": str(checkpoint.folder),
        **model_facts(model),
        **labels_facts(checkpoint),
        "max_input_length": text.max_length,
        "lower_case": text.lower_case,
        "prompts": dict(text.prompts),
    }


def model_facts(model: Model) -> Facts:
    """A model -> its family, sizes, how tokens see each other, and how they become a vector or labels."""
    spec = model.spec
    return {
        "family": spec.family,
        "parameters": num_parameters(model),
        "layers": spec.num_layers,
        "width": spec.width,
        "heads": spec.num_heads,
        "key_heads": spec.num_kv_heads,
        "head_width": spec.head_dim,
        "ffn_width": spec.ffn_width,
        "vocab_size": spec.vocab_size,
        "activation": spec.activation,
        "gated": model.weights.layers[0].gate is not None if model.weights.layers else False,
        "positions": spec.num_positions,
        "position_kind": _position_kind(spec),
        "attention": _attention(spec),
        "pooling": "splade" if model.num_logs else model.pooling,
        "dense": [_dense(dense) for dense in model.dense],
        "normalize": None if model.head else model.normalize,
        "embedding_dim": None if model.head else model.embedding_dim,
    }


def labels_facts(checkpoint: Checkpoint) -> Facts:
    """What the model does with a text; the names of a head's labels, and how their scores are made."""
    labels = checkpoint.labels
    if labels is None:
        return {"task": _embedding_task(checkpoint.model), "labels": [], "scores": None}
    task = "classify tokens" if labels.per_token else "rerank" if labels.reranker else "classify"
    return {"task": task, "labels": list(labels.names), "scores": labels.activation}


def _embedding_task(model: Model) -> str:
    vector = "embed sparse" if model.num_logs else "embed" if model.pooling else None
    tasks = (vector, "embed sparse" if model.weigher else None, "embed by token" if model.multi else None)
    return ", ".join(filter(None, tasks))


def artifact_facts(entry: Entry) -> Facts:
    """An artifact of the store -> what a list of them says of it."""
    manifest = entry.manifest
    return {
        "id": entry.folder.name[:SHORT],
        "model": manifest.source,
        "revision": manifest.revision,
        "dtype": manifest.dtype,
        "bytes": manifest.size_bytes,
        "used": datetime.fromtimestamp(entry.used_s, UTC).isoformat(timespec="seconds"),
        "folder": str(entry.folder),
    }


def columns(rows: Sequence[Facts]) -> str:
    """Facts of the same names -> aligned columns under them; nothing -> a sentence."""
    if not rows:
        return "nothing is built"
    lines = [list(rows[0]), *([_plain(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def served_facts(checkpoint: Checkpoint, engine: EngineConfig, info: EngineInfo) -> Facts:
    """A running server -> what a person wants to know of it first."""
    spec, millions = checkpoint.model.spec, num_parameters(checkpoint.model) / 1e6
    too_long = "cut" if engine.auto_truncate else "refused"
    network = f"{spec.family}, {spec.num_layers} layers, {spec.width} wide, {millions:.1f} million parameters"
    return {
        "model": info.model_id,
        "network": f"{network}, {_output(checkpoint)}",
        "precision": f"{info.dtype}: {_precision_reason(checkpoint, engine, info)}",
        "device": f"{info.device}, {info.max_batch_tokens} tokens a batch",
        "input": f"at most {info.max_input_length} tokens; longer is {too_long}",
    }


def _precision_reason(checkpoint: Checkpoint, engine: EngineConfig, info: EngineInfo) -> str:
    built = checkpoint.artifact.dtype if checkpoint.artifact else "auto"
    as_built = engine.dtype == "auto" and built == info.dtype
    reason = "as the artifact was built" if as_built else precision_reason(engine.dtype, info.dtype, info.device)
    stored = stored_as(checkpoint.model)
    return f"{reason}; the weights are stored in {stored}" if stored != info.dtype else reason


def precision_reason(asked: str, dtype: str, device: str = "cpu") -> str:
    """Why a precision was chosen."""
    if not device.startswith("cpu") and asked == "auto":
        return "its weights are, or in 16 bit it does not fit" if dtype == "fp8" else "native on this GPU"
    if device.startswith("cpu") and asked in ("float16", "fp16"):
        return "float16 is computed in float32 on a CPU"
    if asked != "auto":
        return "asked for with --dtype"
    return "native on this CPU" if dtype == "bfloat16" else "this CPU has no native bfloat16"


def table(facts: Mapping[str, Any]) -> str:
    """Facts -> two aligned columns; what is not set shows as a dash."""
    width = max(map(len, facts))
    return "\n".join(f"{name:{width}}  {_plain(value)}" for name, value in facts.items())


def curl(url: str, kind: Kind, with_key: bool) -> str:
    """A request to copy and paste, which this kind of model answers."""
    path, body = EXAMPLES[kind]
    key = '-H "Authorization: Bearer $API_KEY" ' if with_key else ""
    return f"curl {url}{path} {key}-H 'Content-Type: application/json' -d '{body}'"


def _output(checkpoint: Checkpoint) -> str:
    labels = checkpoint.labels
    if labels is None:
        model = checkpoint.model
        if model.num_logs:
            return "sparse vectors of words (SPLADE)"
        return f"{model.pooling} pooling" if model.pooling else f"{model.multi_dim} values a token"
    return f"{len(labels.names)} label{'s' if len(labels.names) > 1 else ''}{' a token' if labels.per_token else ''}"


def _attention(spec: ModelSpec) -> str:
    sides = "causal" if spec.causal else "to both sides"
    if spec.window is None:
        return sides
    return f"{sides}, {spec.window} tokens wide in {sum(spec.local_layers)} of {spec.num_layers} layers"


def _position_kind(spec: ModelSpec) -> str:
    if spec.alibi:
        return "ALiBi"
    if spec.rope is None:
        return "learned"
    scaled = "" if spec.rope.scaling == "none" else f", {spec.rope.scaling} scaling by {spec.rope.factor:g}"
    return f"rotary, theta {spec.rope.theta:g}{scaled}"


def _dense(dense: HeadLayer) -> str:
    rows, columns = dense.linear.weight.shape
    return f"{columns} -> {rows}, {dense.activation}"


def _plain(value: Any) -> str:
    if value is None or value in ([], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name} = {text!r}" for name, text in value.items())
    return "; ".join(value) if isinstance(value, list) else str(value)
