"""The models that are timed, at their real sizes, with nothing in memory; and the least time that each could take.

Parameters are arrays of shape without content: what uploads them makes random ones on the device. Sizes are those of
the published config.json files. A floor is the larger of two times: all weights of the blocks read once, and all
floating-point operations done, at the datasheet's rates.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openbei.model.spec import (
    Array,
    Embedding,
    Layer,
    Linear,
    Model,
    ModelSpec,
    Norm,
    Rope,
    Weights,
    num_parameters,
)
from openbei.model.stored import attends_in_fp8

STANDARD_DEVIATION = 0.02


@dataclass(frozen=True)
class Chip:
    """Datasheet rates: bytes a second of memory, operations a second in 16 bit and in 8."""

    bytes_per_s: float
    flops_16_bit: float
    flops_8_bit: float


CHIPS = {"H100": Chip(3.35e12, 989e12, 1979e12), "H200": Chip(4.8e12, 989e12, 1979e12)}


def chip_of(name: str) -> Chip | None:
    """A device's name -> its rates, None if they are not known here."""
    return next((chip for key, chip in CHIPS.items() if key in name), None)


def _encoder(layers: int, width: int, heads: int, vocab_size: int, **changes: Any) -> ModelSpec:
    spec = ModelSpec("bert", vocab_size, width, layers, heads, heads, width // heads, 4 * width, 1e-12, "gelu", 512)
    return replace(spec, num_segments=2, **changes) if "num_segments" not in changes else replace(spec, **changes)


def _decoder(layers: int, width: int, heads: tuple[int, int, int], ffn_width: int, **changes: Any) -> ModelSpec:
    num_heads, num_kv_heads, head_dim = heads
    spec = ModelSpec(
        "llama", 32000, width, layers, num_heads, num_kv_heads, head_dim, ffn_width, 1e-5, "silu", 32768,
        norm="rms", norm_placement="pre", causal=True, rope=Rope(1e4),
    )  # fmt: skip
    return replace(spec, **changes)


_GEMMA = {
    "activation": "gelu_tanh",
    "vocab_size": 256_002,
    "num_positions": 8192,
    "norm_eps": 1e-6,
    "window": 4096,
    "local_layers": tuple(layer % 2 == 0 for layer in range(42)),
    "score_scale": 1 / 16,
    "softcap": 50.0,
    "embed_scale": 3584**0.5,
}
SPECS = {  # what says most comes first: time may run out
    "BERT-large": _encoder(24, 1024, 16, 30522),
    "Mistral-7B": _decoder(32, 4096, (32, 8, 128), 14336),
    "Qwen3-8B": _decoder(36, 4096, (32, 8, 128), 12288, family="qwen3", vocab_size=151_669, rope=Rope(1e6)),
    "MiniLM-L6": _encoder(6, 384, 12, 30522),
    "Gemma2-9B": _decoder(42, 3584, (16, 8, 256), 14336, **_GEMMA),
    "Qwen2-1.5B": _decoder(28, 1536, (12, 2, 128), 8960, vocab_size=151_646, causal=False, rope=Rope(1e6)),
    "XLM-R-large": _encoder(24, 1024, 16, 250_002, num_segments=1, num_positions=8194, position_offset=2),
}


def small(spec: ModelSpec) -> ModelSpec:
    """The same switches, two layers and few numbers: for a run that only asks whether all of it works."""
    heads, kv_heads = 4, 4 * spec.num_kv_heads // spec.num_heads or 1
    return replace(
        spec, vocab_size=500, width=64, num_layers=2, num_heads=heads, num_kv_heads=kv_heads, head_dim=32,
        ffn_width=128, local_layers=spec.local_layers[:2], num_positions=min(spec.num_positions, 600),
    )  # fmt: skip


def model(name: str, tiny: bool) -> Model:
    """A Model whose arrays have their shapes and no memory."""
    spec = small(SPECS[name]) if tiny else SPECS[name]
    post = spec.norm_placement == "post"
    embedding = Embedding(
        word=_array(spec.vocab_size, spec.width),
        position=_array(spec.num_positions, spec.width) if post else None,
        segment=_array(spec.num_segments, spec.width) if post else None,
        norm=_norm(spec) if post else None,
    )
    layers = tuple(_layer(name, spec) for _ in range(spec.num_layers))
    weights = Weights(embedding, layers, final_norm=None if post else _norm(spec))
    return Model(spec, weights, "mean" if post else "last_token")


def _layer(name: str, spec: ModelSpec) -> Layer:
    post, gemma = spec.norm_placement == "post", "Gemma" in name
    inner, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    biased = post or "Qwen2" in name
    heads = Norm(_array(spec.head_dim)) if "Qwen3" in name else None

    def linear(out: int, into: int, bias: bool = post) -> Linear:
        return Linear(_array(out, into), _array(out) if bias else None)

    return Layer(
        q=linear(inner, spec.width, biased),
        k=linear(keys, spec.width, biased),
        v=linear(keys, spec.width, biased),
        out=linear(spec.width, inner),
        attention_norm=_norm(spec),
        up=linear(spec.ffn_width, spec.width),
        down=linear(spec.width, spec.ffn_width),
        ffn_norm=_norm(spec),
        gate=None if post else linear(spec.ffn_width, spec.width),
        q_norm=heads,
        k_norm=heads,
        attention_out_norm=_norm(spec) if gemma else None,
        ffn_out_norm=_norm(spec) if gemma else None,
    )


def _norm(spec: ModelSpec) -> Norm:
    return Norm(_array(spec.width), _array(spec.width) if spec.norm == "layer" else None)


def _array(*shape: int) -> Array:
    return np.broadcast_to(np.float32(0), shape)


def random_upload(device: str, dtype: torch.dtype) -> Any:
    """A function that makes random tensors of an array's shape on the device, the same ones in the same order."""
    generator = torch.Generator(device).manual_seed(0)

    def upload(array: Array) -> Tensor:
        values = torch.randn(array.shape, generator=generator, device=device, dtype=dtype) * STANDARD_DEVIATION
        return values + 1 if array.ndim == 1 and len(array) else values

    return upload


def block_parameters(of: Model) -> int:
    """Parameters of the blocks: what every forward reads."""
    return num_parameters(of.weights.layers)


def floor_s(of: Model, lengths: list[int], chip: Chip, fp8: bool) -> float:
    """The least seconds of one forward over sequences of these lengths. fp8: of the products that it takes."""
    spec, tokens = of.spec, sum(lengths)
    everything, around_attention = block_parameters(of), num_parameters(tuple(map(_attention, of.weights.layers)))
    eight = 0 if not fp8 else everything if attends_in_fp8(spec) else everything - around_attention
    sixteen = everything - eight
    attended = sum(length * length for length in lengths) / (2 if spec.causal else 1)
    attention_s = 4 * attended * spec.num_heads * spec.head_dim * spec.num_layers / chip.flops_16_bit
    products_s = 2 * tokens * (eight / chip.flops_8_bit + sixteen / chip.flops_16_bit)
    return max((eight + 2 * sixteen) / chip.bytes_per_s, products_s + attention_s)


def _attention(layer: Layer) -> tuple[Linear, ...]:
    return layer.q, layer.k, layer.v, layer.out
