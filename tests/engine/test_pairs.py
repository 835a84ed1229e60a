"""Pairs as the one text that a language model judges: ids and cuts against transformers and sentence-transformers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import transformers
from sentence_transformers import CrossEncoder

from openbei.engine.chat import Rendered
from openbei.engine.pairs import PairTexts, num_shared
from openbei.engine.request import Pair
from openbei.engine.tokenizer import Tokenizer
from openbei.engine.truncation import Truncation
from openbei.errors import InvalidInput, ModelError, TooLong
from openbei.model.ops import numpy as plain
from openbei.model.spec import pack
from openbei.weights.checkpoint import Checkpoint, PairTemplate, TextSpec
from openbei.weights.load import load
from openbei.weights.repo import locate
from tests import rerankers
from tests.rerankers import INSTRUCTION, PLAIN_TEMPLATE, TEMPLATE, prompted

CUT, WHOLE = Truncation(True), Truncation(False)
MAX_LENGTH = 300
PAIRS = [
    Pair("what is the answer?", "The answer is yes."),
    Pair("no", ""),
    Pair("  two\n\nlines ", " spaces before and after \n"),
    Pair("ünï 漢字 <|im_end|> {{ query }}", "<think>1 + 1 = 2</think>"),
    Pair("the longest", "the other is no, the other is yes. " * 20),
    Pair("the longest is the query " * 20, "short"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plain = rerankers.save(tmp_path_factory.mktemp("model"), rerankers.language_model(), max_length=MAX_LENGTH)
    return rerankers.as_cross_encoder(plain)


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return load(str(folder))


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    return Tokenizer(checkpoint.text)


@pytest.fixture(scope="module")
def judge(folder: Path) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(folder)


def _ids(judge: transformers.PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = judge(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def test_ids_are_those_of_the_prompt_of_the_card(
    tokenizer: Tokenizer, judge: transformers.PreTrainedTokenizerBase
) -> None:
    short = PAIRS[:4]
    ours = [one.ids for one in tokenizer.encode(short, WHOLE)]
    assert ours == [_ids(judge, prompted(*pair)) for pair in short]


def test_a_cut_is_made_in_the_body_as_in_the_card(
    tokenizer: Tokenizer, judge: transformers.PreTrainedTokenizerBase
) -> None:
    """The card tokenises the body alone, cuts it, and puts prefix and suffix around it."""
    prefix, suffix = _ids(judge, rerankers.PREFIX), _ids(judge, rerankers.SUFFIX)
    for pair in PAIRS[4:]:
        body = _ids(judge, rerankers.BODY.format(instruction=INSTRUCTION, query=pair.first, document=pair.second))
        wanted = prefix + body[: MAX_LENGTH - len(prefix) - len(suffix)] + suffix
        assert len(prefix) + len(body) + len(suffix) > MAX_LENGTH
        assert [one.ids for one in tokenizer.encode([pair], CUT)] == [wanted]


def test_a_cut_from_the_left_spares_the_prompt_too(
    tokenizer: Tokenizer, judge: transformers.PreTrainedTokenizerBase
) -> None:
    pair = Pair("no", PAIRS[4].second)
    whole, suffix = _ids(judge, prompted(*pair)), _ids(judge, rerankers.SUFFIX)
    (cut,) = tokenizer.encode([pair], Truncation(True, "left"))
    head = _ids(judge, rerankers.PREFIX + f"<Instruct>: {INSTRUCTION}\n<Query>: ")
    assert len(cut.ids) == MAX_LENGTH
    assert cut.ids == head + whole[-(MAX_LENGTH - len(head)) :]
    assert cut.ids[-len(suffix) :] == suffix


def test_scores_are_those_of_sentence_transformers(folder: Path, checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    """Its CrossEncoder on the same folder, cut texts and all; the model's files make it give the logit."""
    ids = [one.ids for one in tokenizer.encode(PAIRS, CUT)]
    assert [len(each) for each in ids][-2:] == [MAX_LENGTH, MAX_LENGTH]
    ours = plain.run(checkpoint.model, pack(checkpoint.model.spec, ids), "labels")[:, 0]
    oracle = CrossEncoder(str(folder), device="cpu")
    np.testing.assert_allclose(ours, oracle.predict([tuple(pair) for pair in PAIRS]), rtol=0, atol=1e-4)
    ids = [one.ids for one in tokenizer.encode(PAIRS, CUT, "Find facts.")]
    ours = plain.run(checkpoint.model, pack(checkpoint.model.spec, ids), "labels")[:, 0]
    wanted = oracle.predict([tuple(pair) for pair in PAIRS], prompt_name="facts")
    np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-4)


def test_a_prompt_is_the_instruction_and_an_empty_one_leaves_it_to_the_template(
    tokenizer: Tokenizer, judge: transformers.PreTrainedTokenizerBase
) -> None:
    for prompt, wanted in (("Find facts.", "Find facts."), ("", INSTRUCTION), (None, INSTRUCTION)):
        (one,) = tokenizer.encode(PAIRS[:1], WHOLE, prompt)
        assert one.ids == _ids(judge, prompted(*PAIRS[0], wanted)), prompt


def test_a_single_text_is_taken_as_it_is(tokenizer: Tokenizer, judge: transformers.PreTrainedTokenizerBase) -> None:
    """It is a prompt that the client made; ids are never read again."""
    text = prompted(*PAIRS[0], "My own.")
    one, ids = tokenizer.encode([text, [5, 6]], WHOLE, "Find facts.")
    assert (one.ids, ids.ids) == (_ids(judge, text), [5, 6])


def test_a_pair_with_the_prompt_around_it_gets_no_other(
    tokenizer: Tokenizer, judge: transformers.PreTrainedTokenizerBase
) -> None:
    """vLLM's clients put the prompt around query and document, in two halves."""
    text = prompted("what?", "this", "My own.")
    halves = Pair(text[: text.index("<Document>")], text[text.index("<Document>") :])
    assert tokenizer.encode([halves], WHOLE)[0].ids == _ids(judge, text)
    almost = Pair("<|im_start|>system\nWho?", "this")
    assert tokenizer.encode([almost], WHOLE)[0].ids == _ids(judge, prompted(*almost))


def test_too_long_without_a_cut_and_too_short_for_the_prompt(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
    with pytest.raises(TooLong, match="tokens > maximum of 300"):
        tokenizer.encode(PAIRS[4:5], WHOLE)
    with pytest.raises(TooLong, match="the maximum is 50 in all"):
        Tokenizer(replace(checkpoint.text, max_length=50)).encode(PAIRS[:1], CUT)


def test_a_prompt_within_the_tokenizers_own_special_tokens(checkpoint: Checkpoint) -> None:
    """Nemotron's: no chat, so the text is encoded as any other."""
    template = PairTemplate(
        "question:{{ messages[0].content }} \n \n passage:{{ messages[1].content }}", complete=False
    )
    text = replace(checkpoint.text, pair_template=template)
    one, other = Tokenizer(text).encode([Pair("who", "me"), "question:who \n \n passage:me"], WHOLE)
    assert one.ids == other.ids
    made = PairTexts(template, {}).text("who", "me")
    assert (made, isinstance(made, Rendered)) == ("question:who \n \n passage:me", False)
    # Its opening is no special token, so a query may begin like it.
    assert not PairTexts(template, {}).is_rendered("question:who")


def test_a_cut_spares_the_prompt_and_no_more_where_texts_get_no_special_tokens() -> None:
    template = PairTemplate("ask {{ messages[0].content }} of {{ messages[1].content }} now", complete=False)
    file = locate(None).folder / "tokenizer.json"
    tokenizer = Tokenizer(TextSpec(file, max_length=6, pair_template=template, bare=True))
    (one,) = tokenizer.encode([Pair("a", "b c d e f g h")], CUT)
    assert tokenizer.names(one.ids) == ["ask", "a", "of", "b", "c", "now"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (PLAIN_TEMPLATE, "does not show both texts of a pair"),
        ("{{ messages[0].content }}", "does not show both texts"),
        ("{{ raise_exception('no such role') }}", "make no text: .*no such role"),
        ("{{ messages[0].content.upper", "make no text"),
    ],
)
def test_a_template_that_cannot_judge_a_pair_is_refused_at_start(source: str, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        PairTexts(PairTemplate(source), {})


def test_structured_content_and_the_opened_answer() -> None:
    source = "{% for m in messages %}{{ m.role }}={{ m.content[0].text }};{% endfor %}{{ add_generation_prompt }}"
    template = PairTemplate(source, "Judge.", structured=True, generation_prompt=True)
    assert PairTexts(template, {}).text("q", "d") == "system=Judge.;query=q;document=d;True"


def test_the_template_is_as_transformers_renders_it(judge: transformers.PreTrainedTokenizerBase) -> None:
    messages = [
        {"role": "system", "content": "X"},
        {"role": "query", "content": "q"},
        {"role": "document", "content": "d"},
    ]
    wanted = judge.apply_chat_template(messages, tokenize=False)
    assert PairTexts(PairTemplate(TEMPLATE, "X"), {}).text("q", "d") == wanted == prompted("q", "d", "X")


def test_what_rows_share_at_their_front() -> None:
    assert [num_shared(rows) for rows in (["abc", "abd"], [[1], [1, 2]], ["x", "y"], ["same", "same"])] == [2, 1, 0, 4]


@pytest.mark.parametrize("limit", [1, 4, 7, 10**6])
def test_a_limit_of_the_document_cuts_it_before_the_prompt_is_made(
    tokenizer: Tokenizer, judge: transformers.PreTrainedTokenizerBase, limit: int
) -> None:
    query, document = PAIRS[0]
    offsets = judge(document, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    head = document[: offsets[:limit][-1][1]]
    (one,) = tokenizer.encode([Pair(query, document)], Truncation(True, max_second_tokens=limit))
    assert one.ids == _ids(judge, prompted(query, head))
    (empty,) = tokenizer.encode([Pair(query, "")], Truncation(True, max_second_tokens=limit))
    assert empty.ids == _ids(judge, prompted(query, ""))


def test_a_limit_of_the_document_and_a_prompt_made_already(tokenizer: Tokenizer) -> None:
    first, _, second = prompted(*PAIRS[0]).partition("\n<Document>")
    with pytest.raises(InvalidInput, match="input 0 is a prompt already"):
        tokenizer.encode([Pair(first, "\n<Document>" + second)], Truncation(True, max_second_tokens=3))
