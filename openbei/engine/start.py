"""EngineConfig -> a running Engine: reads the model, then starts an executor on it.

Owns the order of start-up; never touches requests.
"""

from pathlib import Path

from openbei.config import EngineConfig, PoolingFlag
from openbei.engine.devices import gpu_number
from openbei.engine.engine import Engine
from openbei.engine.executor import CpuExecutor
from openbei.model.spec import Pooling
from openbei.weights.checkpoint import Checkpoint
from openbei.weights.load import LoadOptions, load

POOLING_FLAGS: dict[PoolingFlag, Pooling] = {"cls": "cls", "mean": "mean", "last-token": "last_token"}


def open_engine(config: EngineConfig) -> Engine:
    """Read the model that config names and start an Engine on it. Raises ModelError, ConfigError."""
    checkpoint = load(config.model_id, load_options(config))
    return start(checkpoint, config)


def start(checkpoint: Checkpoint, config: EngineConfig) -> Engine:
    """A read model -> an Engine on the device that config asks for, warmed up. Raises ConfigError, ModelError."""
    number = gpu_number(config.device)
    if number is None:
        return Engine(checkpoint, config, lambda: CpuExecutor(checkpoint.model, config.dtype))
    from openbei.engine.cuda import on_gpu  # PyTorch takes seconds to import

    return Engine(checkpoint, config, lambda: on_gpu(checkpoint.model, config.dtype, number))


def load_options(config: EngineConfig) -> LoadOptions:
    """The part of the config that says which files to read."""
    return LoadOptions(
        revision=config.revision,
        pooling=POOLING_FLAGS[config.pooling] if config.pooling else None,
        hf_token=config.hf_token,
        cache_dir=Path(config.huggingface_hub_cache) if config.huggingface_hub_cache else None,
    )
