"""The CPU's precision and its cores."""

from types import SimpleNamespace

import pytest

from openbei.engine import executor
from openbei.engine.executor import choose_dtype, count_cores
from openbei.errors import ConfigError


@pytest.mark.parametrize(
    ("asked", "native", "chosen"),
    [
        ("auto", True, "bfloat16"),
        ("auto", False, "float32"),
        ("bfloat16", True, "bfloat16"),
        ("float32", True, "float32"),
        ("float16", True, "float32"),
    ],
)
def test_precision_follows_what_the_cpu_has(
    monkeypatch: pytest.MonkeyPatch, asked: str, native: bool, chosen: str
) -> None:
    monkeypatch.setattr(executor, "native_bfloat16", lambda: native)
    assert choose_dtype(asked) == chosen


def test_bfloat16_is_refused_where_the_cpu_lacks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "native_bfloat16", lambda: False)
    with pytest.raises(ConfigError, match="use float32"):
        choose_dtype("bfloat16")


@pytest.mark.parametrize(("cpus", "quota", "cores"), [({0, 1, 2, 3}, 99, 2), ({0, 2}, 99, 1), ({0, 1}, 1, 1)])
def test_cores_are_physical_allowed_and_within_the_quota(
    monkeypatch: pytest.MonkeyPatch, cpus: set[int], quota: int, cores: int
) -> None:
    """CPU n and CPU n + 2 are threads of one core."""
    fake_os = SimpleNamespace(sched_getaffinity=lambda _: cpus, cpu_count=lambda: len(cpus))
    monkeypatch.setattr(executor, "os", fake_os)
    monkeypatch.setattr(executor, "_siblings", lambda cpu: str(cpu % 2))
    monkeypatch.setattr(executor, "_quota", lambda: quota)
    assert count_cores() == cores
