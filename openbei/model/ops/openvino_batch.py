"""A Batch -> the inputs of OpenVINO's graph: which rows lie where in the grid, what is masked, how far a token turns.

Each new input shape costs OpenVINO milliseconds of code generation, so T and S are rounded up to few sizes; the extra
rows are never read. Owns the name, type and shape of every input; never touches a graph.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openbei.model.positions import cos_sin, visible
from openbei.model.spec import Array, Batch, ModelSpec, Rope

ROUNDING = ((64, 8), (256, 16))  # sizes up to the first number go up to a multiple of the second

COARSEST = 32

MASKED = np.float32(-1e30)


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
        """cos and sin of every cell in full layers, (B, 1, S, D) each, both halves alike."""
        return self._cos_sin(self.spec.rope)

    @functools.cached_property
    def local_angles(self) -> tuple[Array, Array]:
        """The same in local layers."""
        return self._cos_sin(self.spec.local_rope)

    def _cos_sin(self, rope: Rope | None) -> tuple[Array, Array]:
        assert rope is not None
        cos, sin = (np.tile(part, 2)[_rows(self)][:, None] for part in cos_sin(rope, self.spec.head_dim, self.batch))
        return cos, sin


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


def _hidden(grid: Grid, window: int | None) -> Array:
    """0 where the query sees the key, -1e30 where it does not, (1, 1, S, S)."""
    seen = visible(grid.ahead(), grid.spec.causal, window)
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
    "hidden": (np.float32, [1, 1, -1, -1], lambda grid: _hidden(grid, None)),
    "hidden_local": (np.float32, [1, 1, -1, -1], lambda grid: _hidden(grid, grid.spec.window)),
    "cos": (np.float32, [-1, 1, -1, -1], lambda grid: grid.angles[0]),
    "sin": (np.float32, [-1, 1, -1, -1], lambda grid: grid.angles[1]),
    "local_cos": (np.float32, [-1, 1, -1, -1], lambda grid: grid.local_angles[0]),
    "local_sin": (np.float32, [-1, 1, -1, -1], lambda grid: grid.local_angles[1]),
}
