"""What does the form of an answer cost, and from which line on does compressing it save time?

N vectors of a width, as unit-length random float32, in each form that a client may ask for: the time to write it, its
bytes, and with each compression the ratio, the time to pack and unpack, and the line speed below which the bytes saved
are worth that time. One thread; the best of 5. Real vectors are as random as these. It says nothing of networks.

python -m benchmarks.answers
"""

import base64
import gzip
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from openbei.server.negotiate import to_json, to_msgpack, zstd

SIZES = ((1, 384), (1, 1024), (32, 384), (128, 1024))
FORMS: dict[str, Callable[[Any], bytes]] = {
    "json": lambda rows: to_json({"data": [{"embedding": row} for row in rows]}),
    "base64": lambda rows: to_json({"data": [{"embedding": base64.b64encode(row).decode()} for row in rows]}),
    "msgpack": lambda rows: to_msgpack({"data": [{"embedding": row} for row in rows]}),
    "float32": lambda rows: rows.tobytes(),
}
PACKERS: dict[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]] = {
    "zstd 1": (lambda body: zstd.compress(body, 1), zstd.decompress),
    "gzip 1": (lambda body: gzip.compress(body, 1, mtime=0), gzip.decompress),
    "gzip 6": (lambda body: gzip.compress(body, 6, mtime=0), gzip.decompress),
}
COLUMNS = ("vectors", "form", "write ms", "bytes", "packer", "ratio", "pack ms", "unpack ms", "pays below Mbit/s")


def timed(function: Callable[[], bytes]) -> tuple[float, bytes]:
    times_ms, made = [], b""
    for _ in range(5):
        begin_s = time.perf_counter()
        made = function()
        times_ms.append((time.perf_counter() - begin_s) * 1000)
    return min(times_ms), made


def measure(count: int, width: int) -> list[tuple[Any, ...]]:
    rows = np.random.default_rng(0).standard_normal((count, width)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    table = []
    for form, write in FORMS.items():
        write_ms, body = timed(lambda write=write: write(rows))
        for packer, (pack, unpack) in PACKERS.items():
            pack_ms, packed = timed(lambda pack=pack, body=body: pack(body))
            unpack_ms, _ = timed(lambda unpack=unpack, packed=packed: unpack(packed))
            saved_bits = max(0, len(body) - len(packed)) * 8
            pays_mbit_s = saved_bits / (pack_ms + unpack_ms) / 1000
            ratio = len(body) / len(packed)
            times = (round(pack_ms, 3), round(unpack_ms, 3), round(pays_mbit_s))
            table.append((f"{count} x {width}", form, round(write_ms, 3), len(body), packer, round(ratio, 2), *times))
    return table


def main() -> None:
    table = [row for size in SIZES for row in measure(*size)]
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|")
    for row in table:
        print("| " + " | ".join(map(str, row)) + " |")
    print(json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in table]))


if __name__ == "__main__":
    main()
