"""Messages -> the text that a reward model was trained to read, by the model's own Jinja template.

Owns the sandbox in which such a template runs: it is a program that came with the weights. What a template may use,
and how blanks around its tags are cut, is as in transformers 5 (utils/chat_template_utils.py), so that the texts are
equal. Never touches token ids.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any

from openbei.engine.request import Chat, Message
from openbei.errors import InvalidInput

if TYPE_CHECKING:
    from jinja2 import Template


_MARKS = re.compile(r"content-([0-9]+)-of-a-message")


class Rendered(str):
    """A text that a chat template made: it holds its special tokens, and the tokenizer adds none."""

    __slots__ = ()


def render(
    template: str, messages: Sequence[Message], special_tokens: Mapping[str, str], add_generation_prompt: bool = False
) -> Rendered:
    """Messages, such as {"role": "user", "content": "..."} -> one text, by a Jinja template.

    special_tokens: by role, as TextSpec has them; the template prints them. A key of a message that is None counts as
    absent. strftime_now in a template is this machine's local time. Raises InvalidInput with what the template itself
    says, of roles out of order for one, or with what is wrong in it.
    """
    if not messages or not all(isinstance(message, Mapping) for message in messages):
        raise InvalidInput("messages must be a list of objects, and not empty")
    given = [{key: value for key, value in message.items() if value is not None} for message in messages]
    names = {"messages": given, "tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
    try:
        return Rendered(_compile(template).render({**special_tokens, **names}))
    except Exception as error:  # whatever a program of the model's makes of these messages
        raise InvalidInput(f"the model's chat template refuses the messages: {error}") from error


def render_whole(template: str, chat: Chat, special_tokens: Mapping[str, str]) -> Rendered:
    """As render, but a message that the template passes over is refused: the score would be that of another chat.

    Many templates skip a role that they do not know ("Assistant") without a word, so a chat of the same roles, whose
    contents are marks, is rendered too.
    """
    marked = [{**message, "content": f"content-{index}-of-a-message"} for index, message in enumerate(chat)]
    shown = set(_MARKS.findall(render(template, marked, special_tokens)))
    for index in range(len(chat)):
        if str(index) not in shown:
            raise InvalidInput(f"the model's chat template passes over message {index} of a chat: is its role known?")
    return render(template, chat, special_tokens)


@cache
def _compile(template: str) -> "Template":
    import jinja2  # 30 ms that a model without chats need not wait for
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, by which trainers find the assistant's words; here its body is printed, no more."""

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    Generation.tags = {"generation"}

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": _strftime_now}
    return environment.from_string(template)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """jinja2's own tojson escapes for HTML, which no model was trained on."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
