"""What the device and its libraries reach: memory, products in 16 and 8 bit, attention. The rest is held against it."""

import shutil
import sysconfig
import time
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.clock import rotated, seconds
from openbei.engine.machine import Machine
from openbei.model.kernels.attention import Sequences, Tiles, attention
from openbei.model.kernels.few_rows import MAX_TOKENS, few_rows, workspace
from openbei.model.kernels.linear import gated_fp8, gated_linear, linear, linear_fp8, linear_fp8_own
from openbei.model.kernels.quantize import Quantized, quantize_rows, quantize_weight
from openbei.model.ops import Attention
from openbei.model.ops.cuda_batch import make_tiles, num_tiles, rows_per_tile

Row = dict[str, Any]
GIGA, TERA = 1e9, 1e12
COPIED_BYTES = 2 << 30
CACHE_BYTES = 128 << 20  # more than any L2
PRODUCTS = {  # name: (N, K)
    "BERT-large qkv": (3072, 1024),
    "BERT-large up": (4096, 1024),
    "BERT-large down": (1024, 4096),
    "7B qkv": (6144, 4096),
    "7B out": (4096, 4096),
    "7B gate and up": (28672, 4096),
    "7B down": (4096, 14336),
}
ROWS = (32, 128, 512, 2048, 8192)
ATTENTIONS = ((32, 12, 12, 128), (64, 16, 16, 128), (64, 16, 16, 512), (128, 32, 8, 512), (128, 32, 8, 2048))
ATTENDED_TOKENS = 8192


def facts(machine: Machine, _: bool) -> Iterator[Row]:
    """What the rest needs: versions, what Triton builds its launchers with, one kernel recorded and replayed."""
    headers = Path(sysconfig.get_paths()["include"]) / "Python.h"
    row: Row = {"what": machine.name, "capability": str(machine.capability), "free GB": machine.free_bytes() / GIGA}
    row |= {"torch": torch.__version__, "CUDA": str(torch.version.cuda), "triton": version("triton")}
    yield row | {"C compiler": str(shutil.which("gcc") or shutil.which("clang")), "Python.h": headers.exists()}
    x = torch.full((4, 64), 448.0, device=machine.location, dtype=torch.bfloat16)
    stream, begin_s = machine.stream(), time.perf_counter()
    replay, scale = stream.record(lambda: quantize_rows(x).scale)
    with stream.use():
        x.fill_(896.0)
        replay()
    stream.mark()()
    yield {
        "what": "a kernel, recorded and replayed",
        "s": time.perf_counter() - begin_s,
        "right": scale.tolist() == [2] * 4,
    }


def copy(machine: Machine, tiny: bool) -> Iterator[Row]:
    """A copy from device memory to device memory, bytes read and written."""
    count = 1 << 20 if tiny else COPIED_BYTES
    source = torch.randint(0, 255, (count,), dtype=torch.uint8, device=machine.location)
    target = torch.empty_like(source)
    taken_s = seconds(machine, lambda: target.copy_(source), runs=20)
    yield {"what": "copy", "MB": count / 1e6, "GB/s": 2 * count / taken_s / GIGA}


def products(machine: Machine, tiny: bool) -> Iterator[Row]:
    """The linear layers of two models in bfloat16 and FP8, by cuBLASLt and by our own kernels."""
    for name in PRODUCTS:
        n, k = shape_of(name, tiny)
        copies = 1 if tiny else max(1, min(16, CACHE_BYTES // (n * k)))
        weights = [_random(machine, n, k) for _ in range(copies)]
        quantized = [Quantized(*quantize_weight(weight)) for weight in weights]
        for num_rows in ROWS[:2] if tiny else ROWS:
            row: Row = {"what": name, "M": num_rows, "N": n, "K": k}
            for key, (launch, of) in _ways(machine, name, num_rows, k).items():
                each = [partial(launch, weight) for weight in (weights if of == 16 else quantized)]
                try:
                    taken_s = seconds(machine, rotated(each)) / copies
                except Exception as error:
                    row[f"{key} us"] = repr(error)[:100]
                    continue
                row |= {f"{key} us": taken_s * 1e6, f"{key} TFLOP/s": 2 * num_rows * n * k / taken_s / TERA}
            yield row


def shape_of(name: str, tiny: bool) -> tuple[int, int]:
    """A product's N and K."""
    n, k = PRODUCTS[name]
    return (n // 32, k // 32) if tiny else (n, k)


def launches(machine: Machine, name: str, num_rows: int, tiny: bool) -> Iterator[tuple[Any, int, Any]]:
    """Each way of one product, once: the launch, the bits of its weight, and a weight of 16 and of 8."""
    n, k = shape_of(name, tiny)
    weight = _random(machine, n, k)
    for launch, of in _ways(machine, name, num_rows, k).values():
        yield launch, of, (weight, quantize_weight(weight))


def _ways(machine: Machine, name: str, num_rows: int, depth: int) -> dict[str, tuple[Any, int]]:
    """Name -> a product of random rows with a weight, and the bits of that weight. gated: SwiGLU is applied too."""
    x, room = _random(machine, num_rows, depth), workspace(machine.location)
    x8 = quantize_rows(x)
    ways: dict[str, tuple[Any, int]] = {
        "bf16": (lambda w: linear(x, w, None), 16),
        "fp8": (lambda w: linear_fp8(x8, w.values, w.scale, None, torch.bfloat16), 8),
        "own fp8": (lambda w: linear_fp8_own(x8, w, None, torch.bfloat16), 8),
    }
    if "gate" in name:
        ways["gated bf16"] = (lambda w: gated_linear(x, w, None, "silu"), 16)
        ways["gated fp8"] = (lambda w: gated_fp8(x8, w, None, "silu", torch.bfloat16), 8)
    if num_rows <= MAX_TOKENS:
        ways["few bf16"] = (lambda w: few_rows(x, w, None, torch.bfloat16, room), 16)
        ways["few fp8"] = (lambda w: few_rows(x8, w, None, torch.bfloat16, room), 8)
    return ways


def attentions(machine: Machine, tiny: bool) -> Iterator[Row]:
    """Our attention beside PyTorch's FlashAttention 2, 8192 packed tokens; causal where there are fewer KV heads."""
    for head_dim, num_heads, num_kv_heads, length in ATTENTIONS[:2] if tiny else ATTENTIONS:
        tokens = 2 * length if tiny else ATTENDED_TOKENS
        causal = num_kv_heads < num_heads
        q, k, v = (_random(machine, tokens, heads * head_dim) for heads in (num_heads, num_kv_heads, num_kv_heads))
        ends = np.arange(0, tokens + 1, length, dtype=np.int32)
        how = Attention(num_heads, num_kv_heads, head_dim**-0.5, causal)
        flops = 4 * tokens * length * num_heads * head_dim / (2 if causal else 1)
        row: Row = {"what": f"D {head_dim}, H {num_heads}, K {num_kv_heads}, S {length}", "causal": causal}
        ours_s = seconds(machine, _ours(machine, (q, k, v), ends, how))
        row |= {"ours us": ours_s * 1e6, "ours TFLOP/s": flops / ours_s / TERA}
        if machine.location != "cpu":
            flash_s = seconds(machine, _flash((q, k, v), ends, how, head_dim, length))
            row |= {"FA2 us": flash_s * 1e6, "FA2 TFLOP/s": flops / flash_s / TERA}
        yield row


def _random(machine: Machine, *shape: int) -> Tensor:
    return torch.randn(shape, device=machine.location, dtype=torch.bfloat16)


def _ours(machine: Machine, qkv: tuple[Tensor, ...], ends: Any, how: Attention) -> Any:
    rows = rows_per_tile(int(ends[-1]))
    size = num_tiles(int(ends[-1]), len(ends) - 1, rows)
    sequence, first_row = torch.from_numpy(make_tiles(ends, rows, size)).to(machine.location)
    cu_seqlens = torch.from_numpy(ends).to(machine.location)
    sequences = Sequences(cu_seqlens, cu_seqlens[1:].clone())
    return lambda: attention(*qkv, sequences, Tiles(sequence, first_row, rows), how)


def _flash(qkv: tuple[Tensor, ...], ends: Any, how: Attention, head_dim: int, length: int) -> Any:
    q, k, v = (x.view(len(x), -1, head_dim) for x in qkv)
    cu_seqlens = torch.from_numpy(ends).to(q.device)
    flash = torch.ops.aten._flash_attention_forward
    return lambda: flash(
        q, k, v, cu_seqlens, cu_seqlens, length, length, 0.0, how.causal, False, scale=how.scale
    )[0]  # fmt: skip
