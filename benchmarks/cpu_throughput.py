"""How many tokens a second does this CPU embed, with openbei and with what people use today?

    python benchmarks/cpu_throughput.py            # all-MiniLM-L6-v2, about six minutes; --form long for long texts

Every way gets the same raw strings at once and pays for its own tokenizing. The number is real tokens (specials
included, padding not) over wall-clock seconds until the last vector is there. Ways take turns, round after round,
each in its own process, after one round that is not counted; a ratio is the median over rounds of that round's ratio,
so that what else the machine does strikes both sides. `cosine` is the worst vector's, against float32.

It does not mean: latency, other models, other core counts, or natural traffic (see corpus.py). Over HTTP the client
shares the cores with the server, and its decoding of the answers is not in the number.
"""

import argparse
import contextlib
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import corpus
import harness
import http_load
import peers

PEERS = {
    "ONNX Runtime f32, padded": peers.onnx_padded,
    "sentence-transf. f32": peers.sentence_transformers_float32,
    "sentence-transf. bf16": peers.sentence_transformers_bfloat16,
}
REFERENCE = "sentence-transf. f32"
IN_PROCESS = "openbei in process"


def ways(port: int) -> dict[str, Callable[[Path], peers.Way]]:
    """Names -> how each is made; those over HTTP ask the server at `port`."""
    return {
        **PEERS,
        IN_PROCESS: peers.openbei_in_process,
        "openbei HTTP, 64 clients x 1 text": partial(http_load.http_clients, 64, 1, port),
        "openbei HTTP, 8 clients x 32 texts": partial(http_load.http_clients, 8, 32, port),
    }


def measure(workers: dict[str, harness.Worker], texts: list[str], rounds: int) -> tuple[dict, dict]:
    """Rounds of all workers -> seconds of each round, and vectors, by name."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    vectors = {}
    for number in range(rounds + 1):
        for name, worker in workers.items():
            taken, vectors[name] = worker.run(texts)
            if number:
                seconds[name].append(taken)
        print(f"round {number} of {rounds} done", file=sys.stderr)
    return seconds, vectors


def ratio(seconds: dict[str, list[float]], name: str, other: str) -> float:
    """How many times as fast `name` is as `other`: the median over rounds."""
    return statistics.median(theirs / ours for ours, theirs in zip(seconds[name], seconds[other], strict=True))


def summarise(sample: corpus.Corpus, seconds: dict[str, list[float]], cosines: dict[str, float]) -> tuple[list, dict]:
    """Seconds of every round -> rows for the table, and the same for JSON."""
    rows, result = [], {}
    for name, taken in seconds.items():
        median = statistics.median(taken)
        rates = {"tokens/s": sample.num_tokens / median, "texts/s": len(sample.texts) / median}
        ratios = {f"x {other}": ratio(seconds, name, other) for other in [*PEERS, IN_PROCESS]}
        result[name] = {**rates, "ratios": ratios, "cosine_min": cosines[name], "seconds": taken}
        cells = {key: f"{value:,.0f}" for key, value in rates.items()}
        cells |= {key: f"{value:.2f}" for key, value in ratios.items()}
        rows.append({"": name, **cells, "cosine": f"{cosines[name]:.6f}"})
    return rows, result


def arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--form", choices=("mixed", "long"), default="mixed")
    options.add_argument("--texts", type=int, default=512)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--quick", action="store_true", help="one round of 64 texts: does it work at all?")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.texts, chosen.rounds = 64, 1
    return chosen


def main() -> None:
    chosen = arguments()
    with harness.model_folder() as folder, contextlib.ExitStack() as stack:
        limits = {"mixed": corpus.MIXED, "long": corpus.LONG}[chosen.form]
        sample = corpus.make(folder / "tokenizer.json", limits, chosen.texts)
        port = stack.enter_context(http_load.server(folder))
        workers = {name: stack.enter_context(harness.Worker(make, folder)) for name, make in ways(port).items()}
        seconds, vectors = measure(workers, sample.texts, chosen.rounds)
    cosines = {name: harness.least_cosine(rows, vectors[REFERENCE]) for name, rows in vectors.items()}
    rows, result = summarise(sample, seconds, cosines)
    mean = sample.num_tokens / chosen.texts
    lengths = f"{min(sample.lengths)} to {max(sample.lengths)} tokens, {mean:.0f} on average"
    title = f"{chosen.texts} {chosen.form} texts of {lengths}; {chosen.rounds} round(s)"
    facts = {"benchmark": "cpu_throughput", "form": chosen.form, "texts": chosen.texts, "mean_tokens": mean}
    harness.report(title, rows, facts | {"ways": result})


if __name__ == "__main__":
    main()
