"""What positions do to attention: rotary angles, ALiBi slopes, relative buckets. NumPy, in float32 or better.

Owns the formulas; never touches a backend. Sources: Su et al. 2021 (RoPE), Press et al. 2022 (ALiBi), Raffel et al.
2020 (buckets), and the scaling rules as transformers' modeling_rope_utils computes them.
"""

import math

import numpy as np
from numpy.typing import NDArray

from openbei.model.spec import Array, Batch, ModelSpec, Rope

Floats = NDArray[np.float32]
Angles = NDArray[np.float64]


def bias_by_distance(spec: ModelSpec, table: Array | None) -> Floats | None:
    """The score that distance adds: ALiBi's or the relative table's, float32 (H, 2P - 1); None without either."""
    if spec.alibi:
        distance = np.abs(np.arange(1 - spec.max_length, spec.max_length))
        return np.asarray(-alibi_slopes(spec.num_heads)[:, None] * distance, np.float32)
    return None if table is None else bucketed_bias(table, spec.max_length)


def alibi_slopes(num_heads: int) -> NDArray[np.float64]:
    """Slope of each head, float64 (H,): powers of 2^(-8/H); past a power of two, every second one of the next list."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = 2.0 ** (-8.0 / power * np.arange(1, power + 1))
    between = 2.0 ** (-4.0 / power * np.arange(1, 2 * power, 2))
    return np.concatenate((slopes, between[: num_heads - power]))


def bucketed_bias(table: Array, max_length: int) -> Floats:
    """Relative-position table (num_buckets, H) -> bias of every distance (H, 2 * max_length - 1).

    T5's bidirectional buckets: half of them for each sign; half of those exact, the rest logarithmic up to
    distance 128 (Raffel et al. 2020, section 2.1). In float32, as transformers' MPNetEncoder computes them.
    """
    distance = np.arange(1 - max_length, max_length)
    per_sign = table.shape[0] // 2
    num_exact = per_sign // 2
    size = np.abs(distance)
    scaled = np.log(np.maximum(size, 1).astype(np.float32) / np.float32(num_exact))
    logarithmic = num_exact + (scaled / np.float32(np.log(128 / num_exact)) * np.float32(per_sign - num_exact)).astype(
        np.int64
    )
    bucket = np.where(size < num_exact, size, np.minimum(logarithmic, per_sign - 1)) + per_sign * (distance > 0)
    return np.ascontiguousarray(table[bucket].T, dtype=np.float32)


def visible(ahead: NDArray[np.signedinteger], causal: bool, window: int | None) -> NDArray[np.bool_]:
    """Key position - query position -> whether the query sees the key, for both kinds of window (see ModelSpec)."""
    seen = ahead <= 0 if causal else np.ones_like(ahead, np.bool_)
    if window is None:
        return seen
    return seen & (-ahead < window if causal else np.abs(ahead) <= window // 2)


def cos_sin(rope: Rope, head_dim: int, batch: Batch) -> tuple[Floats, Floats]:
    """cos and sin of every token's angles, float32 (T, D / 2) each; positions count from 0 in every sequence."""
    positions = (np.arange(batch.num_tokens) - np.repeat(batch.cu_seqlens[:-1], batch.lengths)).astype(np.float64)
    if rope.scaling == "dynamic":
        each = [frequencies(rope, head_dim, int(length)) for length in batch.lengths]
        angles = positions[:, None] * np.repeat(np.stack(each), batch.lengths, axis=0)
    else:
        angles = positions[:, None] * frequencies(rope, head_dim)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def frequencies(rope: Rope, head_dim: int, length: int = 0) -> Angles:
    """Radians a position for each pair of values, float64 (D / 2,). length: tokens of the sequence, for dynamic."""
    exponent = -np.arange(0, head_dim, 2) / head_dim
    theta, divisor = rope.theta, np.ones_like(exponent)
    if rope.scaling == "linear":
        divisor *= rope.factor
    elif rope.scaling == "ntk":
        theta, divisor = theta * rope.factor, divisor * rope.factor ** (2 / head_dim)
    elif rope.scaling == "ntk_mixed":
        strength = math.log(rope.factor) / (head_dim / 2) ** rope.mixed_b
        divisor = np.exp(strength * np.arange(1, head_dim // 2 + 1) ** rope.mixed_b)
    elif rope.scaling == "dynamic" and length > rope.original_length:
        growth = rope.factor * length / rope.original_length - (rope.factor - 1)
        theta *= growth ** (head_dim / (head_dim - 2))
    plain: Angles = theta**exponent / divisor
    return _llama3(rope, plain) if rope.scaling == "llama3" else plain


def _llama3(rope: Rope, plain: Angles) -> Angles:
    """Long waves are stretched by factor, short ones stay, and between them it is interpolated."""
    turns = rope.original_length * plain / (2 * math.pi)  # of a wave within the original length
    share = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    share = np.clip(share, 0.0, 1.0)
    return share * plain + (1 - share) * plain / rope.factor
