"""Token ids against the tokenizers library's own truncation, for each kind of tokenizer the families use."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers

from openbei.engine.tokenizer import Tokenizer, Truncation
from openbei.errors import InvalidInput, ModelError, TooLong
from openbei.weights.checkpoint import TextSpec
from openbei.weights.repo import HubOptions, locate

TEXTS = ["a", "the cat sat on the mat", "héllo wörld, 北京 ☃", "x" * 300, " ", "don't-stop the U.S.A. " * 20]
REFUSE, CUT_RIGHT, CUT_LEFT = Truncation(False), Truncation(True), Truncation(True, "left")


@pytest.fixture(params=["bert", "roberta", "xlm-roberta", "mpnet", "distilbert"])
def file(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path]) -> Path:
    return tiny_folder(request.param) / "tokenizer.json"


def minilm(max_length: int = 256) -> Tokenizer:
    return Tokenizer(TextSpec(locate(None, HubOptions()).folder / "tokenizer.json", max_length))


@pytest.mark.parametrize("direction", ["right", "left"])
@pytest.mark.parametrize("limit", [3, 7, 16, 10_000])
def test_truncation_equals_the_librarys_own(file: Path, limit: int, direction: str) -> None:
    library = tokenizers.Tokenizer.from_file(str(file))
    library.no_padding()
    library.enable_truncation(limit, direction=direction)
    want = [library.encode(text).ids for text in TEXTS]
    assert Tokenizer(TextSpec(file, limit)).encode(TEXTS, Truncation(True, direction), None) == want


def test_baked_truncation_and_padding_are_off() -> None:
    """MiniLM's tokenizer.json bakes both at 128 tokens."""
    tokenizer = minilm()
    short, long = tokenizer.encode(["What is Deep Learning?", "word " * 500], CUT_RIGHT, None)
    assert short == [101, 2054, 2003, 2784, 4083, 1029, 102]
    assert len(long) == 256


def test_the_limit_itself_passes_and_one_more_does_not() -> None:
    tokenizer = minilm(max_length=6)
    assert len(tokenizer.encode(["one two three four"], REFUSE, None)[0]) == 6
    with pytest.raises(TooLong, match="input 1 has 7 tokens > maximum of 6"):
        tokenizer.encode(["one", "one two three four five"], REFUSE, None)


def test_ids_are_taken_as_they_are_and_obey_the_limit() -> None:
    tokenizer = minilm(max_length=3)
    assert tokenizer.encode([[7, 8]], REFUSE, None) == [[7, 8]]
    assert tokenizer.encode([[7, 8, 9, 10]], CUT_RIGHT, None) == [[7, 8, 9]]
    assert tokenizer.encode([[7, 8, 9, 10]], CUT_LEFT, None) == [[8, 9, 10]]
    with pytest.raises(TooLong):
        tokenizer.encode([[7, 8, 9, 10]], REFUSE, None)


def test_a_prompt_goes_in_front_of_texts_and_of_decoded_ids() -> None:
    tokenizer = minilm()
    plain = tokenizer.encode(["query: red fox"], REFUSE, None)
    ids = plain[0][3:-1]  # red fox, without specials
    assert tokenizer.encode(["red fox", ids, "red fox"], REFUSE, "query: ") == plain * 3


def test_ten_megabytes_are_cut_before_they_are_tokenised() -> None:
    tokenizer = minilm()
    text = "word " * 2_000_000
    assert tokenizer.encode([text], CUT_RIGHT, None) == tokenizer.encode([text[: 250 * 256]], CUT_RIGHT, None)
    assert len(tokenizer.encode([text], CUT_LEFT, None)[0]) == 256
    with pytest.raises(TooLong, match="10000000 characters > maximum of 64000"):
        tokenizer.encode([text], REFUSE, None)


def test_a_lone_surrogate_is_named() -> None:
    with pytest.raises(InvalidInput, match="surrogate"):
        minilm().encode(["\ud800"], CUT_RIGHT, None)


def test_lower_case_is_added_only_where_it_is_missing(file: Path) -> None:
    upper, lower = (Tokenizer(TextSpec(file, 100, lower_case=flag)) for flag in (False, True))
    assert lower.encode(["THE Cat"], REFUSE, None) == upper.encode(["the cat"], REFUSE, None)


def test_a_broken_file_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        Tokenizer(TextSpec(tmp_path / "tokenizer.json", 10))
