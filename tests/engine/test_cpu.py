"""The CPU's precision, its cores, and what is compiled when."""

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from openbei.engine import cores as engine_cores
from openbei.engine import cpu
from openbei.engine.cores import count_cores
from openbei.engine.cpu import CpuExecutor, choose_dtype
from openbei.errors import ConfigError
from openbei.model.spec import Head, HeadLayer, Linear, Model, pack
from tests.engine.fakes import MODEL, NOTHING, SPEC

HEADED = replace(MODEL, head=Head((HeadLayer(Linear(NOTHING)),)))


@pytest.mark.parametrize(
    ("asked", "native", "chosen"),
    [
        ("auto", True, "bfloat16"),
        ("auto", False, "float32"),
        ("bfloat16", True, "bfloat16"),
        ("float32", True, "float32"),
        ("float16", True, "float32"),
        ("fp16", True, "float32"),
        ("bf16", True, "bfloat16"),
    ],
)
def test_precision_follows_what_the_cpu_has(
    monkeypatch: pytest.MonkeyPatch, asked: str, native: bool, chosen: str
) -> None:
    monkeypatch.setattr(cpu, "native_bfloat16", lambda: native)
    assert choose_dtype(asked) == chosen


def test_fp8_is_for_gpus() -> None:
    with pytest.raises(ConfigError, match="dtype fp8 needs an NVIDIA GPU"):
        choose_dtype("fp8")


def test_bfloat16_is_refused_where_the_cpu_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "native_bfloat16", lambda: False)
    with pytest.raises(ConfigError, match="use float32"):
        choose_dtype("bfloat16")


@pytest.mark.parametrize(("cpus", "quota", "cores"), [({0, 1, 2, 3}, 99, 2), ({0, 2}, 99, 1), ({0, 1}, 1, 1)])
def test_cores_are_physical_allowed_and_within_the_quota(
    monkeypatch: pytest.MonkeyPatch, cpus: set[int], quota: int, cores: int
) -> None:
    """CPU n and CPU n + 2 are threads of one core."""
    fake_os = SimpleNamespace(sched_getaffinity=lambda _: cpus, cpu_count=lambda: len(cpus))
    monkeypatch.setattr(engine_cores, "os", fake_os)
    monkeypatch.setattr(engine_cores, "_siblings", lambda cpu: str(cpu % 2))
    monkeypatch.setattr(engine_cores, "_quota", lambda: quota)
    assert count_cores() == cores


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 1 << 16),
        ({"cpu.max": "max 100000"}, 1 << 16),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 1 << 16),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
    ],
)
def test_the_quota_is_read_of_both_versions_of_control_groups(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], cpus: int
) -> None:
    monkeypatch.setattr(engine_cores, "GROUP", tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    assert engine_cores._quota() == cpus


@pytest.mark.parametrize(("model", "own"), [(MODEL, "vectors"), (HEADED, "labels")])
def test_what_a_model_is_for_is_compiled_at_start_and_the_rest_once_when_asked_for(
    monkeypatch: pytest.MonkeyPatch, model: Model, own: str
) -> None:
    compiled: list[tuple[str, int]] = []
    may_go = threading.Event()

    def compile_model(_: Model, options: cpu.CompileOptions, output: str) -> SimpleNamespace:
        if options.num_streams == 2:
            assert may_go.wait(60)
        compiled.append((output, options.num_streams))
        return SimpleNamespace(run=lambda _: np.float32([[options.num_streams]]))

    monkeypatch.setattr(cpu, "compile_model", compile_model)
    monkeypatch.setattr(cpu, "count_cores", lambda: 2)
    executor = CpuExecutor(model, "float32")
    assert compiled == [(own, 1)]
    batch = pack(SPEC, [[1, 2]])

    def run(output: str) -> list[int]:
        with ThreadPoolExecutor(4) as threads:
            rows = threads.map(lambda alone: executor.run(batch, output, alone), [True, False] * 4)
            return [int(row[0, 0]) for row in rows]

    assert run(own) == run("states") == [1] * 8
    may_go.set()
    for output in (own, "states"):
        wait([executor._graphs_of(output).streams])
        assert run(output) == [1, 2] * 4
    assert compiled[:2] == [(own, 1), ("states", 1)]
    assert sorted(compiled[2:]) == sorted([(own, 2), ("states", 2)])


def test_streams_that_cannot_be_compiled_fail_the_batch_that_wants_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_model(_: Model, options: cpu.CompileOptions, output: str) -> SimpleNamespace:
        if options.num_streams == 2:
            raise MemoryError(output)
        return SimpleNamespace(run=lambda _: np.float32([[1]]))

    monkeypatch.setattr(cpu, "compile_model", compile_model)
    monkeypatch.setattr(cpu, "count_cores", lambda: 2)
    executor = CpuExecutor(MODEL, "float32")
    wait([executor._graphs_of("vectors").streams])
    with pytest.raises(MemoryError, match="vectors"):
        executor.run(pack(SPEC, [[1, 2]]), "vectors", alone=False)


def test_a_large_model_is_compiled_once_for_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[cpu.CompileOptions] = []

    def compile_model(_: Model, options: cpu.CompileOptions, output: str) -> SimpleNamespace:
        compiled.append(options)
        return SimpleNamespace(run=lambda _: np.float32([[1]]))

    monkeypatch.setattr(cpu, "compile_model", compile_model)
    monkeypatch.setattr(cpu, "count_cores", lambda: 2)
    monkeypatch.setattr(cpu, "MAX_TWICE", 0)
    executor = CpuExecutor(MODEL, "float32")
    assert compiled == [cpu.CompileOptions("float32", 1, 2)]
    assert executor.device.num_lanes == 1
