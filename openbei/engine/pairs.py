"""A query and a document -> the one text that a language model judges, by the model's own template.

Owns the messages that such a template is given, and the check that it shows both texts; never touches token ids. The
roles are those of sentence-transformers' CrossEncoder and of vLLM's score templates.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from openbei.engine.chat import render
from openbei.engine.request import Message
from openbei.errors import InvalidInput, ModelError
from openbei.weights.checkpoint import PairTemplate

_BY_A_TOKEN = re.compile(r"<[^\s<>]+>")
PROBES = ("a", "7 7", "?!\n")  # they share no letter, so what their texts share at the ends is the template's


class PairTexts:
    """Makes texts of pairs. Raises ModelError for a template that refuses a pair or shows only one side of it."""

    def __init__(self, template: PairTemplate, special_tokens: Mapping[str, str]) -> None:
        self._template = template
        self._special_tokens = special_tokens
        try:
            texts = [self.text(query, document) for query in PROBES for document in PROBES]
            texts += [self.text(probe, probe, "Judge.") for probe in PROBES]
        except InvalidInput as error:
            raise ModelError(f"a query and a document make no text: {error}") from error
        if len(set(texts[: len(PROBES) ** 2])) < len(PROBES) ** 2:
            raise ModelError("the model's chat template does not show both texts of a pair, query and document")
        self._opening = texts[0][: num_shared(texts)]

    def text(self, query: str, document: str, instruction: str | None = None) -> str:
        """A pair -> its text; Rendered if it is complete. instruction: in place of the model's own.

        Raises InvalidInput with what the template says.
        """
        if instruction is None:
            instruction = self._template.instruction
        messages = [self._message("system", instruction)] if instruction else []
        messages += [self._message("query", query), self._message("document", document)]
        text = render(self._template.source, messages, self._special_tokens, self._template.generation_prompt)
        return text if self._template.complete else str(text)

    def is_rendered(self, query: str) -> bool:
        """Whether a client put the prompt around its pair itself: the query begins as the template does, by a token."""
        return _BY_A_TOKEN.match(self._opening) is not None and query.startswith(self._opening)

    def _message(self, role: str, text: str) -> Message:
        return {"role": role, "content": [{"type": "text", "text": text}] if self._template.structured else text}


def num_shared(rows: Sequence[Sequence[Any]]) -> int:
    """Rows -> how many items at their front are the same in all."""
    columns = zip(*rows, strict=False)  # as long as the shortest
    return next((i for i, column in enumerate(columns) if len(set(column)) > 1), min(map(len, rows)))
