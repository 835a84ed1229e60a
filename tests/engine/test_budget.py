"""What fits: the limit over all models, what is free, and how the system and a container say it."""

from pathlib import Path

import numpy as np
import pytest

from openbei.config import EngineConfig
from openbei.engine.budget import Budget, Need, free_memory_bytes
from openbei.engine.start import need_of
from openbei.errors import OutOfMemory
from openbei.model.spec import num_parameters
from tests.engine.fakes import checkpoint


def test_the_limit_is_for_all_together() -> None:
    budget = Budget(100)
    budget.take("a", Need(60, 1, None))
    with pytest.raises(OutOfMemory, match="'b' have 41 bytes > 40, which are left of max_model_bytes 100"):
        budget.take("b", Need(41, 1, None))
    budget.take("b", Need(40, 1, None))
    budget.give_back("a")
    budget.take("c", Need(60, 1, None))


def test_one_that_comes_back_is_not_counted_twice() -> None:
    budget = Budget(100)
    budget.take("a", Need(60, 1, None))
    budget.take("a", Need(60, 1, None))


def test_what_is_on_its_way_counts_until_it_is_there() -> None:
    budget = Budget()
    budget.take("a", Need(1, 60, 100))
    with pytest.raises(OutOfMemory, match="at least 41 bytes of memory for its weights > 40"):
        budget.take("b", Need(1, 41, 100))
    budget.loaded("a")  # and from then on what is free tells of it
    budget.take("b", Need(1, 41, 41))
    budget.give_back("b")
    budget.take("c", Need(1, 100, 100))


def test_nothing_is_refused_where_nobody_knows_what_is_free() -> None:
    Budget().take("a", Need(1 << 60, 1 << 60, None))


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = "MemTotal:       9000 kB\nMemFree:  10 kB\nMemAvailable:   1000 kB\n"


def test_free_is_what_the_system_has_left(tmp_path: Path) -> None:
    assert free_memory_bytes(tmp_path) is None
    write(tmp_path, proc__meminfo=MEMINFO)
    assert free_memory_bytes(tmp_path) == 1_024_000
    assert free_memory_bytes() is not None


@pytest.mark.parametrize(
    ("limit", "free"), [("max\n", 1_024_000), ("500000\n", 500_000 - 300_000 + 50_000), ("9000000\n", 1_024_000)]
)
def test_a_container_may_have_less(tmp_path: Path, limit: str, free: int) -> None:
    write(
        tmp_path,
        proc__meminfo=MEMINFO,
        sys__fs__cgroup__memory_dot_max=limit,
        sys__fs__cgroup__memory_dot_current="300000\n",
        sys__fs__cgroup__memory_dot_stat="anon 250000\ninactive_file 50000\n",
    )
    assert free_memory_bytes(tmp_path) == free


def test_the_older_groups_too(tmp_path: Path) -> None:
    write(
        tmp_path,
        sys__fs__cgroup__memory__memory_dot_limit_in_bytes="500000\n",
        sys__fs__cgroup__memory__memory_dot_usage_in_bytes="300000\n",
        sys__fs__cgroup__memory__memory_dot_stat="inactive_file 1\ntotal_inactive_file 50000\n",
    )
    assert free_memory_bytes(tmp_path) == 250_000


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 4)])
def test_what_a_model_needs_goes_by_the_precision_that_is_computed_in(tmp_path: Path, dtype: str, size: int) -> None:
    """A CPU computes float16 in float32. The fake model is tables alone, so its graphs hold nothing of it."""
    model = checkpoint(tmp_path)
    need = need_of(model, EngineConfig(device="cpu", dtype=dtype))  # type: ignore[arg-type]
    assert need.weight_bytes == size * num_parameters(model.model) == size * 4
    assert need.held_bytes == 0
    assert need.free_bytes
    assert np.isfinite(need.free_bytes)
