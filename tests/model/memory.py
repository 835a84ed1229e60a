"""A program: build a model of 16-bit weights in a file, compile and run it, print what its memory grew by.

    python -m tests.model.memory FOLDER float32     # -> anonymous bytes, bytes of the products' weights, of the table

A process of its own, because what others have allocated and freed before hides what is allocated here.
"""

import sys
from pathlib import Path

import numpy as np
from ml_dtypes import bfloat16

from openbei.model.ops.openvino_model import CompileOptions, compile_model
from openbei.model.spec import Array, Embedding, Layer, Linear, Model, ModelSpec, Norm, Weights, pack

WIDTH, FFN_WIDTH, VOCAB_SIZE = 512, 32_768, 131_072
SPEC = ModelSpec("fake", VOCAB_SIZE, WIDTH, 1, 8, 8, 64, FFN_WIDTH, 1e-12, "gelu", 64)


def main(folder: Path, dtype: str) -> None:
    up, down, table = (_zeros(folder / name, shape) for name, shape in _shapes().items())
    one, narrow = np.ones(WIDTH, np.float32), Linear(np.zeros((WIDTH, WIDTH), np.float32))
    norm = Norm(one, one)
    layer = Layer(narrow, narrow, narrow, narrow, norm, Linear(up), Linear(down), norm)
    before = _anonymous_bytes()
    graph = compile_model(Model(SPEC, Weights(Embedding(table), (layer,)), "mean"), CompileOptions(dtype, 1, 1))
    graph.run(pack(SPEC, [[1] * 8]))
    print(_anonymous_bytes() - before, up.nbytes + down.nbytes, table.nbytes)


def _shapes() -> dict[str, tuple[int, int]]:
    return {"up": (FFN_WIDTH, WIDTH), "down": (WIDTH, FFN_WIDTH), "table": (VOCAB_SIZE, WIDTH)}


def _zeros(path: Path, shape: tuple[int, int]) -> Array:
    """A file of nothing, mapped as the weights of a model are."""
    with path.open("wb") as file:
        file.truncate(2 * shape[0] * shape[1])
    return np.asarray(np.memmap(path, mode="c")).view(bfloat16).reshape(shape)


def _anonymous_bytes() -> int:
    """Memory of this process that no file stands behind."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
