"""The parts of the benchmark, and one of them in a process of its own.

A device that fails in one part, or hangs, is there again for the next.
"""

import argparse
import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import ceilings, compiling, forward, rivals, serving
from benchmarks.gpu.clock import why
from openbei.engine.machine import CudaMachine, Machine
from tests.engine.host_machine import HostMachine

Row = dict[str, Any]
CHECKS_S = 300  # then what is left of them is dropped
OUTCOMES = ("PASSED", "FAILED", "ERROR", "SKIPPED")
LIMIT_S = 420  # of a part
TESTS = ("tests/model/kernels", "tests/model/test_cuda.py", "tests/engine/test_cuda.py")


def checks(_: Machine, tiny: bool) -> Iterator[Row]:
    """The tests that need a device, in processes of their own -> those that failed, and how many there were."""
    tests = TESTS[-1:] if tiny else TESTS
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider", "-W", "default", *tests]
    command += ["-v", "--tb=short", "--maxfail=40"]
    if importlib.util.find_spec("xdist") is not None:
        # Each process compiles its kernels, which is most of the time.
        command += ["-p", "xdist", "-n", str(min(12, os.cpu_count() or 1))]
    if tiny:
        command.append("--collect-only")
    env = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # whatever else is installed takes seconds to import
    root, pipe = Path(__file__).parents[2], subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, cwd=root, env=env)
    limit = threading.Timer(CHECKS_S, process.kill)
    limit.start()
    counts, last = Counter[str](), ""
    assert process.stdout is not None
    for line in process.stdout:
        last = line.strip() or last
        if "::" not in line or line.startswith(OUTCOMES):
            print(line, end="")  # why some failed
        words = [word for word in line.split() if word in OUTCOMES]
        if words and "::" in line and not line.startswith(OUTCOMES):  # they are named once more at the end
            counts[words[0]] += 1
            if words[0] in ("FAILED", "ERROR"):
                yield {"what": line.strip()[:200]}
    limit.cancel()
    yield {"what": last, "exit": process.wait(), **counts}


PARTS: dict[str, Callable[[Machine, bool], Iterator[Row]]] = {
    "facts": ceilings.facts,
    "copy": ceilings.copy,
    "checks": checks,
    "compiling": compiling.compiled,
    "forward": forward.forwards,
    "products": ceilings.products,
    "attention": ceilings.attentions,
    "server": serving.served,
    "sentence-transformers": rivals.sentence_transformers,
}


def run(name: str, chosen: argparse.Namespace, into: dict[str, Any], end_s: float) -> Iterator[None]:
    """A part's rows into its result, one by one, and what ended it if anything but its end did."""
    begin_s = time.monotonic()
    context = compiling.context_of(chosen.device)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(name, chosen, theirs))
    process.start()
    theirs.close()
    while ours.poll(max(0.0, min(end_s, begin_s + LIMIT_S) - time.monotonic())):
        try:
            message: Row | str = ours.recv()
        except EOFError:
            break
        into["seconds"] = round(time.monotonic() - begin_s, 1)
        if isinstance(message, str):
            into["error"] = message
        else:
            into["rows"].append(message)
            print("!" if "error" in message else ".", end="", flush=True)
        yield
    else:
        into["error"] = "cut: its time is over"
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # with what it started
    process.join()
    yield


def _work(name: str, chosen: argparse.Namespace, pipe: "Connection[Any, Any]") -> None:
    os.setsid()
    torch.manual_seed(0)
    try:
        on_cpu = chosen.device == "cpu"
        machine: Machine = HostMachine() if on_cpu else CudaMachine(int(chosen.device.partition(":")[2]))
        for row in PARTS[name](machine, chosen.small):
            pipe.send(row)
        pipe.send("")
    except BaseException:
        traceback.print_exc()
        pipe.send(why())
