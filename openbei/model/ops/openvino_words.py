"""SPLADE's last product and its pooling on a CPU, a few tokens at a time: what a graph alone would hold whole.

Rows for all words of all tokens are gigabytes where texts are long or unlike in length. So the network's graph ends
before them, and this one takes its rows in grids of a fixed number of cells, neighbours in length together.
Owns that graph and the grids; never touches requests, files or time.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from openbei.model.ops import LastProduct
from openbei.model.ops.openvino import product
from openbei.model.ops.openvino_batch import round_up
from openbei.model.ops.openvino_graph import CompileOptions, Graph
from openbei.model.ops.runtime import op

Floats = NDArray[np.float32]
MAX_VALUES = 1 << 24  # logits that are held at once, float32: 64 MiB; fewer cells read the matrix more often
FEWEST_CELLS = 16
SHORT, SHORT_STEP = 32, 4


class Part(NamedTuple):
    """Rows begin to end, of one sequence."""

    sequence: int
    begin: int
    end: int


class Words:
    """A LastProduct, compiled; `pool` may be called from several threads."""

    def __init__(self, last: LastProduct, options: CompileOptions) -> None:
        num_words, width = last.linear.weight.shape
        self._last, self._num_words = last, num_words
        self.num_cells = max(FEWEST_CELLS, MAX_VALUES // num_words // FEWEST_CELLS * FEWEST_CELLS)
        x, inside = op.parameter([-1, -1, width], np.float32), op.parameter([-1, -1, 1], np.float32)
        words = product(x, last.linear)
        if last.kind == "max":
            self._graph = Graph(op.reduce_max(words, np.array([1])), [x], options)
            return
        for _ in range(last.num_logs):
            words = op.log(op.add(op.relu(words), np.float32(1)))
        self._graph = Graph(op.reduce_sum(op.multiply(words, inside), np.array([1])), [x, inside], options)

    def pool(self, rows: Floats, cu_seqlens: NDArray[np.int32]) -> Floats:
        """(T, C), int32 (B + 1,) -> (B, V)."""
        adds = self._last.kind == "sum"
        fold, nothing = (np.add, 0.0) if adds else (np.maximum, -np.inf)
        answer = np.full((len(cu_seqlens) - 1, self._num_words), nothing, np.float32)
        for parts, length in self._grids(cu_seqlens):
            cells, inside = _cells(parts, self.num_cells // length, length)
            pooled = self._graph.infer([rows[cells], inside] if adds else [rows[cells]], length)
            for part, row in zip(parts, pooled, strict=False):
                fold(answer[part.sequence], row, out=answer[part.sequence])
        return answer

    def _grids(self, cu_seqlens: NDArray[np.int32]) -> Iterator[tuple[list[Part], int]]:
        """Parts that are about as long, and the length of their grid: together num_cells at most."""
        parts = sorted(_parts(cu_seqlens, self.num_cells), key=lambda part: part.begin - part.end)
        while parts:
            length = min(_grid_length(parts[0].end - parts[0].begin), self.num_cells)
            count = self.num_cells // length
            yield parts[:count], length
            parts = parts[count:]


def _grid_length(length: int) -> int:
    """Finer than round_up where texts are short: a padded cell costs as much as a real one here."""
    return -(-length // SHORT_STEP) * SHORT_STEP if length <= SHORT else round_up(length)


def _parts(cu_seqlens: NDArray[np.int32], longest: int) -> Iterator[Part]:
    """Every sequence, cut where it is too long."""
    for sequence, (begin, end) in enumerate(zip(cu_seqlens[:-1].tolist(), cu_seqlens[1:].tolist(), strict=True)):
        for start in range(begin, end, longest):
            yield Part(sequence, start, min(start + longest, end))


def _cells(parts: list[Part], count: int, length: int) -> tuple[NDArray[np.intp], Floats]:
    """The row of each cell (count, length), a part's last one again after its end; and 1 where it is the first time."""
    begins, lasts = np.array([(part.begin, part.end - 1) for part in parts]).T[:, :, None]
    cells = begins + np.arange(length)
    inside = np.zeros((count, length, 1), np.float32)
    inside[: len(parts), :, 0] = cells <= lasts
    missing = [[0, count - len(parts)], [0, 0]]
    return np.pad(np.minimum(cells, lasts), missing, mode="edge"), inside
