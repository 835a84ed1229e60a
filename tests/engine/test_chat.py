"""Chat templates against transformers' apply_chat_template: same text, same ids; and errors in the template's words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from openbei.engine.chat import Rendered, render, render_whole
from openbei.engine.request import Chat, with_chats
from openbei.engine.tokenizer import Tokenizer
from openbei.engine.truncation import Truncation
from openbei.errors import InvalidInput, TooLong
from openbei.weights.text import read_text
from tests.engine.chats import CHAT_ML, EVERYTHING, LLAMA_31, STRICT, TULU
from tests.engine.kinds import KINDS
from tests.families import write_json

Messages = list[dict[str, Any]]

TEMPLATES = {"llama-3.1": LLAMA_31, "chatml": CHAT_ML, "tulu": TULU, "strict": STRICT, "everything": EVERYTHING}

CHATS: dict[str, Messages] = {
    "one turn": [{"role": "user", "content": " What is 1 < 2 & 'é'? "}],
    "scored": [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "on  "}],
    "four turns": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "name": None},
        {"role": "user", "content": "北京"},
        {"role": "assistant", "content": "🦊"},
    ],
    "system": [{"role": "system", "content": "Be\nbrief."}, {"role": "user", "content": "the"}],
    "with a tool": [{"role": "tool", "content": "x"}, {"role": "user", "content": "y"}],
}
TOKENS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}


def transformers_tokenizer(template: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=KINDS["llama3"](), chat_template=template, **TOKENS)


def outcome(make: Callable[[], str]) -> str:
    """The text, or what the template says instead."""
    try:
        return make()
    except Exception as error:
        return str(error).removeprefix("the model's chat template refuses the messages: ")


@pytest.mark.parametrize("add_generation_prompt", [False, True])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_equals_transformers(name: str, chat: str, add_generation_prompt: bool) -> None:
    template, messages = TEMPLATES[name], CHATS[chat]
    theirs = transformers_tokenizer(template)
    want = outcome(
        lambda: theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    )
    assert outcome(lambda: render(template, messages, TOKENS, add_generation_prompt)) == want
    if name != "strict":  # equal, and not for failing both
        shown = messages[:2] if name == "everything" else messages
        assert shown[-1]["content"].strip() in want


def test_a_tulu_chat_by_hand() -> None:
    assert render(TULU, CHATS["scored"], TOKENS) == "<|user|>\nthe fox\n<|assistant|>\non  <|end_of_text|>"


@pytest.mark.parametrize("name", ["llama-3.1", "tulu"])
def test_the_ids_equal_transformers_and_hold_one_bos_at_most(name: str, tmp_path: Path) -> None:
    """The Llama template prints the BOS that the tokenizer would add; Tulu's prints none, and none was trained on."""
    KINDS["llama3"]().save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "tokenizer_config.json", {**TOKENS, "chat_template": TEMPLATES[name]})
    text = read_text(tmp_path, tmp_path, 512)
    messages = CHATS["scored"]
    rendered = render(text.chat_template, messages, text.special_tokens)
    got, chat = (one.ids for one in Tokenizer(text).encode([rendered, Chat(messages)], Truncation(False), "prompt: "))
    assert got == chat
    theirs = transformers_tokenizer(TEMPLATES[name]).apply_chat_template(messages, return_dict=False)
    assert got == theirs
    assert got.count(0) == (name == "llama-3.1")
    if name == "llama-3.1":  # the same text, made by the client
        assert Tokenizer(text).encode([str(rendered)], Truncation(False))[0].ids == theirs


def test_roles_out_of_order_are_refused_in_the_templates_words() -> None:
    with pytest.raises(InvalidInput, match="refuses the messages: Roles must alternate, starting with the user"):
        render(STRICT, CHATS["system"], TOKENS)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% if %}", "Expected an expression"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{{ messages[0].content.absent.deeper }}", "has no attribute 'absent'"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "not safely callable|unsafe"),
        ("{% include 'other' %}", "no loader"),
    ],
)
def test_a_template_that_fails_is_invalid_input(template: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        render(template, CHATS["one turn"], TOKENS)


@pytest.mark.parametrize("messages", [[], ["hello"], [None]])
def test_messages_must_be_objects(messages: Any) -> None:
    with pytest.raises(InvalidInput, match="messages must be a list of objects, and not empty"):
        render(TULU, messages, TOKENS)


def test_rendering_leaves_the_messages_as_they_were() -> None:
    messages = [{"role": "user", "content": "a", "name": None}]
    assert type(render(TULU, messages, TOKENS)) is Rendered
    assert messages == [{"role": "user", "content": "a", "name": None}]


# Whole chats

SKIPPING = TULU.replace("{% elif not loop.last %}", "{% elif message['role'] != 'assistant' %}{% elif not loop.last %}")


@pytest.mark.parametrize(("index", "role"), [(0, "User"), (1, "bot"), (1, "Assistant")])
def test_a_message_that_the_template_passes_over_is_refused(index: int, role: str) -> None:
    messages = [{"role": "user", "content": "four, four"}, {"role": "assistant", "content": "four"}]
    assert render_whole(SKIPPING, Chat(messages), TOKENS) == render(SKIPPING, messages, TOKENS)
    messages[index]["role"] = role
    with pytest.raises(InvalidInput, match=f"passes over message {index} of a chat"):
        render_whole(SKIPPING, Chat(messages), TOKENS)


def test_a_template_may_cut_and_rewrite_what_a_message_says() -> None:
    template = "{% for message in messages %}[{{ message['content'].split('</think>')[-1] | trim }}]{% endfor %}"
    assert render_whole(template, Chat([{"role": "user", "content": "<think>hm</think>"}]), TOKENS) == "[]"


def test_a_model_without_a_template_takes_no_messages(tmp_path: Path) -> None:
    KINDS["llama3"]().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(read_text(tmp_path, tmp_path, 512))
    with pytest.raises(InvalidInput, match="input 1 is a list of messages, and the model has no chat template"):
        tokenizer.encode(["a", Chat(CHATS["scored"])], Truncation(False))


def test_a_chat_that_is_too_long_is_named_or_cut_as_a_text_is(tmp_path: Path) -> None:
    KINDS["llama3"]().save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "tokenizer_config.json", {**TOKENS, "chat_template": LLAMA_31})
    tokenizer = Tokenizer(read_text(tmp_path, tmp_path, 5))
    with pytest.raises(TooLong, match=r"input 0 has \d+ tokens > maximum of 5"):
        tokenizer.encode([Chat(CHATS["scored"])], Truncation(False))
    whole = Tokenizer(read_text(tmp_path, tmp_path, 512)).encode([Chat(CHATS["scored"])], Truncation(False))[0].ids
    cut = [tokenizer.encode([Chat(CHATS["scored"])], Truncation(True, end))[0].ids for end in ("right", "left")]
    assert cut == [whole[:5], whole[-5:]]


def test_python_callers_write_messages_as_lists() -> None:
    first, second = CHATS["scored"], CHATS["one turn"]
    assert with_chats(first) == [Chat(first)]
    given = with_chats([first, "a", second, [5, 6], "", []])
    assert given == [Chat(first), "a", Chat(second), [5, 6], "", []]
    assert [type(one) for one in given] == [Chat, str, Chat, list, str, list]


# Where the template is found


@pytest.mark.parametrize(
    ("config", "jinja", "legacy", "wanted"),
    [
        ("A", None, None, "A"),
        ("A", "B", "C", "B"),
        ("A", None, "C", "A"),
        (None, None, "C", "C"),
        (None, None, None, None),
        ([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}], None, None, "D"),
        ([{"name": "tool_use", "template": "T"}], None, None, None),
    ],
)
def test_the_template_is_found_where_transformers_keeps_it(
    config: Any, jinja: str | None, legacy: str | None, wanted: str | None, tmp_path: Path
) -> None:
    KINDS["llama3"]().save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": config} if config else {})
    if jinja:
        (tmp_path / "chat_template.jinja").write_text(jinja)
    if legacy:
        write_json(tmp_path / "chat_template.json", {"chat_template": legacy})
    assert read_text(tmp_path, tmp_path, 512).chat_template == wanted
