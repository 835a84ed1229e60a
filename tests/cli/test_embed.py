"""`bei embed`: what is read, what is written, in which order, and what is left after an error."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from openbei.bulk import Line, NpyWriter, ReadOptions, read
from openbei.engine.request import Options
from openbei.errors import EmptyInput, InvalidInput, MalformedBody
from openbei.progress import Progress
from tests.cli.conftest import Bei, Seen


def texts(content: bytes, name: str = "", **options: object) -> list[str]:
    return [line.text for line in read(content.splitlines(keepends=True), name, ReadOptions(**options))]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("content", "name", "expected"),
    [
        (b"a\nb\n", "", ["a", "b"]),
        (b"a\nb", "", ["a", "b"]),
        (b"a\r\nb\r\n", "", ["a", "b"]),
        (b" \n\ta \n", "", [" ", "\ta "]),
        ("\ufeffné\n".encode(), "", ["né"]),
        ("a\u2028b\n".encode(), "", ["a\u2028b"]),
        (b"", "", []),
        (b'"a"\n{"text": "b", "id": 7}\n', "", ["a", "b"]),
        (b'"a"\n"b"\n', "x.txt", ['"a"', '"b"']),
        (b'"Hello," she said.\n', "", ['"Hello," she said.']),
        (b"5\n[1]\n", "", ["5", "[1]"]),
        (b'{"text": "a\\nb"}\n', "x.JSONL", ["a\nb"]),
        ('\ufeff{"text": "é"}\n'.encode(), "x.ndjson", ["é"]),
    ],
)
def test_reading(content: bytes, name: str, expected: list[str]) -> None:
    assert texts(content, name) == expected


def test_reading_another_field() -> None:
    assert texts(b'{"body": "a", "text": "b"}\n', field="body") == ["a"]


@pytest.mark.parametrize(
    ("content", "options", "error", "words"),
    [
        (b"a\n\nb\n", {}, EmptyInput, "line 2 is empty"),
        (b"a\n\n", {}, EmptyInput, "line 2 is empty"),
        (b'"a"\n""\n', {}, EmptyInput, "line 2 is empty"),
        (b'"a"\n \n', {}, EmptyInput, "line 2 is empty"),
        (b"a\nb\xff\n", {}, MalformedBody, "line 2 is not UTF-8: byte 2 of it is 0xff"),
        (b'"a"\n{"text":\n', {}, MalformedBody, "line 2 is not JSON"),
        (b'"a"\n"\xff"\n', {}, MalformedBody, "line 2 is not JSON: .*UTF-8"),
        (b'{"text": "a"}\n{"txt": "b"}\n', {}, InvalidInput, r"line 2 has no field 'text'; its fields are \['txt'\]"),
        (b'{"text": 5}\n', {}, InvalidInput, "line 1: the text must be a string, got int"),
        (b'"a"\n[1]\n', {}, InvalidInput, "line 2: the text must be a string, got list"),
        (b"a\n", {"format": "jsonl"}, MalformedBody, "line 1 is not JSON"),
    ],
)
def test_a_bad_line_is_named(content: bytes, options: dict[str, str], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        texts(content, **options)


def test_skip_empty_keeps_line_numbers_and_bytes() -> None:
    lines = list(read([b"a\n", b"\n", b"b"], "", ReadOptions(skip_empty=True)))
    assert lines == [Line(0, "a", 2), Line(2, "b", 4)]


def test_jsonl_to_stdout(bei: Bei, seen: Seen) -> None:
    result = bei("embed", input="one\nthree\n")
    assert result.exit_code == 0
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"index": 0, "embedding": [3.0, 0.0, 1.0, 2.0]},
        {"index": 1, "embedding": [5.0, 0.0, 1.0, 2.0]},
    ]
    assert result.stderr.startswith("2 texts in ")
    assert seen.engine.options == Options()


def test_skipped_lines_leave_a_gap_in_index(bei: Bei) -> None:
    result = bei("embed", "--skip-empty", input="a\n\nb\n")
    assert [json.loads(line)["index"] for line in result.stdout.splitlines()] == [0, 2]


def test_npy(bei: Bei, seen: Seen, tmp_path: Path) -> None:
    source, output = tmp_path / "texts.txt", tmp_path / "vectors.npy"
    source.write_text("".join("x" * (i % 7 + 1) + "\n" for i in range(1000)))
    result = bei("embed", str(source), "-o", str(output), "--dimensions", "2", "--no-normalize", "--prompt-name", "q")
    assert (result.exit_code, result.stdout) == (0, "")
    rows = np.load(output)
    assert (rows.dtype, rows.shape) == (np.float32, (1000, 2))
    assert rows[:, 0].tolist() == [i % 7 + 1 for i in range(1000)]
    assert seen.engine.options == Options(prompt_name="q", normalize=False, dimensions=2)
    assert set(os.listdir(tmp_path)) == {"texts.txt", "vectors.npy"}


def test_only_the_window_is_in_flight(bei: Bei, seen: Seen, tmp_path: Path) -> None:
    source = tmp_path / "texts.txt"
    source.write_text("x\n" * 500)
    assert bei("embed", str(source), "-o", str(tmp_path / "v.npy")).exit_code == 0
    assert (seen.engine.given, seen.engine.most_in_flight) == (500, seen.engine.window)


def test_an_empty_file_is_an_empty_answer(bei: Bei, tmp_path: Path) -> None:
    assert bei("embed", "-o", str(tmp_path / "v.npy"), input="").exit_code == 0
    assert np.load(tmp_path / "v.npy").shape == (0, 4)
    assert bei("embed", input="").stdout == ""


@pytest.mark.parametrize("rows", [0, 1, 9, 10, 12345])
def test_the_npy_header_has_room_for_any_row_count(tmp_path: Path, rows: int) -> None:
    with (tmp_path / "v.npy").open("wb") as file:
        writer = NpyWriter(file, 2)
        for i in range(rows):
            writer.write(Line(i, "", 0), np.array([i, 1], np.float32))
        writer.finish()
    array = np.load(tmp_path / "v.npy")
    assert array.shape == (rows, 2)
    assert array[:, 0].tolist() == list(range(rows))


@pytest.mark.parametrize("suffix", ["npy", "jsonl"])
def test_an_error_leaves_nothing_that_looks_finished(bei: Bei, tmp_path: Path, suffix: str) -> None:
    output = tmp_path / f"v.{suffix}"
    output.write_bytes(b"of another run")
    result = bei("embed", "-o", str(output), input="a\n" * 10 + "\n")
    assert result.exit_code == 1
    assert "line 11 is empty" in result.stderr
    assert f"{output}.part" in result.stderr
    assert output.read_bytes() == b"of another run"
    part = tmp_path / f"v.{suffix}.part"
    with part.open("rb") as file:
        kept = len(np.load(file)) if suffix == "npy" else len(file.readlines())
    assert kept == 8  # the last two of ten were still in flight


def test_a_text_that_is_too_long_is_near_its_lines(bei: Bei) -> None:
    result = bei("embed", "--auto-truncate", "false", input="a\nb\ntoo long\n")
    assert result.exit_code == 1
    assert "17 tokens > 16 (in one of the lines 1 to 3)" in result.stderr


def test_devices_are_written_to_and_links_followed(bei: Bei, tmp_path: Path) -> None:
    target, link = tmp_path / "real.jsonl", tmp_path / "link.jsonl"
    target.touch()
    link.symlink_to(target)
    pipe_like = Path("/dev/null")
    assert bei("embed", "-o", str(link), input="a\n").exit_code == 0
    assert bei("embed", "-o", str(pipe_like), input="a\n").exit_code == 0
    assert link.is_symlink()
    assert len(target.read_text().splitlines()) == 1
    assert pipe_like.is_char_device()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["nowhere.txt"], 2, "'nowhere.txt' does not exist"),
        (["-o", "v.csv"], 1, "output must end in .jsonl or .npy, got v.csv"),
        (["-o", "no/such/folder/v.npy"], 1, "output must be in a folder that is there, got no/such/folder/v.npy"),
        (["--dimensins", "4"], 2, "Did you mean '--dimensions'?"),
    ],
)
def test_what_cannot_be(bei: Bei, args: list[str], code: int, words: str) -> None:
    result = bei("embed", *args, input="a\n")
    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_an_output_that_cannot_be_is_told_before_a_model_is_loaded(bei: Bei, seen: Seen) -> None:
    result = bei("embed", "-o", "no/such/folder/v.npy", input="a\n")
    assert result.stderr.count("\n") == 1
    assert seen.loading is None


def test_nothing_done_is_nowhere(bei: Bei, tmp_path: Path) -> None:
    result = bei("embed", "-o", str(tmp_path / "v.npy"), input="\n")
    first, second = result.stderr.splitlines()
    assert re.fullmatch(r"stopped after 0 texts in [\d.]+ s \(.*\)", first)
    assert second == "Error: line 1 is empty; --skip-empty leaves such lines out"


@pytest.fixture
def drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openbei.progress.PAUSE_S", 0)


@pytest.mark.usefixtures("drawn_at_once")
def test_the_bar_shows_rates_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(400, shown=True)
    for i in range(50):
        progress.add(4 * (i + 1), 3 * (i + 1))
    assert progress.close().startswith("50 texts in 0.")
    last = capsys.readouterr().err.split("\r")[-3]
    assert re.fullmatch(r" 50%\|█+ +\|, [\d,]+ texts/s, [\d,]+ tokens/s, 00:00 left", last)


@pytest.mark.usefixtures("drawn_at_once")
def test_the_bar_without_a_known_size(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(None, shown=True)
    progress.add(4, 3)
    progress.close()
    assert "left" not in capsys.readouterr().err


@pytest.mark.parametrize(("flags", "drawn"), [(["--progress"], True), ([], False)])
def test_the_bar_is_drawn_when_asked_for(
    bei: Bei, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], drawn: bool
) -> None:
    shown = []
    monkeypatch.setattr("openbei.progress._bar", lambda *_: shown.append(True))
    assert bei("embed", "-o", str(tmp_path / "v.npy"), *flags, input="a\n").exit_code == 0
    assert bool(shown) is drawn
