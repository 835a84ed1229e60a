"""Token ids against the tokenizers library and transformers, for each kind of tokenizer the families use."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from openbei.engine.chat import Rendered
from openbei.engine.request import Pair
from openbei.engine.tokenizer import Encoded, Tokenizer
from openbei.engine.truncation import Truncation
from openbei.errors import InvalidInput, ModelError, ModelNotFound, TooLong, UnsupportedModel
from openbei.weights.checkpoint import TextSpec
from openbei.weights.repo import HubOptions, locate
from openbei.weights.text import read_text
from tests.engine.kinds import KINDS
from tests.families import write_json

TEXTS = ["a", "the cat sat on the mat", "héllo wörld, 北京 ☃", "x" * 300, " ", "don't-stop the U.S.A. " * 20]
PAIRS = [
    Pair("the fox", "on the red fox"),
    Pair("the fox " * 20, "on"),
    Pair("on", "the fox " * 20),
    Pair("the fox on " * 9, "the red fox " * 9),
    Pair("the red fox " * 9, "the red fox " * 9),
    Pair("北京 ☃", " 🦊 fox" * 7),
    Pair("", "fox " * 30),
]
AWKWARD = [
    *(
        "a",
        "the",
        " ",
        " ",
        "\n",
        "\t",
        "\r\n",
        "é",
        "e\u0301",
        "ß",
        "İ",
        "ı",
        "Ⅷ",
        "½",
        "-",
        "'s",
        "...",
        "##ing",
        "12345",
        "@#",
    ),
    *(
        "日本",
        "한국",
        "😀",
        "👩\u200d👩\u200d👧\u200d👦",
        "שלום",
        "مرحبا",
        "ﷺ",
        "▁",
        "Ġ",
        "[MASK]",
        "[SEP]",
        "<s>",
        "</s>",
    ),
    *("\u200b", "\u202e", "\u0000", "\ufffd", "\u00ad", "\u0300", "\U0010ffff", "\ufeff"),
]
RANDOM = Random(7)
for _ in range(12):  # scripts, joiners, marks of direction and special tokens, in any order
    TEXTS.append("".join(RANDOM.choices(AWKWARD, k=30)))
    PAIRS.append(Pair(TEXTS[-1][: RANDOM.randrange(60)], TEXTS[-1]))
LIMITS = [5, 8, 9, 17, 10_000]
REFUSE, CUT_RIGHT, CUT_LEFT = Truncation(False), Truncation(True), Truncation(True, "left")
MANY = 512


@pytest.fixture(params=KINDS)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save(tmp_path, request.param) / "tokenizer.json"


def save(folder: Path, kind: str, config: dict[str, Any] | None = None, network: dict[str, Any] | None = None) -> Path:
    """A folder with tokenizer.json of a kind, tokenizer_config.json and the network's config.json."""
    KINDS[kind]().save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", config or {})
    write_json(folder / "config.json", network or {})
    return folder


def read(folder: Path) -> Tokenizer:
    """As start-up does: the files of a folder -> TextSpec -> Tokenizer."""
    return Tokenizer(read_text(folder, folder, MANY))


def ids(tokenizer: Tokenizer, *inputs: str | list[int] | Pair, truncation: Truncation = REFUSE) -> list[list[int]]:
    return [encoded.ids for encoded in tokenizer.encode(inputs, truncation)]


def tokens(folder: Path, text: str | Pair) -> list[str]:
    tokenizer = read(folder)
    return tokenizer.names(ids(tokenizer, text)[0])


def minilm(max_length: int = 256) -> Tokenizer:
    return Tokenizer(TextSpec(locate(None, HubOptions()).folder / "tokenizer.json", max_length))


# Truncation, pairs, offsets


@pytest.mark.parametrize("direction", ["right", "left"])
@pytest.mark.parametrize("limit", LIMITS)
def test_truncation_equals_the_librarys_own(file: Path, limit: int, direction: str) -> None:
    library = tokenizers.Tokenizer.from_file(str(file))
    library.enable_truncation(limit, strategy="longest_first", direction=direction)
    want = [library.encode(text) for text in TEXTS] + [library.encode(*pair) for pair in PAIRS]
    tokenizer = Tokenizer(TextSpec(file, limit))
    for with_offsets in (False, True):
        got = tokenizer.encode([*TEXTS, *PAIRS], Truncation(True, direction), with_offsets=with_offsets)
        assert [encoded.ids for encoded in got] == [encoding.ids for encoding in want]
        assert [encoded.type_ids or [0] * len(encoded.ids) for encoded in got] == [each.type_ids for each in want]
        if with_offsets:
            assert [encoded.offsets for encoded in got] == [encoding.offsets for encoding in want]
            assert [list(map(int, each.special)) for each in got] == [each.special_tokens_mask for each in want]


def test_only_pairs_have_types_and_only_who_asks_gets_offsets(file: Path) -> None:
    single, pair, given = Tokenizer(TextSpec(file, 100)).encode(["the fox", Pair("fox", "on"), [5, 6]], REFUSE)
    assert single.type_ids is None
    assert len(pair.type_ids) == len(pair.ids)
    assert all(encoded.offsets is None and encoded.special is None for encoded in (single, pair, given))
    assert given == Encoded([5, 6])


def test_offsets_count_code_points_and_specials_are_told_apart() -> None:
    encoded = minilm().encode(["🦊 Füchse, 北京"], REFUSE, with_offsets=True)[0]
    text = "🦊 Füchse, 北京"
    assert [text[start:end] for start, end in encoded.offsets][-4:] == [",", "北", "京", ""]
    assert encoded.special == [True] + [False] * (len(encoded.ids) - 2) + [True]
    assert minilm().names(encoded.ids)[0] == "[CLS]"


def test_threads_may_cut_at_different_ends_at_once(file: Path) -> None:
    tokenizer = Tokenizer(TextSpec(file, 9))
    ways = [CUT_LEFT, CUT_RIGHT] * 20
    want = [tokenizer.encode(PAIRS, way) for way in ways]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda way: tokenizer.encode(PAIRS, way), ways)) == want


def test_baked_truncation_and_padding_are_off() -> None:
    """MiniLM's tokenizer.json bakes both at 128 tokens."""
    tokenizer = minilm()
    short, long = ids(tokenizer, "What is Deep Learning?", "word " * 500, truncation=CUT_RIGHT)
    assert short == [101, 2054, 2003, 2784, 4083, 1029, 102]
    assert len(long) == 256


def test_minilm_equals_transformers() -> None:
    folder = locate(None, HubOptions()).folder
    theirs = AutoTokenizer.from_pretrained(folder)
    pairs = theirs([pair.first for pair in PAIRS], [pair.second for pair in PAIRS], truncation=True, max_length=20)
    got = Tokenizer(replace(read_text(folder, folder, MANY), max_length=20)).encode(PAIRS, CUT_RIGHT)
    assert [encoded.ids for encoded in got] == [
        [token for token in row if token != theirs.pad_token_id] for row in pairs["input_ids"]
    ]


def test_the_limit_itself_passes_and_one_more_does_not() -> None:
    tokenizer = minilm(max_length=6)
    assert len(ids(tokenizer, "one two three four")[0]) == 6
    assert len(ids(tokenizer, Pair("one", "two three"))[0]) == 6
    with pytest.raises(TooLong, match="input 1 has 7 tokens > maximum of 6"):
        ids(tokenizer, "one", "one two three four five")
    with pytest.raises(TooLong, match="input 2 has 7 tokens > maximum of 6"):
        ids(tokenizer, "one", "two", Pair("one two", "three four"))


def test_specials_that_fill_the_limit_are_named() -> None:
    with pytest.raises(TooLong, match="input 0 needs 3 special tokens; the maximum is 3 in all"):
        ids(minilm(max_length=3), Pair("one", "two"), truncation=CUT_RIGHT)


def test_ids_are_taken_as_they_are_and_obey_the_limit() -> None:
    tokenizer = minilm(max_length=3)
    assert ids(tokenizer, [7, 8]) == [[7, 8]]
    assert ids(tokenizer, [7, 8, 9, 10], truncation=CUT_RIGHT) == [[7, 8, 9]]
    assert ids(tokenizer, [7, 8, 9, 10], truncation=CUT_LEFT) == [[8, 9, 10]]
    with pytest.raises(TooLong):
        ids(tokenizer, [7, 8, 9, 10])


def test_a_prompt_goes_in_front_of_texts_and_of_decoded_ids_but_not_of_pairs() -> None:
    tokenizer = minilm()
    plain = ids(tokenizer, "query: red fox", Pair("red fox", "fox"))
    fox = plain[0][3:-1]  # red fox, without specials
    got = tokenizer.encode(["red fox", fox, Pair("red fox", "fox")], REFUSE, "query: ")
    assert [encoded.ids for encoded in got] == [plain[0], plain[0], plain[1]]


def test_ten_megabytes_are_cut_before_they_are_tokenised() -> None:
    tokenizer = minilm()
    text = "word " * 2_000_000
    assert ids(tokenizer, text, truncation=CUT_RIGHT) == ids(tokenizer, text[: 250 * 256], truncation=CUT_RIGHT)
    assert len(ids(tokenizer, text, truncation=CUT_LEFT)[0]) == 256
    assert len(ids(tokenizer, Pair("word", text), truncation=CUT_LEFT)[0]) == 256
    ends = "red " + text + " blue"
    assert ids(tokenizer, ends, truncation=CUT_LEFT) == ids(tokenizer, ends[-250 * 256 :], truncation=CUT_LEFT)
    assert ids(tokenizer, ends, truncation=CUT_LEFT)[0][-2] == ids(tokenizer, "blue")[0][1]
    for item in (text, Pair("word", text)):
        with pytest.raises(TooLong, match="10000000 characters > maximum of 64000"):
            ids(tokenizer, item)


def test_a_lone_surrogate_is_named() -> None:
    for item in ("\ud800", Pair("a", "\ud800")):
        with pytest.raises(InvalidInput, match="surrogate"):
            ids(minilm(), item)


def test_lower_case_is_added_only_where_it_is_missing(file: Path) -> None:
    upper, lower = (Tokenizer(TextSpec(file, 100, lower_case=flag)) for flag in (False, True))
    assert ids(lower, "THE Cat") == ids(upper, "the cat")


def test_a_broken_file_is_a_model_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read"):
        Tokenizer(TextSpec(tmp_path / "tokenizer.json", 10))


# The ends of a text: what tokenizer_config.json wants beside tokenizer.json

ENDS = {
    "mistral": ("LlamaTokenizer", "<s>", "</s>"),
    "gemma": ("GemmaTokenizerFast", "<bos>", "<eos>"),
    "llama3": ("PreTrainedTokenizerFast", "<|begin_of_text|>", "<|end_of_text|>"),
}


def ends(kind: str, bos: bool | None, eos: bool | None, **changes: Any) -> dict[str, Any]:
    name, first, last = ENDS[kind]
    config = {"tokenizer_class": name, "bos_token": first, "eos_token": last}
    flags = {"add_bos_token": bos, "add_eos_token": eos}
    return config | {key: flag for key, flag in flags.items() if flag is not None} | changes


@pytest.mark.parametrize("kind", ENDS)
def test_a_lost_eos_is_put_back_as_transformers_does_when_told_to(kind: str, tmp_path: Path) -> None:
    _, bos, eos = ENDS[kind]
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=KINDS[kind](), bos_token=bos, eos_token=eos, add_bos_token=True, add_eos_token=True
    )
    tokenizer = read(save(tmp_path, kind, ends(kind, None, True)))
    texts = [text for text in TEXTS if len(text) < 100]
    assert ids(tokenizer, *texts) == theirs(texts)["input_ids"]
    got = tokenizer.encode(PAIRS, REFUSE)
    want = theirs([pair.first for pair in PAIRS], [pair.second for pair in PAIRS], return_token_type_ids=True)
    assert [encoded.ids for encoded in got] == want["input_ids"]
    assert [encoded.type_ids for encoded in got] == want["token_type_ids"]
    assert got[0].ids[-1] == theirs.eos_token_id  # so that equal does not mean equally wrong
    assert read(save(tmp_path, kind, ends(kind, True, None))).encode(["fox"], REFUSE)[0].ids[-1] != theirs.eos_token_id


def test_the_ends_of_mistral_by_hand(tmp_path: Path) -> None:
    assert tokens(save(tmp_path, "mistral", ends("mistral", True, True)), "on é") == [
        "<s>", "▁on", "▁", "<0xC3>", "<0xA9>", "</s>",
    ]  # fmt: skip
    assert tokens(tmp_path, Pair("on", "fox")) == ["<s>", "▁on", "</s>", "<s>", "▁f", "o", "x", "</s>"]


def test_a_cut_keeps_the_eos_that_was_put_back(tmp_path: Path) -> None:
    folder = save(tmp_path, "mistral", ends("mistral", True, True, model_max_length=4))
    tokenizer = read(folder)
    cut = [
        tokenizer.names(encoded.ids)
        for way in (CUT_RIGHT, CUT_LEFT)
        for encoded in tokenizer.encode(["on the fox"], way)
    ]
    assert cut == [["<s>", "▁on", "▁the", "</s>"], ["<s>", "o", "x", "</s>"]]


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (ends("mistral", None, None), ["<s>", "▁on"]),
        (ends("mistral", True, False), ["<s>", "▁on"]),
        (ends("mistral", False, True), ["▁on", "</s>"]),
        (ends("mistral", False, False), ["▁on"]),
        (ends("mistral", False, None, tokenizer_class="PreTrainedTokenizerFast"), ["<s>", "▁on"]),
        (ends("mistral", False, True, tokenizer_class="Qwen2Tokenizer"), ["<s>", "▁on", "</s>"]),
    ],
)
def test_a_false_counts_only_for_the_classes_that_read_it(
    config: dict[str, Any], wanted: list[str], tmp_path: Path
) -> None:
    assert tokens(save(tmp_path, "mistral", config), "on") == wanted


def test_another_special_at_the_end_is_not_doubled(tmp_path: Path) -> None:
    """As in Qwen3-Embedding: the file appends one special token, and the EOS is another."""
    config = {"eos_token": "[PAD]", "add_eos_token": True}
    assert tokens(save(tmp_path, "bert", config), "fox") == ["[CLS]", "fox", "[SEP]"]


def test_the_byte_level_step_that_sets_offsets_stays(tmp_path: Path) -> None:
    plain = read(save(tmp_path, "llama3")).encode(["the fox"], REFUSE, with_offsets=True)[0]
    with_eos = read(save(tmp_path, "llama3", ends("llama3", None, True))).encode(["the fox"], REFUSE, None, True)[0]
    assert with_eos.offsets == [*plain.offsets, (0, 0)]
    assert with_eos.offsets[2] == (4, 5)  # " f" without its blank


GTE_QWEN2 = {"model_type": "qwen2", "auto_map": {"AutoModel": "some/repo--modeling_qwen.Qwen2Model"}}
GTE_CODE = {"AutoTokenizer": ["some/repo--tokenization_qwen.Qwen2Tokenizer", "tokenization_qwen.Qwen2TokenizerFast"]}


def test_gte_qwen2_ends_in_endoftext_once(tmp_path: Path) -> None:
    folder = save(tmp_path, "qwen2", {"auto_map": GTE_CODE, "add_bos_token": False}, network=GTE_QWEN2)
    assert tokens(folder, "the on") == ["the", "Ġ", "on", "<|endoftext|>"]
    assert tokens(folder, Pair("on", "the")) == ["on", "<|endoftext|>", "the", "<|endoftext|>"]
    config = {"auto_map": GTE_CODE, "add_eos_token": True, "eos_token": "<|endoftext|>"}
    assert tokens(save(tmp_path, "qwen2", config, network=GTE_QWEN2), "on") == ["on", "<|endoftext|>"]
    ended = KINDS["qwen2"]()
    ended.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    ended.save(str(tmp_path / "tokenizer.json"))
    assert tokens(folder, "on") == ["on", "<|endoftext|>"]


@pytest.mark.parametrize(
    "network",
    [
        GTE_QWEN2 | {"model_type": "mistral"},
        {"model_type": "qwen2"},
        {"model_type": "qwen2", "auto_map": {"AutoModel": "other.Qwen2Model"}},
        {},
    ],
)
def test_another_network_ends_as_its_file_says(network: dict[str, Any], tmp_path: Path) -> None:
    assert tokens(save(tmp_path, "qwen2", network=network), "on") == ["on"]


def test_added_tokens_of_the_config_are_found_in_texts_as_in_transformers(tmp_path: Path) -> None:
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    size = KINDS["mistral"]().get_vocab_size()
    added = {str(size): {"content": "<query>", **flags}, "2": {"content": "</s>", **flags, "rstrip": True}}
    folder = save(tmp_path, "mistral", ends("mistral", None, None) | {"added_tokens_decoder": added})
    theirs = PreTrainedTokenizerFast.from_pretrained(folder)
    texts = ["on <query> the", "on </s>  the", "on <s>  the"]
    assert ids(read(folder), *texts) == theirs(texts)["input_ids"]
    assert read(folder).names([size]) == ["<query>"]
    assert ids(read(folder), *texts) != ids(read(save(tmp_path, "mistral")), *texts)


@pytest.mark.parametrize(
    "changes", [{"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}, {}]
)
def test_a_bert_class_reads_its_normalizer_from_the_config(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = save(tmp_path, "bert", {"tokenizer_class": "BertTokenizer", **changes})
    texts = ["THE Fox", "fóx", "on北京on"]
    got = ids(read(folder), *texts)
    assert got == AutoTokenizer.from_pretrained(folder)(texts)["input_ids"]
    plain = ids(read(save(tmp_path, "bert", {"tokenizer_class": "PreTrainedTokenizerFast", **changes})), *texts)
    assert (got == plain) is (not changes)


def test_special_tokens_in_a_text_may_be_read_as_letters(tmp_path: Path) -> None:
    assert tokens(save(tmp_path, "bert"), "[SEP]") == ["[CLS]", "[SEP]", "[SEP]"]
    folder = save(tmp_path, "bert", {"split_special_tokens": True})
    assert tokens(folder, "[SEP]") == ["[CLS]", "[UNK]", "s", "##e", "##p", "[UNK]", "[SEP]"]


def test_the_special_tokens_map_names_what_the_config_does_not(tmp_path: Path) -> None:
    config = {"add_eos_token": True, "eos_token": "<unk>"}
    folder = save(tmp_path, "mistral", config)
    write_json(folder / "special_tokens_map.json", {"eos_token": {"content": "</s>"}, "pad_token": None})
    assert read_text(folder, folder, MANY).special_tokens == {"eos_token": "</s>"}
    assert tokens(folder, "on") == ["<s>", "▁on", "</s>"]
    folder = save(tmp_path, "mistral", config | {"added_tokens_decoder": {}})
    assert read_text(folder, folder, MANY).special_tokens == {"eos_token": "<unk>"}


# Refused at start


def test_only_a_slow_tokenizer_is_refused_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(ModelNotFound, match=r"has no tokenizer\.json \(only tokenizer\.model, which openbei does not"):
        read(tmp_path)


@pytest.mark.parametrize("named", ["tokenization_own.OwnTokenizer", [None, "org/repo--tokenization_own.OwnFast"]])
def test_a_tokenizer_of_the_models_own_code_is_refused(named: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"model's own code, .*tokenization_own\.Own"):
        read(save(tmp_path, "mistral", {"auto_map": {"AutoTokenizer": named}}))


def test_a_missing_end_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="has add_eos_token true, but no eos_token"):
        read(save(tmp_path, "mistral", {"add_eos_token": True}))
    with pytest.raises(ModelError, match="has no token '</eos>', which every text needs around it"):
        read(save(tmp_path, "mistral", {"add_eos_token": True, "eos_token": "</eos>"}))
    with pytest.raises(ModelError, match="added_tokens_decoder must map ids to tokens"):
        read(save(tmp_path, "mistral", {"added_tokens_decoder": {"3": {"lstrip": True}}}))


# Chats


def test_a_rendered_chat_gets_no_specials_and_no_prompt(tmp_path: Path) -> None:
    tokenizer = read(save(tmp_path, "llama3", ends("llama3", True, True)))
    chat = Rendered("<|begin_of_text|>the<|eot_id|>")
    assert tokenizer.names(tokenizer.encode([chat], REFUSE, "query: ")[0].ids) == [
        "<|begin_of_text|>",
        "the",
        "<|eot_id|>",
    ]
    assert ids(tokenizer, Rendered("the"), "the") == [[ids(tokenizer, "the")[0][1]], ids(tokenizer, "the")[0]]


def test_a_ready_made_chat_does_not_get_a_second_bos(tmp_path: Path) -> None:
    text, other = "<|begin_of_text|>the<|eot_id|>", "the <|begin_of_text|>"
    with_template = read(save(tmp_path, "llama3", ends("llama3", True, None, chat_template="{{ messages }}")))
    without = read(save(tmp_path, "llama3", ends("llama3", True, None)))
    bos = without.names([0])[0]
    assert with_template.names(ids(with_template, text)[0]) == [bos, "the", "<|eot_id|>"]
    assert without.names(ids(without, text)[0]) == [bos, bos, "the", "<|eot_id|>"]
    assert ids(with_template, other, "the") == ids(without, other, "the")
