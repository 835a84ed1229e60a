"""The tool itself: what it must refuse, it refuses."""

import pytest
import torch

from openbei.model.kernels import rope, tl, triton
from tests.model.kernels.aot import MAX_SHARED_BYTES, Compiled, compile_kernel, compile_launch


@triton.jit
def _less_kernel(x_ptr, y_ptr, stride, width: tl.constexpr):
    """Rows less their maximum, for which a whole row must be held."""
    column = tl.arange(0, width)
    x = tl.load(x_ptr + tl.program_id(0) * stride + column)
    tl.store(y_ptr + tl.program_id(0) * stride + column, x - tl.max(x, 0))


TYPES = {"x_ptr": "*fp32", "y_ptr": "*fp32", "stride": "i32"}


def less(options: dict[str, int], multiples: tuple[str, ...] = ("stride",)) -> Compiled:
    return compile_kernel(_less_kernel, TYPES, {"width": 2048}, options, multiples)


def test_a_spill_is_refused() -> None:
    built = less({"num_warps": 1, "maxnreg": 40})  # 64 values a thread
    assert built.registers <= 40
    with pytest.raises(AssertionError):
        built.check(max_registers=40)


def test_too_many_registers_are_refused() -> None:
    built = less({"num_warps": 8})
    built.check(max_registers=built.registers)
    with pytest.raises(AssertionError, match=f"{built.registers} registers, at most {built.registers - 1}"):
        built.check(max_registers=built.registers - 1)


def test_alignment_is_part_of_a_kernel() -> None:
    assert less({"num_warps": 8}).opcodes["LDG.E.128"] > 0
    assert less({"num_warps": 8}, multiples=()).opcodes["LDG.E.128"] == 0


def test_a_parameter_without_a_type_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"no type and no value for \['width'\]"):
        compile_kernel(_less_kernel, TYPES, {}, {"num_warps": 4})


def test_a_launch_compiles_as_it_would_run() -> None:
    x = torch.empty((4, 96), dtype=torch.bfloat16, device="meta")
    angles = rope.Angles(*(torch.empty(9, 16, device="meta"),) * 2, torch.empty(4, dtype=torch.int32, device="meta"))
    built = compile_launch(lambda: rope._launch(x[:, :64], x[:, 64:], angles))
    assert built.registers > 0
    assert built.shared_bytes < MAX_SHARED_BYTES
