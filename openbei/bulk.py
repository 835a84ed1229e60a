"""A file of texts -> a file of vectors, in order, with memory that does not grow with the file.

Owns reading lines and JSONL, writing JSONL and .npy, and what is in flight between them; never touches models,
tokens or the terminal. What is written to a path is called PATH.part until it is whole.
"""

import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from openbei.engine.request import Options
from openbei.errors import ConfigError, EmptyInput, InvalidInput, MalformedBody, TokenizerFailed, TooLong

if TYPE_CHECKING:
    from openbei.engine.engine import Engine

Row = NDArray[np.float32]
InputFormat = Literal["auto", "lines", "jsonl"]
INPUT_SUFFIXES: dict[str, InputFormat] = {".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "lines"}
OUTPUT_SUFFIXES = (".jsonl", ".ndjson", ".npy", "")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """One text of the file. index: its line, counted from 0. end_bytes: where that line ends in the file."""

    index: int
    text: str
    end_bytes: int


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a file is read. field: the key that holds the text where a line of JSONL is an object."""

    format: InputFormat = "auto"
    field: str = "text"
    skip_empty: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """What to embed, how, and where to. source, output: None for stdin and stdout.

    Raises ConfigError for an output that cannot be written, by its name or its folder.
    """

    source: Path | None
    output: Path | None
    reading: ReadOptions = ReadOptions()
    options: Options = Options()

    def __post_init__(self) -> None:
        if self.output is not None and self.output.suffix.lower() not in OUTPUT_SUFFIXES:
            raise ConfigError(f"output must end in .jsonl or .npy, got {self.output.name}")
        if self.output is not None and not self.output.resolve().parent.is_dir():
            raise ConfigError(f"output must be in a folder that is there, got {self.output}")


def run(engine: "Engine", job: Job, on_text: Callable[["Line"], None]) -> None:
    """Embed all of job.source into job.output; on_text is called after each text is written.

    Raises what read, the engine and the disk raise; job.output then has not changed.
    """
    with open_source(job.source) as source, open_output(job.output) as output:
        lines = read(source, job.source.name if job.source else "", job.reading)
        pairs = embed_lines(lines, lambda texts: engine.embed_stream(texts, job.options))
        width = job.options.dimensions or engine.info.embedding_dim
        is_npy = job.output is not None and job.output.suffix.lower() == ".npy"
        write_all(pairs, NpyWriter(output, width) if is_npy else JsonLinesWriter(output), on_text)


def read(file: Iterable[bytes], name: str, options: ReadOptions) -> Iterator[Line]:
    """Lines of bytes -> texts, one at a time; `name` is the file's name, whose suffix may tell the format.

    Raises MalformedBody (not UTF-8, not JSON), InvalidInput (JSON of another shape) and EmptyInput (a line
    without text, unless skip_empty), each with the number of the line, counted from 1.
    """
    lines = iter(file)
    first = next(lines, b"")
    kind = INPUT_SUFFIXES.get(Path(name).suffix.lower()) if options.format == "auto" else options.format
    decode = _json_text if (kind or _guess(first)) == "jsonl" else _plain_text
    end_bytes = 0
    for index, raw in enumerate(chain([first] if first else [], lines)):
        end_bytes += len(raw)
        text = decode(raw.removeprefix(BYTE_ORDER_MARK) if index == 0 else raw, index + 1, options.field)
        if text:
            yield Line(index, text, end_bytes)
        elif not options.skip_empty:
            raise EmptyInput(f"line {index + 1} is empty; --skip-empty leaves such lines out")


def _guess(first: bytes) -> InputFormat:
    """A first line that is a JSON string or object makes a file JSONL; any other makes it lines."""
    try:
        return "jsonl" if isinstance(orjson.loads(first.removeprefix(BYTE_ORDER_MARK)), str | dict) else "lines"
    except orjson.JSONDecodeError:
        return "lines"


def _plain_text(raw: bytes, number: int, _field: str) -> str:
    try:
        return raw.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError as error:
        raise MalformedBody(
            f"line {number} is not UTF-8: byte {error.start + 1} of it is {raw[error.start]:#04x}"
        ) from None


def _json_text(raw: bytes, number: int, field: str) -> str:
    if not raw.strip():
        return ""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise MalformedBody(f"line {number} is not JSON: {error}") from None
    if isinstance(value, dict):
        if field not in value:
            raise InvalidInput(f"line {number} has no field {field!r}; its fields are {sorted(value)}")
        value = value[field]
    if not isinstance(value, str):
        raise InvalidInput(f"line {number}: the text must be a string, got {type(value).__name__}")
    return value


def embed_lines(lines: Iterable[Line], embed: Callable[[Iterable[str]], Iterator[Row]]) -> Iterator[tuple[Line, Row]]:
    """Texts -> (text, its vector), in order. `embed` decides how many are in flight; only those are held here."""
    waiting: deque[Line] = deque()

    def texts() -> Iterator[str]:
        for line in lines:
            waiting.append(line)
            yield line.text

    try:
        for row in embed(texts()):
            yield waiting.popleft(), row
    except (TooLong, TokenizerFailed) as error:
        raise InvalidInput(f"{error} (in one of the lines {waiting[0].index + 1} to {waiting[-1].index + 1})") from None


class Writer(Protocol):
    """Where vectors go, one at a time."""

    def write(self, line: Line, row: Row) -> None:
        """Append one vector."""

    def finish(self) -> None:
        """Make what was written readable; more may not follow."""


class JsonLinesWriter:
    """One {"index": line counted from 0, "embedding": [...]} a line; shortest decimals that read back the same."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, line: Line, row: Row) -> None:
        """Append one line."""
        answer = {"index": line.index, "embedding": row}
        self._file.write(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE))

    def finish(self) -> None:
        """Nothing but pushing out what is buffered."""
        self._file.flush()


class NpyWriter:
    """A float32 .npy array (rows, width); the row count in its header is written last."""

    def __init__(self, file: BinaryIO, width: int) -> None:
        self._file, self._width, self._rows = file, width, 0
        self._write_header()
        self._data_start = file.tell()

    def write(self, _line: Line, row: Row) -> None:
        """Append one row."""
        self._file.write(np.ascontiguousarray(row, "<f4").tobytes())
        self._rows += 1

    def finish(self) -> None:
        """Put the true row count into the header, for which NumPy leaves room."""
        self._file.seek(0)
        self._write_header()
        assert self._file.tell() == self._data_start
        self._file.flush()

    def _write_header(self) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (self._rows, self._width)}
        np.lib.format.write_array_header_1_0(self._file, header)  # type: ignore[no-untyped-call]


def write_all(pairs: Iterable[tuple[Line, Row]], writer: Writer, on_text: Callable[[Line], None]) -> None:
    """Write every vector and tell `on_text` of each. What was written before an error stays readable."""
    try:
        for line, row in pairs:
            writer.write(line, row)
            on_text(line)
    finally:
        writer.finish()


@contextlib.contextmanager
def open_source(path: Path | None) -> Iterator[BinaryIO]:
    """A file to read, or stdin."""
    if path is None:
        yield sys.stdin.buffer
        return
    with path.open("rb") as file:
        yield file


@contextlib.contextmanager
def open_output(path: Path | None) -> Iterator[BinaryIO]:
    """A file to write that takes its name only once everything is in it and on the disk; until then PATH.part.

    Stdout and what is no regular file, such as a pipe or /dev/null, is written to directly.
    """
    if path is None:
        yield sys.stdout.buffer
    elif path.exists() and not path.is_file():
        with path.open("wb") as device:
            yield device
    else:
        path = path.resolve()  # a link stays a link
        part = path.with_name(path.name + ".part")
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
