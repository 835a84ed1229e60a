"""Is the GPU engine right, and how fast is it? One run on a bare machine with one GPU.

    python -m benchmarks.gpu --out gpu.json        # all of it: tables, and JSON there or else as the last line
    python -m benchmarks.gpu --small --device cpu  # all of it, tiny and without a GPU: does it work at all?

The parts, and how long each should take on an H100 with 16 cores (computed, none of it was timed on one):
  facts, copy             10 s    versions, a compiler for Triton's launchers, one kernel; memory to memory
  checks                  3 min   every kernel and family against its plain twin: the tests marked cuda
  compiling               1 min   the 150 kernels of the parts that follow, by many processes at once
  forward                 2 min   whole models at real size with random weights: one request, full batches
  products, attention     1 min   each alone, by libraries and by our kernels
  server                  4 min   over HTTP: one client, an open loop, as many as it can answer
  sentence-transformers   1 min   on the same models
Where one command may not take so long: --only, two or three parts a call. The file of --out is written after every row.
A part that fails is told and the next one runs; a part that no time is left for is cut short or left out, and named.

It needs Python 3.11 or later with torch, triton, transformers, sentence-transformers, tokenizers, safetensors and
pytest; what a machine without a network then still lacks is named in wheels.txt, and how to carry it.
It does not mean: quality (the weights are random), or other chips. `floor` is a datasheet's; see shapes.py.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import harness

from benchmarks.gpu.parts import PARTS, Row, run


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--device", default="cuda:0", help="cuda:N, or cpu")
    options.add_argument("--small", action="store_true", help="tiny models, few numbers")
    options.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts alone")
    options.add_argument("--minutes", type=float, default=30.0, help="end after about so many")
    options.add_argument("--out", type=Path, help="a file for the JSON, written after every row")
    chosen = options.parse_args()
    end_s = time.monotonic() + chosen.minutes * 60
    result: dict[str, Any] = {"benchmark": "gpu", "small": chosen.small, "device": chosen.device}
    result["machine"] = harness.machine()
    for name in chosen.only:
        if time.monotonic() > end_s:
            print(f"\n{name}: left out, {chosen.minutes:g} minutes are over")
            continue
        print(f"\n{name}", flush=True)
        result[name] = {"rows": [], "seconds": 0.0, "error": "did not end"}
        for _ in run(name, chosen, result[name], end_s):
            save(result, chosen.out)
        print(f"\n{table(result[name]['rows'])}\n{result[name]['seconds']} s {result[name]['error']}", flush=True)
    if chosen.out is None:
        print(json.dumps(result))
    return int(any(part.get("error") for name, part in result.items() if name in PARTS))


def save(result: dict[str, Any], out: Path | None) -> None:
    """What is known so far into the file."""
    if out is not None:
        out.write_text(json.dumps(result, indent=1))


def table(rows: list[Row]) -> str:
    """Rows of any keys -> aligned columns, numbers to three digits."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    shown = [{key: cell(row.get(key, "")) for key in keys} for row in rows]
    return harness.table(shown) if shown else "nothing"


def cell(value: Any) -> str:
    """A value as a person reads it."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
