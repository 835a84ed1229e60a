"""How long from process start to the first right embedding, and how much memory does it hold then?

    python benchmarks/startup.py       # about a minute; Linux

openbei: `bei serve` is started as a person would, and the same request is tried every 5 ms until it is answered right
over HTTP. sentence-transformers: a new Python that imports it, loads the same model and encodes the same text, until it
prints the vector. The answer is right if its cosine with sentence-transformers' is above 0.999. In turn, after one
round that is not counted, so files come from the page cache and Python's modules are compiled for both. Medians; the
ratio is the median over rounds. CPU is that of all threads of the process up to the answer: it moves less than the
seconds do where other programs run. Memory is read one second later: VmRSS counts shared pages whole (a memory-mapped
model file among them), PSS by share.

It does not mean: a first start after boot, a fetch from a hub, or memory under load, which grows with the batches.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import frontends
import harness
import http_load
import numpy as np

TEXT = "The sky is blue because air scatters short waves more."
MEASURED = ("cpu_s", "rss_mb", "pss_mb")
SCRIPT = """
import json, sys
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu")
print(json.dumps(model.encode(sys.argv[2], normalize_embeddings=True).tolist()), flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Start:
    """seconds and CPU seconds to the vector; memory of the process at rest, MB of 10^6 bytes."""

    seconds: float
    cpu_s: float
    vector: np.ndarray
    rss_mb: float
    pss_mb: float


def openbei(folder: Path) -> Start:
    """`bei serve` on a port chosen before -> the first right answer."""
    port, started = http_load.free_port(), time.perf_counter()
    process = http_load.spawn(folder, port)
    try:
        vector = http_load.first_answer(process, port, TEXT)
        return _at_rest(process, started, vector)
    finally:
        process.terminate()
        process.wait(30)


def sentence_transformers(folder: Path) -> Start:
    """A new Python -> the first vector printed."""
    started = time.perf_counter()
    command = [sys.executable, "-c", SCRIPT, str(folder), TEXT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        return _at_rest(process, started, np.array(json.loads(line), np.float32))


def _at_rest(process: subprocess.Popen[bytes], started: float, vector: np.ndarray) -> Start:
    seconds, cpu_s = time.perf_counter() - started, frontends.cpu_s(process.pid)
    time.sleep(1)
    rss, pss = _megabytes(process.pid, "status", "VmRSS"), _megabytes(process.pid, "smaps_rollup", "Pss")
    return Start(seconds, cpu_s, vector, rss, pss)


def _megabytes(pid: int, file: str, name: str) -> float:
    """A line such as `VmRSS:  1234 kB` of /proc/PID/FILE, which counts in 1024 bytes -> millions of bytes."""
    rows = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    return next(int(row.split()[1]) * 1.024e-3 for row in rows if row.startswith(f"{name}:"))


WAYS: dict[str, Callable[[Path], Start]] = {"sentence-transformers": sentence_transformers, "openbei serve": openbei}


def summarise(starts: dict[str, list[Start]]) -> tuple[list[dict[str, str]], dict[str, dict[str, float]]]:
    """Starts of every round -> rows for the table, and the same for JSON. Stops if a vector is wrong."""
    rows, result = [], {}
    reference = starts["sentence-transformers"]
    for name, taken in starts.items():
        seconds = statistics.median(start.seconds for start in taken)
        ratio = statistics.median(theirs.seconds / ours.seconds for ours, theirs in zip(taken, reference, strict=True))
        cosine = harness.least_cosine(*(np.stack([start.vector for start in side]) for side in (taken, reference)))
        if cosine <= 0.999:
            sys.exit(f"{name} answers another vector: cosine {cosine}")
        cpu_s, rss, pss = (statistics.median(getattr(start, key) for start in taken) for key in MEASURED)
        rows.append({"": name, "first vector": f"{seconds:.2f} s", "times as fast": f"{ratio:.2f}"})
        rows[-1]["CPU"] = f"{cpu_s:.2f} s"
        rows[-1] |= {"VmRSS": f"{rss:.0f} MB", "PSS": f"{pss:.0f} MB", "cosine": f"{cosine:.6f}"}
        result[name] = {"first_vector_s": seconds, "ratio": ratio, "cosine": cosine}
        result[name] |= dict(zip(MEASURED, (cpu_s, rss, pss), strict=True))
    return rows, result


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--quick", action="store_true", help="one round: does it work at all?")
    chosen = options.parse_args()
    rounds = 1 if chosen.quick else chosen.rounds
    starts: dict[str, list[Start]] = {name: [] for name in WAYS}
    with harness.model_folder() as folder:
        for number in range(rounds + 1):
            for name, way in WAYS.items():
                start = way(folder)
                starts[name] += [start] if number else []
    rows, result = summarise(starts)
    title = f"Process start to first right embedding; {rounds} round(s)"
    harness.report(title, rows, {"benchmark": "startup", "ways": result})


if __name__ == "__main__":
    main()
