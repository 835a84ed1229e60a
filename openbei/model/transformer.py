"""The one forward pass, written against ops: packed tokens -> states -> one vector a sequence.

Reads like the paper. No devices, no dtypes, no config look-ups, and no family names: a family is data.
"""

from openbei.model.ops import Ops, X, bias_by_distance
from openbei.model.spec import Array, Layer, Model, ModelSpec


def states(ops: Ops[X], model: Model) -> X:
    """The batch held by ops -> the last hidden state of every token (T, C)."""
    spec, weights = model.spec, model.weights
    x = ops.embed(weights.embedding, spec.norm_eps)
    table = weights.relative_bias
    bias = None if table is None else bias_by_distance(table, spec.max_length)
    for layer in weights.layers:
        x = block(ops, spec, layer, x, bias)
    return x


def block(ops: Ops[X], spec: ModelSpec, layer: Layer, x: X, bias: Array | None) -> X:
    """One post-norm block (Vaswani et al. 2017): attention, then feed-forward, each in a normed residual."""
    q, k, v = (ops.linear(x, projection) for projection in (layer.q, layer.k, layer.v))
    attended = ops.linear(ops.attention(q, k, v, spec.num_heads, bias), layer.out)
    x = ops.add_norm(attended, x, layer.attention_norm, spec.norm_eps)
    hidden = ops.linear(x, layer.up, spec.activation)
    return ops.add_norm(ops.linear(hidden, layer.down), x, layer.ffn_norm, spec.norm_eps)


def embed(ops: Ops[X], model: Model) -> X:
    """The batch held by ops -> pooled vectors after the Dense modules, not normalised (B, embedding_dim)."""
    x = ops.pool(states(ops, model), model.pooling)
    for dense in model.dense:
        x = ops.linear(x, dense.linear, dense.activation)
    return x
