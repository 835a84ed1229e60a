"""How long does one client wait for one text of 8, 32 and 128 tokens?

    python benchmarks/latency.py       # about a minute

openbei answers over HTTP on a connection that stays open, with one request under way at a time; sentence-transformers
encodes the same string in process, without HTTP. They take turns text by text, each in its own process, and each keeps
its own time, from the string to the vector. p50 and p99 of all texts of a length, after a warm-up that is not counted;
the ratio is that of the medians.

It does not mean: latency under load, over a network, or of texts sent as a batch.
"""

import argparse
import contextlib
from functools import partial

import corpus
import harness
import http_load
import numpy as np
import peers

LENGTHS = (8, 32, 128)
REFERENCE = "sentence-transformers f32"
OPENBEI = "openbei HTTP"


def measure(workers: dict[str, harness.Worker], texts: list[str], warm_up: int) -> dict[str, np.ndarray]:
    """One text after the other through all workers -> milliseconds by name."""
    taken: dict[str, list[float]] = {name: [] for name in workers}
    for number, text in enumerate(texts):
        for name, worker in workers.items():
            seconds, _ = worker.run([text])
            if number >= warm_up:
                taken[name].append(seconds * 1e3)
    return {name: np.array(times) for name, times in taken.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--texts", type=int, default=300, help="texts of each length")
    options.add_argument("--quick", action="store_true", help="ten texts of each length: does it work at all?")
    chosen = options.parse_args()
    count, warm_up = (10, 2) if chosen.quick else (chosen.texts, 20)
    rows, result = [], {}
    with harness.model_folder() as folder, contextlib.ExitStack() as stack:
        port = stack.enter_context(http_load.server(folder))
        ways = {
            REFERENCE: peers.sentence_transformers_float32,
            "sentence-transformers bf16": peers.sentence_transformers_bfloat16,
            OPENBEI: partial(http_load.http_clients, 1, 1, port),
        }
        workers = {name: stack.enter_context(harness.Worker(make, folder)) for name, make in ways.items()}
        for length in LENGTHS:
            sample = corpus.make(folder / "tokenizer.json", (length, length), count + warm_up)
            for name, taken in measure(workers, sample.texts, warm_up).items():
                p50, p99 = np.percentile(taken, [50, 99])
                result[f"{name}, {length}"] = {"p50_ms": p50, "p99_ms": p99}
                ratio = result[f"{REFERENCE}, {length}"]["p50_ms"] / p50
                rows.append({"": name, "tokens": str(length), "p50": f"{p50:.2f} ms", "p99": f"{p99:.2f} ms"})
                rows[-1]["times as fast"] = f"{ratio:.2f}"
    harness.report(
        f"One client, one text; {count} texts of each length", rows, {"benchmark": "latency", "ways": result}
    )


if __name__ == "__main__":
    main()
