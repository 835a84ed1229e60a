"""How many cores this process may use: of the machine's, less what affinity and the container's quota keep from it.

Imports nothing heavy: whoever tokenises asks too, not only what computes.
"""

import os
from pathlib import Path

GROUP = Path("/sys/fs/cgroup")
QUOTAS = (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"))  # of a control group, of both versions


def count_cores() -> int:
    """Physical cores that this process may use: affinity and the container's quota counted, at least 1."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {_siblings(cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota()))


def _siblings(cpu: int) -> str:
    """Name of the physical core that a logical CPU is a thread of; the CPU itself where the system does not say."""
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _quota() -> int:
    """CPUs that the control group allows, rounded up; a large number where there is no limit."""
    for names in QUOTAS:
        try:
            quota, period = (int(word) for name in names for word in (GROUP / name).read_text().split())
        except (OSError, ValueError):  # not this version, or "max"
            continue
        if quota > 0:  # -1 is no limit
            return -(-quota // period)
    return 1 << 16
