"""Level 5: real weights, through openbei.load, give the numbers that others published of them.

MiniLM's rows always run. The others run where OPENBEI_REAL_MODELS has the model, and are skipped by its name.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import openbei
from openbei.engine.chat import Rendered, render
from openbei.engine.engine import Engine
from openbei.engine.request import Input, Options, Pair, Request
from openbei.engine.tokenizer import Tokenizer
from openbei.engine.truncation import Truncation
from openbei.weights.text import read_text
from tests.golden.conftest import VARIABLE, find
from tests.golden.values import (
    IDS,
    MINILM,
    SCORES,
    SIMILARITIES,
    VECTORS,
    Ids,
    Matrix,
    Message,
    Row,
    Scores,
    Similarities,
    Vector,
)

Floats = NDArray[np.float64]
NORM_TOLERANCE = 5e-3  # of the norm itself; float16 sources


def rows_of(table: tuple[Row, ...]) -> Any:
    """Each row with the engine of its model."""
    names = [f"{row.model}-{row.source.partition(' ')[0].partition('/')[2] or row.source}" for row in table]
    return pytest.mark.parametrize(
        ("engine", "row"), [(row.model, row) for row in table], ids=names, indirect=["engine"]
    )


def first_values_off(row: Vector, vector: Floats) -> float:
    """How far the first values are off, both vectors at length 1."""
    norm = float(np.linalg.norm(vector))
    return float(np.abs(vector[: len(row.values)] / norm - np.array(row.values) / (row.norm or norm)).max())


def raw_vector(engine: Engine, text: str) -> Floats:
    return engine.embed([text], normalize=False)[0].astype(np.float64)


@rows_of(VECTORS)
def test_vectors(engine: Engine, row: Vector) -> None:
    vector = raw_vector(engine, row.text)
    assert first_values_off(row, vector) <= row.tolerance
    if row.norm not in (None, 1.0):
        assert float(np.linalg.norm(vector)) == pytest.approx(row.norm, rel=NORM_TOLERANCE)


def prompt_name(engine: Engine, *names: str) -> str | None:
    """The first of these that the model has, as sentence-transformers chooses for queries and for documents."""
    return next((name for name in names if name in engine.info.prompts), None)


@rows_of(SIMILARITIES)
def test_similarities(engine: Engine, row: Similarities) -> None:
    query = prompt_name(engine, "query") if row.prompts else None
    document = prompt_name(engine, "document", "passage", "corpus") if row.prompts else None
    queries = engine.embed(row.queries, prompt_name=query)
    documents = engine.embed(row.documents, prompt_name=document)
    np.testing.assert_allclose(queries @ documents.T, row.values, rtol=0, atol=row.tolerance)


def as_published(engine: Engine, item: Pair | tuple[Message, ...]) -> Input:
    """A chat as its publisher sent it: rendered, and then tokenised as a text is, which adds a second BOS."""
    if isinstance(item, Pair):
        return item
    folder = Path(engine.info.model_id)
    text = read_text(folder, folder, engine.info.max_input_length)
    assert text.chat_template is not None
    rendered = render(text.chat_template, item, text.special_tokens)
    return Rendered(text.special_tokens["bos_token"] + rendered)


@rows_of(SCORES)
def test_scores(engine: Engine, row: Scores) -> None:
    inputs = [as_published(engine, item) for item in row.inputs]
    request = Request(inputs=inputs, task="classify", options=Options(raw_scores=row.raw))
    scores = np.concatenate(engine.submit(request).result().rows)
    np.testing.assert_allclose(scores, row.values, rtol=0, atol=row.tolerance)


@pytest.mark.parametrize("row", IDS, ids=lambda row: f"{row.model}-{row.text}")
def test_ids(row: Ids) -> None:
    folder = find(row.model)
    encoded = Tokenizer(read_text(folder, folder, 512)).encode([row.text], Truncation(False))
    assert tuple(encoded[0].ids) == row.ids


# The tests above can fail, and what they need is found


def test_another_pooling_is_seen_by_every_row() -> None:
    with openbei.load(dtype="float32", pooling="cls") as wrong:
        for row in VECTORS:
            if row.model == MINILM:
                assert first_values_off(row, raw_vector(wrong, row.text)) > 10 * row.tolerance
        row = next(row for row in SIMILARITIES if row.model == MINILM)
        cosines = wrong.embed(row.queries) @ wrong.embed(row.documents).T
        assert np.abs(cosines - row.values).min() > 10 * row.tolerance


@pytest.mark.parametrize("name", ["org/model", "org--model"])
def test_a_folder_is_found_by_either_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match="has no org/model"):
        find("org/model")
    (tmp_path / name).mkdir(parents=True)
    (tmp_path / name / "config.json").touch()
    assert find("org/model") == tmp_path / name


def test_without_the_variable_only_minilm_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert (find(MINILM) / "config.json").is_file()
    with pytest.raises(pytest.skip.Exception, match="is not set; needs org/model"):
        find("org/model")


def shape(values: Matrix) -> tuple[int, ...]:
    return np.array(values).shape


def test_the_tables_are_whole() -> None:
    assert all(shape(row.values) == (len(row.queries), len(row.documents)) for row in SIMILARITIES)
    assert all(len(row.values) == len(row.inputs) for row in SCORES)
