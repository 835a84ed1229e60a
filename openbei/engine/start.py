"""EngineConfig -> a running Engine: reads the model, then starts an executor on it.

Owns the order of start-up; never touches requests.
"""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from openbei.config import DType, EngineConfig, PoolingFlag
from openbei.engine.budget import Need, free_memory_bytes
from openbei.engine.core import Clock, LocalCore
from openbei.engine.devices import gpu_number
from openbei.engine.engine import Engine
from openbei.engine.executor import Executor
from openbei.engine.metrics import Metrics
from openbei.engine.precision import BYTES, choose_precision, needed_bytes
from openbei.engine.probe import check_outputs
from openbei.engine.settle import Served, activation_of, default_prompt, describe, kind_of, limited
from openbei.errors import ConfigError
from openbei.model.spec import Model, num_parameters
from openbei.weights.checkpoint import Checkpoint
from openbei.weights.load import LoadOptions, load
from openbei.weights.modules import PoolingChoice

ENOUGH_BYTES = 1 << 62
POOLING_FLAGS: dict[PoolingFlag, PoolingChoice] = {
    "cls": "cls",
    "mean": "mean",
    "last-token": "last_token",
    "splade": "splade",
}


def open_engine(config: EngineConfig) -> Engine:
    """Read the model that config names and start an Engine on it. Raises ModelError, ConfigError."""
    return start(read_model(config), config)


def read_model(config: EngineConfig) -> Checkpoint:
    """The model that config names, read. Raises ModelError, ConfigError."""
    return load(config.model_id, load_options(config))


def start(checkpoint: Checkpoint, config: EngineConfig) -> Engine:
    """A read model -> an Engine on the device that config asks for, warmed up. Raises ConfigError, ModelError."""
    return start_engine(checkpoint, config, lambda: make_executor(checkpoint, config))


def open_model(config: EngineConfig) -> tuple[Checkpoint, Callable[[], Executor]]:
    """Read the model that config names -> the model, and what makes an executor for it. Raises ModelError."""
    checkpoint = read_model(config)
    return checkpoint, lambda: make_executor(checkpoint, config)


def start_engine(checkpoint: Checkpoint, config: EngineConfig, make_executor: Callable[[], Executor]) -> Engine:
    """A read model -> both halves of an engine in this process. make_executor: as LocalCore has it."""
    metrics = Metrics(limited(checkpoint.text, config).max_length)
    core, served = start_core(checkpoint, config, make_executor, metrics)
    try:
        return Engine(served, core, metrics)
    except BaseException:
        core.close()
        raise


def start_core(
    checkpoint: Checkpoint,
    config: EngineConfig,
    make_executor: Callable[[], Executor],
    metrics: Metrics,
    clock: Clock = time.monotonic,
) -> tuple[LocalCore, Served]:
    """A read model -> the half of an engine that computes, and what the other half must know of it."""
    text = limited(checkpoint.text, config)
    prompt = default_prompt(text, config, kind_of(checkpoint))
    core = LocalCore(checkpoint, config, make_executor, metrics, clock)
    info = describe(checkpoint, text, config, core.device)
    facts = activation_of(checkpoint), checkpoint.by_token, checkpoint.lookup
    return core, Served(config, info, text, prompt, *facts)


def make_executor(checkpoint: Checkpoint, config: EngineConfig) -> Executor:
    """The executor that a config asks for; an artifact's passed the self-check. Raises ConfigError, WeightsError."""
    executor = _executor(checkpoint, config)
    check_outputs(checkpoint, executor, every=config.verify)
    return executor


def need_of(checkpoint: Checkpoint, config: EngineConfig) -> Need:
    """What a read model will take of the device that config asks for. Raises ConfigError."""
    number, model = gpu_number(config.device), checkpoint.model
    dtype = asked_dtype(checkpoint, config, on_cpu=number is None)
    if number is None:
        from openbei.engine.cpu import choose_dtype, held_bytes

        chosen = choose_dtype(dtype)
        return Need(num_parameters(model) * BYTES[chosen], held_bytes(model, chosen), free_memory_bytes())
    from openbei.engine.machine import CudaMachine

    machine = CudaMachine(number)
    free_bytes = machine.free_bytes()
    try:
        precision = choose_precision(dtype, model, machine.capability, free_bytes)
    except ConfigError:  # for want of memory, or again
        precision = choose_precision(dtype, model, machine.capability, ENOUGH_BYTES)
    return Need(num_parameters(model) * BYTES[precision], needed_bytes(model, precision), free_bytes)


def asked_dtype(checkpoint: Checkpoint, config: EngineConfig, on_cpu: bool) -> DType:
    """The --dtype, or where none is given the artifact's own, so far as the device has it: an artifact starts anywhere.

    auto computes in FP8 what is stored so where the chip does, and on a CPU in bfloat16 where that has it.
    """
    if config.dtype != "auto" or checkpoint.artifact is None:
        return config.dtype
    built = checkpoint.artifact.dtype
    return "auto" if built == "fp8" or (on_cpu and built == "bfloat16") else built


def _executor(checkpoint: Checkpoint, config: EngineConfig) -> Executor:
    on_cpu = gpu_number(config.device) is None
    return import_backend(config.device)(checkpoint.model, asked_dtype(checkpoint, config, on_cpu))


def import_backend(device: str) -> Callable[[Model, DType], Executor]:
    """--device -> what makes an executor of a model there; each imports a library that the other does without."""
    number = gpu_number(device)
    if number is None:
        from openbei.engine.cpu import CpuExecutor

        return CpuExecutor
    from openbei.engine.cuda import on_gpu

    return partial(on_gpu, number=number)


def load_options(config: EngineConfig) -> LoadOptions:
    """The part of the config that says which files to read."""
    return LoadOptions(
        revision=config.revision,
        pooling=POOLING_FLAGS[config.pooling] if config.pooling else None,
        hf_token=config.hf_token,
        cache_dir=Path(config.huggingface_hub_cache) if config.huggingface_hub_cache else None,
        verify=config.verify,
    )
