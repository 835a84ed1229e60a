"""Compile a Triton kernel for the H100 (sm_90) without a GPU, and count what it came to: registers, spills, opcodes.

A kernel is specialised on the alignment of its pointers and sizes; compiled without saying so it is another kernel
(more registers, no asynchronous copies). So every pointer here counts as 16-byte aligned, and `multiples` names the
sizes that are multiples of 16 at run time.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

BINARIES = Path(triton.__file__).parent / "backends/nvidia/bin"
MAX_SHARED_BYTES = 232_448  # that one block may have on sm_90
TYPES = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.int32: "i32",
}
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a kernel uses: registers a thread, stack and shared and scratch bytes a block, SASS opcodes with counts."""

    registers: int
    stack_bytes: int
    shared_bytes: int
    scratch_bytes: int
    opcodes: Counter[str]
    ptx: str

    def count(self, *names: str) -> int:
        """Instructions whose opcode is one of names or starts with one and a dot: HGMMA counts HGMMA.64x64x16.F32."""
        return sum(n for opcode, n in self.opcodes.items() if opcode in names or opcode.startswith(_dotted(names)))

    def check(self, max_registers: int) -> None:
        """Raise AssertionError unless it stays within max_registers, spills nothing and fits an H100's block."""
        assert ".target sm_90a" in self.ptx
        assert self.registers <= max_registers, f"{self.registers} registers, at most {max_registers}"
        assert self.stack_bytes == 0
        assert self.count("LDL", "STL") == 0, self.opcodes
        assert self.shared_bytes <= MAX_SHARED_BYTES
        assert self.scratch_bytes == 0


def compile_launch(launch: Callable[[], object]) -> Compiled:
    """A call that launches one kernel, made with meta tensors -> that kernel, specialised as the launch asks for."""
    calls = []

    def record(self: JITFunction, *args: object, grid: object, warmup: bool, **kwargs: object) -> None:
        calls.append((self, dict(zip(self.arg_names, args, strict=False)) | kwargs))

    with patch.object(JITFunction, "run", record):
        launch()
    [(kernel, values)] = calls
    return compile_call(kernel, values)


def compile_call(kernel: JITFunction, values: dict[str, object]) -> Compiled:
    """A kernel and all that it is called with, by name -> it, specialised for this."""
    values, types, constants, multiples = dict(values), {}, {}, []
    for parameter in kernel.params:
        value, special = values.pop(parameter.name), not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (special and type(value) is int and value == 1):
            constants[parameter.name] = value
            continue
        types[parameter.name] = _type(value)
        if special and type(value) is int and value % 16 == 0:
            multiples.append(parameter.name)
    options = {name: value for name, value in values.items() if value is not None}
    return compile_kernel(kernel, types, constants, options, multiples)


def _type(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, TensorDescriptor):
        return f"tensordesc<{TYPES[value.base.dtype]}{value.block_shape}>"
    return "fp32" if isinstance(value, float) else "i32"


def compile_kernel(
    kernel: "triton.JITFunction",
    types: Mapping[str, str],
    constants: Mapping[str, object],
    options: Mapping[str, int],
    multiples: Sequence[str] = (),
) -> Compiled:
    """A kernel, its parameters' Triton types ("*bf16", "i32", "fp32"), its constants and options -> Compiled.

    options: num_warps, num_stages. A parameter that is neither in types nor in constants is an error.
    """
    names = kernel.arg_names
    missing = set(names) - set(types) - set(constants)
    assert not missing, f"no type and no value for {sorted(missing)}"
    signature = {name: types.get(name, "constexpr") for name in names}
    pointers = [name for name, kind in signature.items() if kind.startswith("*")]
    aligned = sorted({*pointers, *multiples})  # in one order: it is part of the cache's key
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(Path(tempfile.gettempdir()) / "openbei-triton-sm90")
        built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=dict(options))
    return _measure(built)


def _measure(built: "triton.compiler.CompiledKernel") -> Compiled:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(built.asm["cubin"])
        usage = _run("cuobjdump", "--dump-resource-usage", str(file))
        sass = _run("nvdisasm", "-c", str(file))
    (registers,), (stack,) = (re.findall(rf"\b{name}:(\d+)", usage) for name in ("REG", "STACK"))
    return Compiled(
        registers=int(registers),
        stack_bytes=int(stack),
        shared_bytes=built.metadata.shared,
        scratch_bytes=built.metadata.global_scratch_size,
        opcodes=Counter(INSTRUCTION.findall(sass)),
        ptx=built.asm["ptx"],
    )


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([BINARIES / tool, *arguments], check=True, capture_output=True, text=True).stdout


def _dotted(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name}." for name in names)
