"""Is the GPU engine right, and how fast is it? One run of at most eight minutes on a bare machine with one GPU.

    python -m benchmarks.gpu                       # all of it; tables, and a last line of JSON
    python -m benchmarks.gpu --small --device cpu  # all of it, tiny and without a GPU: does it work at all?

First every kernel and family against its plain twin (the tests marked cuda), then: copies, products and attention;
whole models at real size with random weights, one request and full batches; the server over HTTP;
sentence-transformers. A part that fails is told and the next one runs. Parts that no time is left for are named.

It needs Python 3.11 or later with torch, triton, transformers, sentence-transformers, tokenizers, safetensors and
pytest; what a machine without a network then still lacks is named in wheels.txt, and how to carry it.
It does not mean: quality (the weights are random), or other chips. `floor` is a datasheet's; see shapes.py.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import torch

from benchmarks.gpu import ceilings, forward, rivals, serving
from openbei.engine.machine import CudaMachine, HostMachine, Machine

Row = dict[str, Any]
TESTS = ("tests/model/kernels", "tests/model/test_cuda.py", "tests/engine/test_cuda.py")


def checks(machine: Machine, tiny: bool) -> Iterator[Row]:
    """The tests that need a device, in processes of their own -> what became of them."""
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider", "-W", "default", *TESTS]
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(min(12, os.cpu_count() or 1))]  # each compiles its kernels, which is most of the time
    if tiny:
        command.append("--collect-only")
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    lines = done.stdout.strip().splitlines()
    for line in lines:
        if line.startswith(("FAILED", "ERROR")):
            yield {"what": line[:200]}
    yield {"what": lines[-1] if lines else done.stderr[-200:], "exit": done.returncode}


PARTS: dict[str, Callable[[Machine, bool], Iterator[Row]]] = {
    "checks": checks,
    "copy": ceilings.copy,
    "products": ceilings.products,
    "attention": ceilings.attentions,
    "forward": forward.forwards,
    "server": serving.served,
    "sentence-transformers": rivals.sentence_transformers,
}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--device", default="cuda:0", help="cuda:N, or cpu")
    options.add_argument("--small", action="store_true", help="tiny models, few numbers")
    options.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts alone")
    options.add_argument("--minutes", type=float, default=8.0, help="start no part after this")
    options.add_argument("--out", type=Path, help="a file for the JSON as well")
    chosen = options.parse_args()
    machine: Machine = HostMachine() if chosen.device == "cpu" else CudaMachine(int(chosen.device.partition(":")[2]))
    begin_s, failed = time.monotonic(), 0
    result: dict[str, Any] = {"benchmark": "gpu", "small": chosen.small, "device": machine.name}
    for name in chosen.only:
        if time.monotonic() - begin_s > chosen.minutes * 60:
            print(f"\n{name}: left out, {chosen.minutes:g} minutes are over")
            continue
        rows, error = run(PARTS[name], machine, chosen.small)
        failed += bool(error)
        result[name] = {"rows": rows, "seconds": round(time.monotonic() - begin_s, 1), "error": error}
        print(f"\n{name}\n{table(rows)}{error}", flush=True)
    result["machine"] = harness.machine()
    if chosen.out:
        chosen.out.write_text(json.dumps(result, indent=1))
    print(json.dumps(result))
    return min(failed, 1)


def run(part: Callable[[Machine, bool], Iterator[Row]], machine: Machine, tiny: bool) -> tuple[list[Row], str]:
    """A part's rows as far as it came, and what ended it, if anything did."""
    rows: list[Row] = []
    try:
        for row in part(machine, tiny):
            rows.append(row)
            print(".", end="", flush=True)
    except Exception:
        return rows, f"\n{traceback.format_exc()}"
    return rows, ""


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
    torch.manual_seed(0)
    sys.exit(main())
