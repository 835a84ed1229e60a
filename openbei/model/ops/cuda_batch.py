"""How a batch lies in the int32 words that go to a GPU: one row of regions, their sizes given by the bucket alone.

Owns the padding of a batch to its bucket, and the query tiles of attention; never touches a weight or a launch.
Padding rows belong to no sequence: their ids and positions are 0, and no tile covers them. Padding sequences have no
rows and no keys.
"""

import itertools
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from openbei.model.positions import cos_sin
from openbei.model.spec import Batch, ModelSpec, Size

Words = TypeVar("Words", NDArray[np.int32], Tensor)
ALIGNMENT = 4  # words: kernels read 16 bytes at once
MANY_TOKENS = 2048  # of a batch: from here on there are tiles enough to make them tall


class Regions(NamedTuple, Generic[Words]):
    """Views of the words: ids, positions, types (T,); the others are those of kernels/attention.py.

    cu_seqlens (B + 1,) and key_ends (B,): see Sequences. tile_sequence, tile_first_row: see Tiles.
    angles: the bits of cos and sin, float32 (T, D / 2) each, where they depend on the batch (dynamic RoPE), else empty;
    positions are then the rows of these.
    """

    ids: Words
    positions: Words
    types: Words
    cu_seqlens: Words
    key_ends: Words
    tile_sequence: Words
    tile_first_row: Words
    angles: Words


class Layout:
    """Where the regions of a model's batches lie."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.dynamic = spec.rope is not None and spec.rope.scaling == "dynamic"

    def lengths(self, size: Size) -> tuple[int, ...]:
        """Words of each region."""
        tokens, sequences = size
        tiles = num_tiles(tokens, sequences, rows_per_tile(tokens))
        angles = tokens * self.spec.head_dim * self.dynamic
        return tokens, tokens, tokens, sequences + 1, sequences, tiles, tiles, angles

    def num_words(self, size: Size) -> int:
        """Words of all regions, each begun at a multiple of 16 bytes."""
        return sum(map(_aligned, self.lengths(size)))

    def regions(self, words: Words, size: Size) -> Regions[Words]:
        """The words of a batch -> its regions. Raises ValueError if there are not num_words of them."""
        if len(words) != self.num_words(size):
            raise ValueError(f"a batch of {size} has {self.num_words(size)} words, got {len(words)}")
        lengths = self.lengths(size)
        starts = itertools.accumulate(map(_aligned, lengths), initial=0)
        return Regions(*(words[start : start + length] for start, length in zip(starts, lengths, strict=False)))

    def write(self, batch: Batch, size: Size, words: NDArray[np.int32]) -> None:
        """A batch -> its words. Raises ValueError if it does not fit the size or reaches outside the model's tables."""
        self._check(batch, size)
        to = self.regions(words, size)
        ends = batch.cu_seqlens
        _pad(to.ids, batch.input_ids)
        _pad(to.positions, np.arange(batch.num_tokens) if self.dynamic else batch.position_ids)
        _pad(to.types, batch.token_type_ids)
        _pad(to.cu_seqlens, ends, ends[-1])
        _pad(to.key_ends, ends[1:] if batch.num_keys is None else ends[:-1] + batch.num_keys, ends[-1])
        tiles = make_tiles(ends, rows_per_tile(size.num_tokens), len(to.tile_sequence))
        to.tile_sequence[:], to.tile_first_row[:] = tiles
        if self.dynamic:
            self._write_angles(batch, to.angles.view(np.float32).reshape(2, size.num_tokens, -1))

    def _write_angles(self, batch: Batch, table: NDArray[np.float32]) -> None:
        assert self.spec.rope is not None
        table[:, batch.num_tokens :] = 0
        table[:, : batch.num_tokens] = cos_sin(self.spec.rope, self.spec.head_dim, batch)

    def _check(self, batch: Batch, size: Size) -> None:
        """A kernel that reads outside a table reads anything, so no batch that would gets that far."""
        spec = self.spec
        tables = (
            ("token id", batch.input_ids, spec.vocab_size),
            ("position", batch.position_ids, spec.num_positions),
            ("type", batch.token_type_ids, max(spec.num_segments, 1)),
        )
        for what, values, rows in tables:
            if values.min() < 0 or values.max() >= rows:
                raise ValueError(f"each {what} must be in 0 to {rows - 1}, got {values.min()} to {values.max()}")
        counts = (
            ("tokens", batch.num_tokens, size.num_tokens),
            ("sequences", len(batch.lengths), size.num_sequences),
            ("tokens in a sequence", batch.lengths.max(), spec.max_length),
        )
        for what, count, limit in counts:
            if count > limit:
                raise ValueError(f"at most {limit} {what} fit, got {count}")
        keys = batch.num_keys
        if keys is not None and ((keys < 1) | (keys > batch.lengths)).any():
            raise ValueError(f"of {batch.lengths.tolist()} tokens 1 to all are keys, got {keys.tolist()}")


def rows_per_tile(num_tokens: int) -> int:
    """Queries a tile has in a batch of num_tokens: 64, so that short batches reach all of the device, or 128."""
    return 64 if num_tokens < MANY_TOKENS else 128


def num_tiles(num_tokens: int, num_sequences: int, rows: int) -> int:
    """Tiles that any num_sequences sequences of num_tokens together can need."""
    return num_tokens // rows + num_sequences


def make_tiles(cu_seqlens: NDArray[np.int32], rows: int, size: int) -> NDArray[np.int32]:
    """Offsets (B + 1,) -> int32 (2, size): sequence and first row of every tile, then -1 up to size.

    The longest sequences come first, and of each its last rows, which see most under a causal mask: what takes long
    must not start last. Raises ValueError if size is too small.
    """
    lengths = np.diff(cu_seqlens)
    counts = -(-lengths // rows)
    total = int(counts.sum())
    if total > size:
        raise ValueError(f"{total} attention tiles of {rows} rows, at most {size}")
    order = np.argsort(-lengths, kind="stable")
    sequence = np.repeat(order, counts[order])
    inside = np.repeat(np.cumsum(counts[order]), counts[order]) - 1 - np.arange(total)
    tiles = np.full((2, size), -1, np.int32)
    tiles[0, :total] = sequence
    tiles[1, :total] = cu_seqlens[sequence] + inside * rows
    return tiles


def _aligned(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT


def _pad(to: NDArray[np.int32], values: NDArray[np.int32], rest: int = 0) -> None:
    to[: len(values)] = values
    to[len(values) :] = rest
