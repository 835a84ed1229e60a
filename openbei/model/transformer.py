"""The one forward pass, written against ops: packed tokens -> states -> one vector or one row of labels a sequence.

Reads like the papers. No devices, no dtypes, no config look-ups, and no family names: a family is data.
"""

from collections.abc import Callable, Sequence
from typing import Any

from openbei.model.ops import Attention, NormSpec, Ops, X
from openbei.model.positions import bias_by_distance
from openbei.model.spec import Array, HeadLayer, Layer, Model, ModelSpec, Norm, Output, Pooling


def states(ops: Ops[X], model: Model, only: Pooling | None = None) -> X:
    """The batch held by ops -> the last hidden state of every token (T, C).

    only: of this one token of each sequence (B, C), so that the last layer's products have B rows.
    """
    spec, weights = model.spec, model.weights
    x = normed(ops, spec, ops.embed(weights.embedding, spec.embed_scale), weights.embedding.norm)
    bias = bias_by_distance(spec, weights.relative_bias)
    for number, layer in enumerate(weights.layers):
        a = attend(ops, spec, layer, x, attention_of(spec, number, bias))
        if only is not None and number == spec.num_layers - 1:
            a, x = ops.pool(a, only), ops.pool(x, only)
        x = after_attention(ops, spec, layer, a, x)
        x = feed_forward(ops, spec, layer, x)
    return normed(ops, spec, x, weights.final_norm)


def attend(ops: Ops[X], spec: ModelSpec, layer: Layer, x: X, how: Attention) -> X:
    """What each token of a block gathers from the others: (T, C) -> (T, H*D)."""
    y = normed(ops, spec, x, layer.attention_norm) if spec.norm_placement == "pre" else x
    local = how.window is not None
    q, k, v = ops.linears(y, (layer.q, layer.k, layer.v))
    q, k = normed(ops, spec, q, layer.q_norm), normed(ops, spec, k, layer.k_norm)
    if spec.rope is not None:
        q, k = ops.rope(q, spec.num_heads, local), ops.rope(k, spec.num_kv_heads, local, keys=True)
    return ops.attention(q, k, v, how)


def after_attention(ops: Ops[X], spec: ModelSpec, layer: Layer, a: X, x: X) -> X:
    """The rest of the attention half, with its residual x and norms: (rows, H*D) and (rows, C) -> (rows, C)."""
    a = ops.linear(a, layer.out)
    if layer.inner_norm is not None:
        a = normed(ops, spec, ops.add(a, x), layer.inner_norm)
    x = ops.add(normed(ops, spec, a, layer.attention_out_norm), x)
    return x if spec.norm_placement == "pre" else normed(ops, spec, x, layer.attention_norm)


def feed_forward(ops: Ops[X], spec: ModelSpec, layer: Layer, x: X) -> X:
    """The feed-forward half of a block, with its residual and norms: (rows, C) -> (rows, C)."""
    pre = spec.norm_placement == "pre"
    y = normed(ops, spec, x, layer.ffn_norm) if pre else x
    if layer.gate is None:
        hidden = ops.linear(y, layer.up, spec.activation)
    else:
        hidden = ops.gated(y, layer.up, layer.gate, spec.activation)
    x = ops.add(normed(ops, spec, ops.linear(hidden, layer.down), layer.ffn_out_norm), x)
    return x if pre else normed(ops, spec, x, layer.ffn_norm)


def normed(ops: Ops[X], spec: ModelSpec, x: X, norm: Norm | None) -> X:
    """x through a norm, if there is one."""
    return x if norm is None else ops.norm(x, norm, NormSpec(spec.norm, spec.norm_eps))


def attention_of(spec: ModelSpec, number: int, bias: Array | None) -> Attention:
    """How layer `number` attends."""
    return Attention(
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        scale=spec.head_dim**-0.5 if spec.score_scale is None else spec.score_scale,
        causal=spec.causal,
        window=spec.window if spec.is_local(number) else None,
        softcap=spec.softcap,
        bias=bias,
    )


def pooled(ops: Ops[X], model: Model) -> X:
    """The batch held by ops -> one state a sequence (B, C), or of what before_pooling makes of the states."""
    assert model.pooling is not None
    if model.before_pooling:
        x = through(ops, model.spec, states(ops, model), model.before_pooling[:-1])
        return ops.pool_words(x, model.before_pooling[-1].linear, model.pooling, model.num_logs)
    if model.pooling in ("mean", "max"):
        return ops.pool(states(ops, model), model.pooling)
    return states(ops, model, only=model.pooling)


def embed(ops: Ops[X], model: Model) -> X:
    """The batch held by ops -> pooled vectors after the Dense modules, not normalised (B, embedding_dim)."""
    return through(ops, model.spec, pooled(ops, model), model.dense)


def classify(ops: Ops[X], model: Model) -> X:
    """The batch held by ops -> logits of every sequence (B, L), or with head.per_token of every token (T, L)."""
    assert model.head is not None
    x = states(ops, model) if model.head.per_token else pooled(ops, model)
    return through(ops, model.spec, x, model.head.layers)


def weigh(ops: Ops[X], model: Model) -> X:
    """The batch held by ops -> the weight of every token (T, 1)."""
    return through(ops, model.spec, states(ops, model), model.weigher)


def multi(ops: Ops[X], model: Model) -> X:
    """The batch held by ops -> a vector for every token, not normalised (T, embedding_dim)."""
    return through(ops, model.spec, states(ops, model), model.multi)


def through(ops: Ops[X], spec: ModelSpec, x: X, layers: Sequence[HeadLayer]) -> X:
    """Rows through layers, one after another: (rows, in) -> (rows, out)."""
    for layer in layers:
        x = normed(ops, spec, ops.linear(x, layer.linear, layer.activation), layer.norm)
    return x


FORWARDS: dict[Output, Callable[[Any, Model], Any]] = {  # what a backend runs for each output
    "vectors": embed,
    "states": states,
    "labels": classify,
    "weights": weigh,
    "multi": multi,
}
