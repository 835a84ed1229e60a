"""Mistakes that people make when they port a model, as functions from a right Model to a wrong one, for level 4.

BUGS: family -> name of the mistake -> function. Every one must move a state by more than level 1 allows.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from openbei.model.spec import Layer, Linear, Model, Norm
from tests import families

Bug = Callable[[Model], Model]
Bugs = dict[str, Bug]


def _layers(change: Callable[[Layer], Layer]) -> Bug:
    return lambda model: _weights(model, layers=tuple(change(layer) for layer in model.weights.layers))


def _layer(**changes: Any) -> Bug:
    return _layers(lambda layer: replace(layer, **changes))


def _weights(model: Model, **changes: Any) -> Model:
    return replace(model, weights=replace(model.weights, **changes))


def _spec(**changes: Any) -> Bug:
    return lambda model: replace(model, spec=replace(model.spec, **changes))


def _rope(**changes: Any) -> Bug:
    def change(model: Model) -> Model:
        assert model.spec.rope is not None
        return _spec(rope=replace(model.spec.rope, **changes))(model)

    return change


def _wider_window(model: Model) -> Model:
    """By the smallest step that shows: 1 where it counts to one side, 2 where it counts both."""
    assert model.spec.window is not None
    return _spec(window=model.spec.window + (1 if model.spec.causal else 2))(model)


def _other_local_layers(model: Model) -> Model:
    return _spec(local_layers=tuple(not local for local in model.spec.local_layers))(model)


def _tiled(model: Model) -> Model:
    """Heads in the order that makes query head j read key head j % K."""
    heads, keys = model.spec.num_heads, model.spec.num_kv_heads
    order = np.argsort(np.arange(heads) % keys, kind="stable")

    def change(layer: Layer) -> Layer:
        rows = np.arange(heads * model.spec.head_dim).reshape(heads, -1)[order].ravel()
        bias = None if layer.q.bias is None else layer.q.bias[rows]
        q = Linear(layer.q.weight[rows], bias)
        return replace(layer, q=q, out=replace(layer.out, weight=layer.out.weight[:, rows]))

    return _layers(change)(model)


def _without_one(norm: Norm | None) -> Norm | None:
    return None if norm is None else Norm(norm.weight - np.float32(1), norm.bias)


def _plain_norms(model: Model) -> Model:
    """Gemma's weights as they are stored, without the 1."""
    names = ("attention_norm", "ffn_norm", "attention_out_norm", "ffn_out_norm", "q_norm", "k_norm")
    fixed = _layers(lambda layer: replace(layer, **{name: _without_one(getattr(layer, name)) for name in names}))
    return _weights(fixed(model), final_norm=_without_one(model.weights.final_norm))


def _roll_relative_bias(model: Model) -> Model:
    table = model.weights.relative_bias
    assert table is not None
    return _weights(model, relative_bias=np.roll(table, len(table) // 2, axis=0))


def _without_segment(model: Model) -> Model:
    return _weights(model, embedding=replace(model.weights.embedding, segment=None))


def _one_position_late(model: Model) -> Model:
    embedding = model.weights.embedding
    assert embedding.position is not None
    return _weights(model, embedding=replace(embedding, position=np.roll(embedding.position, -1, axis=0)))


def _norm_first_layer_too(model: Model) -> Model:
    first, second, *others = model.weights.layers
    return _weights(model, layers=(replace(first, attention_norm=second.attention_norm), second, *others))


def _norms_swapped(layer: Layer) -> Layer:
    return replace(layer, attention_norm=layer.ffn_norm, ffn_norm=layer.attention_norm)


COMMON: Bugs = {
    "eps 1e-3": _spec(norm_eps=1e-3),
    "norms swapped": _layers(_norms_swapped),
    "layers reversed": lambda model: _weights(model, layers=model.weights.layers[::-1]),
}
LEARNED: Bugs = COMMON | {
    "eps 1e-4": _spec(norm_eps=1e-4),
    "positions start one late": _one_position_late,
    "tanh gelu for gelu": _spec(activation="gelu_tanh"),
    "q and k swapped": _layers(lambda layer: replace(layer, q=layer.k, k=layer.q)),
    "no bias after attention": _layers(lambda layer: replace(layer, out=Linear(layer.out.weight))),
}
HALF_THE_HEADS: Bugs = {"half the heads": _spec(num_heads=2, num_kv_heads=2, head_dim=24)}
NO_TYPES: Bugs = {"no types": _without_segment}
ROBERTA = LEARNED | HALF_THE_HEADS | {"no type row": _without_segment, "positions from 0": _spec(position_offset=0)}
GATED: Bugs = {
    "gate halves swapped": _layers(lambda layer: replace(layer, up=layer.gate, gate=layer.up)),
    "no gate": _layer(gate=None),
}
ROTARY: Bugs = {"another theta": _rope(theta=777.0), "no rotary positions": _spec(rope=None)}
WINDOW: Bugs = {"window off by one": _wider_window, "no window": _spec(window=None)}
DECODER = (
    COMMON
    | GATED
    | ROTARY
    | {
        "key heads tiled": _tiled,
        "no final norm": lambda model: _weights(model, final_norm=None),
        "the head width of another scale": _spec(score_scale=0.2),
    }
)
CAUSAL: Bugs = {"not causal": _spec(causal=False)}
QK_NORM: Bugs = {"no q norm": _layer(q_norm=None), "no k norm": _layer(k_norm=None)}
GEMMA = DECODER | {
    "norm weight + 1 missing": _plain_norms,
    "no embedding scale": _spec(embed_scale=1.0),
    "scale by head_dim": _spec(score_scale=None),
    "windows in the other layers": _other_local_layers,
    "no norm of attention's output": _layer(attention_out_norm=None),
    "no norm of feed-forward's output": _layer(ffn_out_norm=None),
    "erf gelu": _spec(activation="gelu"),
}
GEMMA3 = GEMMA | QK_NORM | WINDOW | {"one theta": _spec(local_rope=None), "linear scaling left out": _rope(factor=1.0)}
NOMIC = COMMON | GATED | ROTARY | HALF_THE_HEADS | NO_TYPES | {"gelu": _spec(activation="gelu")}
GTE = COMMON | GATED | ROTARY | HALF_THE_HEADS | {"tanh gelu": _spec(activation="gelu_tanh")}
JINA = COMMON | GATED | NO_TYPES | {"no ALiBi": _spec(alibi=False), "tanh gelu": _spec(activation="gelu_tanh")}

BUGS: dict[str, Bugs] = {
    "bert": LEARNED | HALF_THE_HEADS | NO_TYPES | {"eps of RoBERTa": _spec(norm_eps=1e-5)},
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
    "distilbert": LEARNED | HALF_THE_HEADS | {"eps of RoBERTa": _spec(norm_eps=1e-5)},
    "mpnet": LEARNED
    | {
        "buckets of the other sign": _roll_relative_bias,
        "no relative bias": lambda model: _weights(model, relative_bias=None),
        "positions from 0": _spec(position_offset=0),
    },
    "nomic": NOMIC,
    "nomic-native": NOMIC,
    "nomic-dynamic": NOMIC | {"dynamic rule left out": _rope(scaling="none"), "trained for more": _rope(factor=3.0)},
    "gte-new": GTE | {"ntk without its divisor": _rope(scaling="none", theta=160_000.0)},
    "gte-native": GTE | {"linear scaling left out": _rope(scaling="none")},
    "modernbert": COMMON
    | GATED
    | ROTARY
    | WINDOW
    | {
        "tanh gelu": _spec(activation="gelu_tanh"),
        "one theta": _spec(local_rope=None),
        "windows in the other layers": _other_local_layers,
        "first norm": _norm_first_layer_too,
        "no final norm": lambda model: _weights(model, final_norm=None),
        "norms after": _spec(norm_placement="post"),
    },
    "jina-en": JINA,
    "jina-code": JINA | QK_NORM | {"no inner norm": _layer(inner_norm=None)},
    "llama": DECODER
    | CAUSAL
    | {"llama3 left out": _rope(scaling="none"), "llama3 of 8192": _rope(original_length=8192)},
    "mistral": DECODER | CAUSAL | WINDOW,
    "qwen2": DECODER | CAUSAL | WINDOW | {"windows in the other layers": _other_local_layers},
    "qwen2-both-sides": DECODER | {"causal": _spec(causal=True)},
    "qwen3": DECODER | CAUSAL | QK_NORM,
    "gemma2": GEMMA | CAUSAL | WINDOW | {"no softcap": _spec(softcap=None)},
    "gemma3": GEMMA3 | CAUSAL,
    "gemma3-both-sides": GEMMA3 | {"causal": _spec(causal=True)},
}
SEEDED = [(name, bug) for name in families.ALL for bug in BUGS[name]]
