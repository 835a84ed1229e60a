"""A Board: rows of numbers, one a process, in memory that several processes may share.

Each process writes its own row and reads all of them. A process that takes over the row of one that died goes on
counting where it stopped, so no sum ever goes backwards. Owns that memory; never knows what the numbers mean.
"""

import mmap
from pathlib import Path
from typing import Self

ROW_NUMBERS = 1024
ROW_BYTES = 8 * ROW_NUMBERS


class Board:
    """Rows of ROW_NUMBERS float64; `own` is the one that this process writes. One private row if no memory is given."""

    def __init__(self, memory: mmap.mmap | bytearray | None = None, own: int = 0) -> None:
        numbers = memoryview(bytearray(ROW_BYTES) if memory is None else memory).cast("d")
        self.rows = [numbers[start : start + ROW_NUMBERS] for start in range(0, len(numbers), ROW_NUMBERS)]
        self.own = self.rows[own]

    @staticmethod
    def create(path: Path, num_rows: int) -> None:
        """Make the file of a board that is shared, all zeros."""
        path.write_bytes(bytes(num_rows * ROW_BYTES))

    @classmethod
    def open(cls, path: Path, own: int) -> Self:
        """The board in a file, to write row `own`."""
        with path.open("r+b") as file:
            return cls(mmap.mmap(file.fileno(), 0), own)

    def cells(self) -> "Cells":
        """All columns, to be given out from the first one on."""
        return Cells(self, 0, ROW_NUMBERS)


class Cells:
    """Some columns of a board. own: their numbers in this process's row."""

    def __init__(self, board: Board, start: int, count: int) -> None:
        self._board, self._start, self._end, self._taken = board, start, start + count, 0
        self.own: memoryview[float] = board.own[start : self._end]

    def next(self, count: int) -> "Cells":
        """The next `count` of these columns that nobody has asked for yet; ValueError if there are not so many."""
        start = self._start + self._taken
        if start + count > self._end:
            raise ValueError(f"a board has {ROW_NUMBERS} columns; {start + count} are asked for")
        self._taken += count
        return Cells(self._board, start, count)

    def totals(self) -> list[float]:
        """The sum over all rows, by column."""
        rows = [row[self._start : self._end] for row in self._board.rows]
        return [sum(column) for column in zip(*rows, strict=True)]
