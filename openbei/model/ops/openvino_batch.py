"""A Batch -> the inputs of OpenVINO's graph: which rows lie where in the grid, what is masked, how far a token turns.

Each new input shape costs OpenVINO milliseconds of code generation, so T and S are rounded up to few sizes; the extra
rows are never read. Owns the name, type and shape of every input; never touches a graph.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from openbei.model.positions import cos_sin, visible
from openbei.model.spec import Array, Batch, ModelSpec, Rope

ROUNDING = ((64, 8), (256, 16))  # sizes up to the first number go up to a multiple of the second

COARSEST = 32

MASKED = np.float32(-1e30)
SMALLEST_BLOCK = 128
FAR = 1 << 29  # a position that no window reaches


@dataclass(frozen=True)
class Grid:
    """A batch laid out for the graph: T and S rounded up, and which cells of (B, S) hold tokens."""

    batch: Batch
    spec: ModelSpec
    num_tokens: int
    length: int
    inside: NDArray[np.bool_]

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Which cells others see, (B, S)."""
        num_keys = self.batch.lengths if self.batch.num_keys is None else self.batch.num_keys
        return np.asarray(np.arange(self.length, dtype=np.int32) < num_keys[:, None])

    def ahead(self) -> NDArray[np.int32]:
        """Key position - query position, (S, S)."""
        column = np.arange(self.length, dtype=np.int32)
        return column[None, :] - column[:, None]

    @functools.cached_property
    def angles(self) -> tuple[Array, Array]:
        """cos and sin of every token in full layers, (T, D) each, both halves alike."""
        return self._cos_sin(self.spec.rope)

    @functools.cached_property
    def local_angles(self) -> tuple[Array, Array]:
        """The same in local layers."""
        return self._cos_sin(self.spec.local_rope or self.spec.rope)

    def _cos_sin(self, rope: Rope | None) -> tuple[Array, Array]:
        assert rope is not None
        cos, sin = (np.tile(part, 2) for part in cos_sin(rope, self.spec.head_dim, self.batch))
        return cos, sin

    @functools.cached_property
    def blocks(self) -> "Blocks":
        """The batch as local layers see it."""
        return make_blocks(self)


class Blocks(NamedTuple):
    """Queries of a sequence, c at most, beside the keys that any of them sees, k at most: of N blocks.

    queries (N, c), keys (N, k): packed rows, 0 where there is none. query_positions, key_positions: in their sequence,
    FAR for a key that is not there or that no other token sees. cells: where each token's query is, of N * c.
    """

    queries: NDArray[np.int32]
    keys: NDArray[np.int32]
    query_positions: NDArray[np.int32]
    key_positions: NDArray[np.int32]
    cells: NDArray[np.int32]


def make_blocks(grid: Grid) -> Blocks:
    """A batch -> its Blocks: where sequences are long, blocks of half a window; else each sequence is one."""
    batch, spec, length = grid.batch, grid.spec, grid.length
    assert spec.window is not None
    before, after = (spec.window - 1, 0) if spec.causal else (spec.window // 2, spec.window // 2)
    size = max(SMALLEST_BLOCK, (before + after) // 2)
    if length <= 2 * (size + before + after):
        size, before, after = length, 0, 0
    counts = -(-batch.lengths // size)
    sequence = np.repeat(np.arange(len(counts)), counts)
    start = (np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)) * size
    first_row = batch.cu_seqlens[sequence][:, None]
    queries = (start[:, None] + np.arange(size)).astype(np.int32)
    keys = (start[:, None] + np.arange(-before, size + after)).astype(np.int32)
    num_keys = batch.lengths if batch.num_keys is None else batch.num_keys
    there, seen = queries < batch.lengths[sequence][:, None], (keys >= 0) & (keys < num_keys[sequence][:, None])
    return Blocks(
        queries=np.where(there, first_row + queries, 0).astype(np.int32),
        keys=np.where(seen, first_row + keys, 0).astype(np.int32),
        query_positions=queries,
        key_positions=np.where(seen, keys, FAR).astype(np.int32),
        cells=np.asarray(_extended(np.flatnonzero(there), grid.num_tokens), np.int32),
    )


def inputs_of(names: Sequence[str], batch: Batch, spec: ModelSpec) -> list[Array]:
    """Batch -> the graph's inputs of these names, in this order."""
    length = round_up(int(batch.lengths.max()))
    inside = np.arange(length, dtype=np.int32) < batch.lengths[:, None]
    grid = Grid(batch, spec, round_up(batch.num_tokens), length, inside)
    return [INPUTS[name][2](grid) for name in names]


def round_up(size: int) -> int:
    """A number of tokens -> the next one that the graph is given."""
    step = next((step for limit, step in ROUNDING if size <= limit), COARSEST)
    return -(-size // step) * step


def _rows(grid: Grid) -> Array:
    """The packed row of each cell, row 0 where it is padding."""
    column = np.arange(grid.length, dtype=np.int32)
    return np.where(grid.inside, grid.batch.cu_seqlens[:-1, None] + column, 0).astype(np.int32)


def _repeated_rows(grid: Grid) -> Array:
    """The packed row of each cell, the sequence's last row where it is padding: that changes no maximum."""
    column = np.arange(grid.length, dtype=np.int32)
    starts, lasts = grid.batch.cu_seqlens[:-1, None], grid.batch.cu_seqlens[1:, None] - 1
    return np.asarray(np.minimum(starts + column, lasts))


def _hidden(grid: Grid) -> Array:
    """0 where the query sees the key, -1e30 where it does not, (1, 1, S, S)."""
    seen = visible(grid.ahead(), grid.spec.causal, None)
    return np.where(seen, np.float32(0), MASKED)[None, None]


def _distances(grid: Grid) -> Array:
    """Column of the bias of each pair, (S, S)."""
    farthest = grid.spec.max_length - 1
    return np.asarray(np.clip(grid.ahead() + farthest, 0, 2 * farthest))


def _extended(values: Array, size: int) -> Array:
    return np.concatenate((values, np.zeros((size - len(values), *values.shape[1:]), values.dtype)))


Maker = Callable[[Grid], Array]

# Name -> type, shape, and how it is made. T: packed tokens, B: sequences, S: cells of the longest; all rounded up.
INPUTS: dict[str, tuple[type[np.generic], list[int], Maker]] = {
    "input_ids": (np.int32, [-1], lambda grid: _extended(grid.batch.input_ids, grid.num_tokens)),
    "position_ids": (np.int32, [-1], lambda grid: _extended(grid.batch.position_ids, grid.num_tokens)),
    "token_type_ids": (np.int32, [-1], lambda grid: _extended(grid.batch.token_type_ids, grid.num_tokens)),
    "grid": (np.int32, [-1, -1], _rows),
    "cells": (np.int32, [-1], lambda grid: _extended(np.flatnonzero(grid.inside).astype(np.int32), grid.num_tokens)),
    "mask": (np.float32, [-1, 1, 1, -1], lambda grid: np.where(grid.seen, np.float32(0), MASKED)[:, None, None]),
    "inside": (np.float32, [-1, -1, 1], lambda grid: grid.inside[:, :, None].astype(np.float32)),
    "repeated": (np.int32, [-1, -1], _repeated_rows),
    "cls": (np.int32, [-1], lambda grid: grid.batch.cu_seqlens[:-1]),
    "last_token": (np.int32, [-1], lambda grid: grid.batch.cu_seqlens[1:] - 1),
    "distances": (np.int32, [-1, -1], _distances),
    "nearness": (np.float32, [1, 1, -1, -1], lambda grid: -np.abs(grid.ahead(), dtype=np.float32)[None, None]),
    "column": (np.int32, [-1], lambda grid: np.arange(grid.length, dtype=np.int32)),
    "hidden": (np.float32, [1, 1, -1, -1], _hidden),
    "cos": (np.float32, [-1, 1, -1, -1], lambda grid: grid.angles[0][_rows(grid)][:, None]),
    "sin": (np.float32, [-1, 1, -1, -1], lambda grid: grid.angles[1][_rows(grid)][:, None]),
    # N: blocks of local layers, c queries and k keys each.
    "queries": (np.int32, [-1, -1], lambda grid: grid.blocks.queries),
    "queries_cos": (np.float32, [-1, 1, -1, -1], lambda grid: grid.local_angles[0][grid.blocks.queries][:, None]),
    "queries_sin": (np.float32, [-1, 1, -1, -1], lambda grid: grid.local_angles[1][grid.blocks.queries][:, None]),
    "query_positions": (np.int32, [-1, -1], lambda grid: grid.blocks.query_positions),
    "query_cells": (np.int32, [-1], lambda grid: grid.blocks.cells),
    "keys": (np.int32, [-1, -1], lambda grid: grid.blocks.keys),
    "keys_cos": (np.float32, [-1, 1, -1, -1], lambda grid: grid.local_angles[0][grid.blocks.keys][:, None]),
    "keys_sin": (np.float32, [-1, 1, -1, -1], lambda grid: grid.local_angles[1][grid.blocks.keys][:, None]),
    "key_positions": (np.int32, [-1, -1], lambda grid: grid.blocks.key_positions),
}
