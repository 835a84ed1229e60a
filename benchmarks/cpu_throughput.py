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
    "ONNX f32, padded by 8": peers.onnx_padded,
    "sentence-transformers f32": peers.sentence_transformers_float32,
    "sentence-transformers bf16": peers.sentence_transformers_bfloat16,
}
REFERENCE = "sentence-transformers f32"
IN_PROCESS = "openbei in process"


def ways(port: int | None) -> dict[str, Callable[[Path], peers.Way]]:
    """Names -> how each is made; those over HTTP only with a server."""
    found = {**PEERS, IN_PROCESS: peers.openbei_in_process}
    if port is not None:
        found["openbei HTTP, 64 clients x 1 text"] = partial(http_load.http_clients, 64, 1, port)
        found["openbei HTTP, 8 clients x 32 texts"] = partial(http_load.http_clients, 8, 32, port)
    return found


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


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--form", choices=("mixed", "long"), default="mixed")
    options.add_argument("--texts", type=int, default=512)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--quick", action="store_true", help="one round of 64 texts: does it work at all?")
    chosen = options.parse_args()
    count, rounds = (64, 1) if chosen.quick else (chosen.texts, chosen.rounds)
    with harness.model_folder() as folder, contextlib.ExitStack() as stack:
        sample = corpus.make(folder / "tokenizer.json", getattr(corpus, chosen.form.upper()), count)
        port = stack.enter_context(http_load.server(folder))
        made = {name: stack.enter_context(harness.Worker(make, folder)) for name, make in ways(port).items()}
        seconds, vectors = measure(made, sample.texts, rounds)
    rows, result = [], {}
    for name, taken in seconds.items():
        rate = sample.num_tokens / statistics.median(taken)
        against = {f"x {peer}": ratio(seconds, name, peer) for peer in [*PEERS, IN_PROCESS]}
        cosine = harness.least_cosine(vectors[name], vectors[REFERENCE])
        texts_rate = count / statistics.median(taken)
        rows.append({"": name, "tokens/s": f"{rate:,.0f}", "texts/s": f"{texts_rate:,.0f}"})
        rows[-1] |= {title: f"{value:.2f}" for title, value in against.items()} | {"cosine": f"{cosine:.7f}"}
        result[name] = {"tokens_per_s": rate, "texts_per_s": texts_rate, "ratios": against, "cosine_min": cosine}
        result[name] |= {"seconds": taken}
    lengths = f"{min(sample.lengths)} to {max(sample.lengths)} tokens, {sample.num_tokens / count:.0f} on average"
    title = f"{count} {chosen.form} texts of {lengths}; {rounds} rounds"
    harness.report(title, rows, {"benchmark": "cpu_throughput", "form": chosen.form, "texts": count, "ways": result})


if __name__ == "__main__":
    main()
