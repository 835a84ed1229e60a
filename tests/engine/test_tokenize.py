"""Engine.tokenize and decode beside the tokenizers library, and limits below a model's own beside its truncation."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tokenizers

from openbei.config import EngineConfig
from openbei.engine.engine import Engine
from openbei.engine.pending import Pending
from openbei.engine.request import Options, Pair, Request
from openbei.engine.start import open_engine
from openbei.errors import BatchTooLarge, EmptyInput, InvalidInput, TooLong, Unhealthy, UnknownPrompt

TEXTS = ["the river bank", "Bees make honey. né 漢", "[CLS] x [SEP]", " "]


@pytest.fixture(scope="module", params=["bert", "roberta"])
def opened(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path]) -> Iterator[tuple[Engine, Path]]:
    folder = tiny_folder(request.param)
    config = EngineConfig(model_id=str(folder), dtype="float32", max_client_batch_size=4, default_prompt="say: ")
    with open_engine(config) as engine:
        yield engine, folder


def library(folder: Path) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_tokens_are_the_library_s(opened: tuple[Engine, Path], add_special_tokens: bool) -> None:
    engine, folder = opened
    found = engine.tokenize(TEXTS, add_special_tokens).result(10)
    for text, one in zip(TEXTS, found, strict=True):
        want = library(folder).encode("say: " + text, add_special_tokens=add_special_tokens)
        assert one.text == "say: " + text
        assert [token.id for token in one.tokens] == want.ids
        assert [token.special for token in one.tokens] == [mask == 1 for mask in want.special_tokens_mask]
        for token, (start, end), name in zip(one.tokens, want.offsets, want.tokens, strict=True):
            assert token.text == (name if token.special else one.text[start:end])
            if not token.special:
                assert (token.start, token.end) == (start, end)


def test_more_tokens_than_the_model_takes_are_not_cut(opened: tuple[Engine, Path]) -> None:
    engine, folder = opened
    text = "the river " * engine.info.max_input_length
    (one,) = engine.tokenize([text]).result(10)
    assert len(one.tokens) == len(library(folder).encode("say: " + text).ids) > engine.info.max_input_length


def test_decode_is_the_library_s(opened: tuple[Engine, Path]) -> None:
    engine, folder = opened
    ids = [library(folder).encode(text).ids for text in TEXTS]
    for skip in (True, False):
        assert engine.decode(ids, skip).result(10) == library(folder).decode_batch(ids, skip_special_tokens=skip)


def test_what_is_refused(opened: tuple[Engine, Path]) -> None:
    engine, _ = opened
    for call in (engine.tokenize, engine.decode):
        with pytest.raises(EmptyInput):
            call([])  # type: ignore[operator]
    with pytest.raises(BatchTooLarge):
        engine.tokenize(["a"] * 5)
    with pytest.raises(BatchTooLarge):
        engine.decode([[1]] * 5)
    with pytest.raises(UnknownPrompt):
        engine.tokenize(["a"], prompt_name="nobody")
    with pytest.raises(InvalidInput, match=f"token id {engine.info.vocab_size} >= vocabulary size"):
        engine.decode([[engine.info.vocab_size]])
    limit = 250 * engine.info.max_input_length
    with pytest.raises(TooLong, match=f"input 1 has {limit + 1} characters > maximum of {limit}"):
        engine.tokenize(["a", "x" * (limit + 1 - len("say: "))]).result(10)
    assert engine.tokenize(["x" * (limit - len("say: "))]).result(10)


def test_neither_is_a_request(opened: tuple[Engine, Path]) -> None:
    engine, _ = opened
    before = engine.metrics.render()
    engine.tokenize(["a"]).result(10)
    engine.decode([[5]]).result(10)
    assert engine.metrics.render() == before


def test_a_draining_engine_refuses_both(tiny_folder: Callable[[str], Path]) -> None:
    with open_engine(EngineConfig(model_id=str(tiny_folder("bert")), dtype="float32")) as engine:
        engine.drain()
        with pytest.raises(Unhealthy):
            engine.tokenize(["a"])
        with pytest.raises(Unhealthy):
            engine.decode([[5]])


@pytest.mark.parametrize("direction", ["right", "left"])
def test_a_lower_limit_cuts_as_the_model_s_own_would(opened: tuple[Engine, Path], direction: str) -> None:
    engine, folder = opened
    judge = library(folder)
    judge.enable_truncation(7, direction=direction)
    ids = judge.encode("say: the river bank, bees make honey").ids
    assert len(ids) == 7
    options = Options(truncate=True, truncation_direction=direction, max_tokens=7)  # type: ignore[arg-type]
    asked = Request(inputs=["the river bank, bees make honey"], options=options)
    assert engine._encode(Pending(asked, 0.0))[0].ids == ids


def test_a_lower_limit_refuses_where_truncation_is_off(opened: tuple[Engine, Path]) -> None:
    engine, _ = opened
    options = Options(truncate=False, max_tokens=4)
    with pytest.raises(TooLong, match="tokens > maximum of 4"):
        engine.submit(Request(inputs=["the river bank, bees make honey"], options=options)).result(10)
    with pytest.raises(TooLong, match="tokens > maximum of 4"):
        engine.submit(Request(inputs=[[5] * 5], options=options)).result(10)
    far = Options(truncate=False, max_tokens=10**9)
    assert engine.submit(Request(inputs=["the"], options=far)).result(10).usage.num_tokens > 0


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_only_the_second_text_of_a_pair_is_cut(opened: tuple[Engine, Path], limit: int) -> None:
    engine, folder = opened
    pair = Pair("the river bank is deep", "bees make honey two plus two")
    whole = library(folder).encode(*pair)
    kept = [i for i, side in enumerate(whole.sequence_ids) if side != 1]
    second = [i for i, side in enumerate(whole.sequence_ids) if side == 1][:limit]
    options = Options(truncate=True, max_second_tokens=limit)
    (encoded,) = engine._encode(Pending(Request(inputs=[pair], task="rerank", options=options), 0.0))
    assert encoded.ids == [whole.ids[i] for i in sorted([*kept, *second])]
