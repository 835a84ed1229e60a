"""Texts and token ids -> token ids with specials, cut to the model's limit.

Owns the tokenizers library and the rules of truncation and prompts; never touches batches or tensors.
`encode_batch_fast` releases the GIL while it works, so several threads may encode at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import tokenizers
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence

from openbei.engine.request import Direction, Input
from openbei.errors import InvalidInput, ModelError, TokenizerFailed, TooLong
from openbei.weights.checkpoint import TextSpec

MAX_CHARACTERS_PER_TOKEN = 250


@dataclass(frozen=True, slots=True)
class Truncation:
    """Whether a text that is too long is cut, and at which end."""

    enabled: bool
    direction: Direction = "right"


class Tokenizer:
    """tokenizer.json with its baked truncation and padding off; the limit is TextSpec.max_length."""

    def __init__(self, text: TextSpec) -> None:
        try:
            self._library = tokenizers.Tokenizer.from_file(str(text.tokenizer_file))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"{text.tokenizer_file.name} cannot be read: {error}") from error
        self._library.no_truncation()
        self._library.no_padding()
        if text.lower_case:  # harmless where the file lower-cases too
            present = self._library.normalizer
            self._library.normalizer = Lowercase() if present is None else NormalizerSequence([Lowercase(), present])
        self.max_length = text.max_length
        self.vocab_size = self._library.get_vocab_size()
        self._num_prefix, self._num_suffix = self._count_specials()

    def encode(self, inputs: Sequence[Input], truncation: Truncation, prompt: str | None) -> list[list[int]]:
        """Texts and id lists -> token ids of each, at most max_length.

        A text gets the prompt in front and the model's special tokens around it; an id list is taken as it is,
        unless a prompt is in force: then it is decoded first. Raises TooLong (with truncation off),
        TokenizerFailed, InvalidInput.
        """
        texts = {
            i: self._text(i, item, truncation, prompt) for i, item in enumerate(inputs) if _is_text(item) or prompt
        }
        encoded = iter(self._encode_texts(list(texts.values())))
        return [
            self._cut(i, next(encoded), truncation, (self._num_prefix, self._num_suffix))
            if i in texts
            else self._cut(i, list(item), truncation, (0, 0))  # type: ignore[arg-type]
            for i, item in enumerate(inputs)
        ]

    def _text(self, index: int, item: Input, truncation: Truncation, prompt: str | None) -> str:
        text = item if isinstance(item, str) else self._library.decode(list(item))
        text = (prompt or "") + text
        limit = MAX_CHARACTERS_PER_TOKEN * self.max_length
        if len(text) <= limit:
            return text
        if not truncation.enabled:
            raise TooLong(f"input {index} has {len(text)} characters > maximum of {limit}; set truncate to cut it")
        return text[:limit] if truncation.direction == "right" else text[-limit:]

    def _encode_texts(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        try:
            return [encoding.ids for encoding in self._library.encode_batch_fast(texts)]
        except (TypeError, UnicodeError) as error:  # by version; a str that UTF-8 cannot hold
            raise InvalidInput("input is not valid Unicode: it holds a lone surrogate") from error
        except Exception as error:  # the library raises bare Exception
            raise TokenizerFailed(f"tokenizer failed: {error}") from error

    def _cut(self, index: int, ids: list[int], truncation: Truncation, specials: tuple[int, int]) -> list[int]:
        limit = self.max_length
        if len(ids) <= limit:
            return ids
        if not truncation.enabled:
            raise TooLong(f"input {index} has {len(ids)} tokens > maximum of {limit}; set truncate to cut it")
        num_prefix, num_suffix = specials
        if truncation.direction == "right":
            return ids[: limit - num_suffix] + ids[len(ids) - num_suffix :]
        return ids[:num_prefix] + ids[len(ids) - (limit - num_prefix) :]

    def _count_specials(self) -> tuple[int, int]:
        """How many special tokens the template puts before and after a text."""
        mask = self._library.encode("a").special_tokens_mask
        num_prefix = mask.index(0) if 0 in mask else 0
        return num_prefix, mask[::-1].index(0) if 0 in mask else 0


def _is_text(item: Input) -> bool:
    return isinstance(item, str)
