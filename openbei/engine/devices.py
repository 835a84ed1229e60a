"""--device -> a GPU's number, or the CPU.

Owns the choice; imports PyTorch only where a GPU is there or was asked for, because that takes seconds.
"""

import importlib.util
import logging
from pathlib import Path

from openbei.errors import ConfigError

DRIVER_FILES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # Linux, and Linux under Windows
INSTALL = "pip install 'openbei[cuda]'"

log = logging.getLogger(__name__)


def gpu_number(device: str) -> int | None:
    """auto, cpu, cuda or cuda:N -> the GPU's number, None for the CPU. Raises ConfigError where it is not there."""
    if device == "cpu":
        return None
    if device == "auto":
        return 0 if _has_gpu() and _has_torch() and _num_gpus() else None
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(f"device {device} needs PyTorch, which is not installed: {INSTALL}")
    number, found = int(device.partition(":")[2] or 0), _num_gpus()
    if number >= found:
        raise ConfigError(f"device {device} is not there: PyTorch finds {found} NVIDIA GPUs")
    return number


def _has_gpu() -> bool:
    return any(file.exists() for file in DRIVER_FILES)


def _has_torch() -> bool:
    found = importlib.util.find_spec("torch") is not None
    if not found:
        log.warning("PyTorch, which a GPU needs, is not installed: %s", INSTALL)
    return found


def _num_gpus() -> int:
    import torch

    return torch.cuda.device_count()
