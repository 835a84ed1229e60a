"""Whether the weights of one more model fit: within the limit of a server, and in the memory that is free.

Owns the sums; never loads anything. The numbers are what a model takes at the least: what its batches need beside its
weights is not known before they run.
"""

import threading
from dataclasses import dataclass
from pathlib import Path

from openbei.errors import OutOfMemory

CGROUPS = (  # limit, use and statistics of a control group, of both versions
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


@dataclass(frozen=True, slots=True)
class Need:
    """What a model takes. weight_bytes: every parameter once, in the precision that is computed in.

    held_bytes: what the device holds of them at the least; free_bytes: what it has left, None where nobody knows.
    """

    weight_bytes: int
    held_bytes: int
    free_bytes: int | None


class Budget:
    """The weights of a server's models, by name. limit_bytes: of all together, None for no limit."""

    def __init__(self, limit_bytes: int | None = None) -> None:
        self._limit_bytes = limit_bytes
        self._changing = threading.Lock()
        self._needs: dict[str, Need] = {}
        self._coming: set[str] = set()  # not counted yet by what is free

    def take(self, name: str, need: Need) -> None:
        """Count a model that is about to be loaded. Raises OutOfMemory."""
        with self._changing:
            others = {key: one for key, one in self._needs.items() if key != name}
            if self._limit_bytes is not None:
                left_bytes = self._limit_bytes - sum(one.weight_bytes for one in others.values())
                if need.weight_bytes > left_bytes:
                    raise OutOfMemory(
                        f"the weights of {name!r} have {need.weight_bytes} bytes > {max(0, left_bytes)}, "
                        f"which are left of max_model_bytes {self._limit_bytes}"
                    )
            if need.free_bytes is not None:
                free_bytes = need.free_bytes - sum(others[key].held_bytes for key in self._coming - {name})
                if need.held_bytes > free_bytes:
                    raise OutOfMemory(
                        f"{name!r} needs at least {need.held_bytes} bytes of memory for its weights > "
                        f"{max(0, free_bytes)}, which are free"
                    )
            self._needs[name] = need
            self._coming.add(name)

    def loaded(self, name: str) -> None:
        """It is in memory, so that what is free tells of it."""
        with self._changing:
            self._coming.discard(name)

    def give_back(self, name: str) -> None:
        """It is gone, or did not come."""
        with self._changing:
            self._needs.pop(name, None)
            self._coming.discard(name)


def free_memory_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this process may still take, by the system and by its container; None where neither says."""
    known = [one for one in (_available_bytes(root), *_left_of_cgroups(root)) if one is not None]
    return min(known, default=None)


def _available_bytes(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def _left_of_cgroups(root: Path) -> list[int]:
    """Limit less use, of which files that nobody reads just now are given up first."""
    found = []
    for limit, use, statistics, idle in CGROUPS:
        folder = root / "sys/fs/cgroup"
        try:
            most, used = int((folder / limit).read_text()), int((folder / use).read_text())
            lines = dict(line.split() for line in (folder / statistics).read_text().splitlines())
        except (OSError, ValueError):  # not there, or "max"
            continue
        found.append(most - used + int(lines.get(idle, 0)))
    return found
