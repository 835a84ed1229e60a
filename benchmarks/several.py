"""What does a second model in the server cost the first: while nobody asks it, and while both are busy?

    python benchmarks/several.py                   # all-MiniLM-L6-v2 twice, about three minutes

One process, as `bei serve A B` without frontends: two engines, each with its own lanes and graphs. Rounds of four
turns: A with no B there, A beside an idle B, B beside an idle A, and both at once on the same texts. The numbers are
tokens a second; `idle` is A beside an idle B over A alone, `both` the sum of the two at once over A alone, medians over
rounds of the round's own ratio. B is loaded and closed again in each round, outside of the time.

It does not mean: other models, memory, or latency; nor engine processes (`--frontends`), which the system schedules.
"""

import argparse
import statistics
import sys
import threading
import time

import corpus
import harness

from openbei import load
from openbei.engine.engine import Engine


def rate(texts: corpus.Corpus, *engines: Engine) -> float:
    """All engines on all texts at once -> tokens a second of all together."""
    threads = [threading.Thread(target=engine.embed, args=[texts.texts]) for engine in engines]
    begin_s = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return texts.num_tokens * len(engines) / (time.perf_counter() - begin_s)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--texts", type=int, default=512)
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--quick", action="store_true", help="one round of 64 texts: does it work at all?")
    chosen = options.parse_args()
    if chosen.quick:
        chosen.texts, chosen.rounds = 64, 1
    rounds = []
    with harness.model_folder() as folder, load(str(folder)) as first:
        texts = corpus.make(folder / "tokenizer.json", corpus.MIXED, chosen.texts)
        rate(texts, first)
        for number in range(chosen.rounds):
            turns = {"A alone": rate(texts, first)}
            with load(str(folder)) as second:
                rate(texts, second)  # its graph for streams is compiled behind its start
                turns["A, B idle"] = rate(texts, first)
                turns["B, A idle"] = rate(texts, second)
                turns["A and B at once"] = rate(texts, first, second)
            rounds.append(turns)
            print(f"round {number + 1} of {chosen.rounds} done", file=sys.stderr)
    medians = {name: statistics.median(turns[name] for turns in rounds) for name in rounds[0]}
    ratios = {
        "idle": statistics.median(turns["A, B idle"] / turns["A alone"] for turns in rounds),
        "both": statistics.median(turns["A and B at once"] / turns["A alone"] for turns in rounds),
    }
    rows = [{"": name, "tokens/s": f"{value:,.0f}"} for name, value in medians.items()]
    rows += [{"": f"ratio {name}", "tokens/s": f"{value:.2f}"} for name, value in ratios.items()]
    title = f"{chosen.texts} mixed texts, {texts.num_tokens} tokens; {chosen.rounds} round(s)"
    harness.report(title, rows, {"benchmark": "several", "ratios": ratios, "rounds": rounds})


if __name__ == "__main__":
    main()
