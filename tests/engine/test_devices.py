"""Which device and which precision: what was asked for, against what is there."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from openbei.config import DType, EngineConfig
from openbei.engine import devices
from openbei.engine.devices import gpu_number
from openbei.engine.precision import SPARE_BYTES, choose_precision, needed_bytes
from openbei.errors import ConfigError
from openbei.model.spec import HeadLayer, Linear, Model
from tests.engine.fakes import MODEL

LARGE = 1 << 40
H100, T4 = (9, 0), (7, 5)


@pytest.mark.parametrize(
    ("asked", "driver", "found", "number"),
    [
        ("cpu", True, 1, None),
        ("auto", False, 1, None),
        ("auto", True, 0, None),
        ("auto", True, 2, 0),
        ("cuda", True, 1, 0),
        ("cuda:1", True, 2, 1),
    ],
)
def test_auto_takes_a_gpu_only_where_one_can_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, asked: str, driver: bool, found: int, number: int | None
) -> None:
    monkeypatch.setattr(devices, "DRIVER_FILES", (tmp_path if driver else tmp_path / "none",))
    monkeypatch.setattr(devices, "_num_gpus", lambda: found)
    assert gpu_number(asked) == number


def test_a_gpu_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_num_gpus", lambda: 1)
    with pytest.raises(ConfigError, match="device cuda:1 is not there: PyTorch finds 1 NVIDIA GPUs"):
        gpu_number("cuda:1")


def test_a_driver_without_pytorch_is_told_and_the_cpu_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "DRIVER_FILES", (tmp_path,))
    monkeypatch.setattr(devices.importlib.util, "find_spec", lambda name: None)
    assert gpu_number("auto") is None
    assert "pip install 'openbei[cuda]'" in caplog.text
    with pytest.raises(ConfigError, match=r"device cuda:1 needs PyTorch, which is not installed: pip install"):
        gpu_number("cuda:1")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "CUDA", "cuda:0 "])
def test_a_device_is_spelled_as_pytorch_spells_it(device: str) -> None:
    with pytest.raises(ConfigError, match="device must be auto, cpu, cuda or cuda:N"):
        EngineConfig(device=device)


@pytest.mark.parametrize(
    ("asked", "capability", "chosen"),
    [
        ("auto", H100, "bfloat16"),
        ("auto", T4, "float16"),
        ("fp8", H100, "fp8"),
        ("bf16", H100, "bfloat16"),
        ("fp16", T4, "float16"),
        ("float32", T4, "float32"),
    ],
)
def test_precision_is_what_the_chip_multiplies(asked: DType, capability: tuple[int, int], chosen: str) -> None:
    assert choose_precision(asked, MODEL, capability, LARGE) == chosen


@pytest.mark.parametrize(("asked", "capability"), [("fp8", (8, 6)), ("bfloat16", T4)])
def test_precision_that_the_chip_lacks_is_an_error(asked: DType, capability: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=f"dtype {asked} needs compute capability"):
        choose_precision(asked, MODEL, capability, LARGE)


def large_model() -> Model:
    """A thousand million parameters beside the embeddings, of which none is in memory."""
    weight = np.broadcast_to(np.float32(0), (1000, 1_000_000))
    return replace(MODEL, dense=(HeadLayer(Linear(weight)),))


def test_auto_takes_fp8_where_16_bit_does_not_fit() -> None:
    model = large_model()
    assert needed_bytes(model, "bfloat16") == pytest.approx(2e9 + SPARE_BYTES, rel=1e-6)
    assert choose_precision("auto", model, H100, SPARE_BYTES + 2_100_000_000) == "bfloat16"
    assert choose_precision("auto", model, H100, SPARE_BYTES + 1_900_000_000) == "fp8"
    with pytest.raises(ConfigError, match=r"the model needs 4.2 GB in fp8; the GPU has 4.1 GB free"):
        choose_precision("auto", model, H100, SPARE_BYTES + 900_000_000)
    with pytest.raises(ConfigError, match="in bfloat16"):
        choose_precision("bfloat16", model, H100, SPARE_BYTES + 1_900_000_000)
