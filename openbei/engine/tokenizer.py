"""Texts, pairs, chats and token ids -> token ids with specials, cut to the model's limit.

Owns what text an input becomes (prompts, templates) and what is asked of the tokenizers library; never touches batches
or tensors. The library's batch calls release the GIL, so several threads may encode at once; nothing is changed in it
after start, so truncation is done on its encodings (truncation.py), and not by its own switch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import tokenizers

from openbei.engine.chat import Rendered, render_whole
from openbei.engine.pairs import PROBES, PairTexts, num_shared
from openbei.engine.request import Chat, Input, Pair
from openbei.engine.tokenizer_file import around, read_tokenizer
from openbei.engine.truncation import MAX_CHARACTERS_PER_TOKEN, Truncation, kept, shortened
from openbei.errors import InvalidInput, TokenizerFailed, TooLong
from openbei.weights.checkpoint import TextSpec

Text = str | tuple[str, str]


class Encoded(NamedTuple):
    """The n tokens of one input, after the cut.

    type_ids: segment of each token, None where all are 0. offsets, special: only if asked for, and never of an id
    list; offsets are [start, end) in code points of the text with its prompt (of a pair, of the token's own side),
    special is True for what the model's template adds.
    """

    ids: list[int]
    type_ids: list[int] | None = None
    offsets: list[tuple[int, int]] | None = None
    special: list[bool] | None = None


class _Asked(NamedTuple):
    """How the inputs of one call are to be encoded."""

    truncation: Truncation
    prompt: str | None
    offsets: bool


class Tokenizer:
    """The tokenizer of a TextSpec; the limit is TextSpec.max_length. Raises ModelError as read_tokenizer does."""

    def __init__(self, text: TextSpec) -> None:
        self._spec, self._library = text, read_tokenizer(text)
        self.max_length, self.max_characters = text.max_length, MAX_CHARACTERS_PER_TOKEN * text.max_length
        self.vocab_size = self._library.get_vocab_size()
        self.marks_subwords = bool(getattr(self._library.model, "continuing_subword_prefix", None))  # "##", or none
        self.unknown = text.special_tokens.get("unk_token")
        self._has_types = any(self._library.encode("a").type_ids)
        bos = text.special_tokens.get("bos_token")
        self._bos = bos if text.chat_template and bos in around(self._library)[0] else None
        self._pairs = None if text.pair_template is None else PairTexts(text.pair_template, text.special_tokens)
        self._pair_ends: dict[str | None, tuple[int, int]] = {}  # by instruction

    def encode(
        self, inputs: Sequence[Input], truncation: Truncation, prompt: str | None = None, with_offsets: bool = False
    ) -> list[Encoded]:
        """Texts, pairs, chats and id lists -> the tokens of each, at most max_length.

        A text gets the prompt in front and the model's special tokens around it, a pair only the special tokens. A
        chat becomes what the model's template makes of it, and gets neither; so does any text that begins with the
        BOS token, if the model has a chat template. An id list is taken as it is, unless a prompt is in force: then
        it is decoded first. Where a template makes one text of a pair, the prompt is the instruction in it, and a
        single text gets none; a cut then spares what the template adds. Raises TooLong (with truncation off),
        TokenizerFailed, InvalidInput.
        """
        asked = _Asked(truncation, prompt, with_offsets)
        texts = {
            index: self._text(index, item, asked)
            for index, item in enumerate(inputs)
            if isinstance(item, str | Pair | Chat) or (prompt and self._pairs is None)
        }
        encodings = dict(zip(texts, self._run(list(texts.values()), with_offsets), strict=True))
        return [self._encoded(index, item, encodings.get(index), asked) for index, item in enumerate(inputs)]

    def encode_whole(self, texts: Sequence[str], add_special_tokens: bool) -> list[Encoded]:
        """Texts -> all their tokens with offsets, however many; the special tokens as encode, or none.

        Raises TooLong for more characters than encode would read, TokenizerFailed, InvalidInput.
        """
        for index, text in enumerate(texts):
            if len(text) > self.max_characters:
                raise TooLong(f"input {index} has {len(text)} characters > maximum of {self.max_characters}")
        encodings = self._run(texts, with_offsets=True, bare=not add_special_tokens)
        return [Encoded(one.ids, offsets=one.offsets, special=_special(one)) for one in encodings]

    def decode(self, ids: Sequence[Sequence[int]], skip_special_tokens: bool) -> list[str]:
        """Id lists -> their texts. Raises TokenizerFailed."""
        try:
            return self._library.decode_batch([list(one) for one in ids], skip_special_tokens=skip_special_tokens)
        except Exception as error:  # the library raises bare Exception
            raise TokenizerFailed(f"tokenizer failed: {error}") from error

    def names(self, ids: Sequence[int]) -> list[str]:
        """Token ids -> the vocabulary's own strings, such as "[CLS]" or "##ing"; "" for an id without one."""
        return [self._library.id_to_token(token) or "" for token in ids]

    def _text(self, index: int, item: Input, asked: _Asked) -> Text:
        if isinstance(item, Pair):
            return self._pair(index, item, asked)
        if isinstance(item, Chat):
            item = self._rendered(index, item)
        if isinstance(item, Rendered):
            return Rendered(shortened(index, item, asked.truncation, self.max_characters))
        text = item if isinstance(item, str) else self._library.decode(list(item))
        text = text if self._pairs else (asked.prompt or "") + text
        return shortened(index, text, asked.truncation, self.max_characters)

    def _pair(self, index: int, pair: Pair, asked: _Asked) -> Text:
        first, second = (shortened(index, side, asked.truncation, self.max_characters) for side in pair)
        max_second_tokens = asked.truncation.max_second_tokens
        if self._pairs is None:
            return first, second
        if not self._pairs.is_rendered(first):
            return self._pairs.text(first, self._head(second, max_second_tokens), asked.prompt)
        if max_second_tokens is not None:
            raise InvalidInput(f"input {index} is a prompt already: its document cannot be cut by itself")
        return Rendered(first + second)

    def _head(self, text: str, max_tokens: int | None) -> str:
        """A text -> what its first tokens stand for, of a pair that a template makes one text of."""
        if max_tokens is None or not text:
            return text
        offsets = self._run([text], with_offsets=True, bare=True)[0].offsets
        return text if len(offsets) <= max_tokens else text[: offsets[max_tokens - 1][1]]

    def _rendered(self, index: int, chat: Chat) -> Rendered:
        if self._spec.chat_template is None:
            raise InvalidInput(f"input {index} is a list of messages, and the model has no chat template: send a text")
        return render_whole(self._spec.chat_template, chat, self._spec.special_tokens)

    def _is_complete(self, text: Text) -> bool:
        """Whether a text has all its special tokens: adding them would make two BOS, or the model wants none."""
        if not isinstance(text, str):
            return False
        return self._spec.bare or isinstance(text, Rendered) or (self._bos is not None and text.startswith(self._bos))

    def _run(self, texts: Sequence[Text], with_offsets: bool, bare: bool = False) -> list[tokenizers.Encoding]:
        """bare: no text gets special tokens; else those that are not complete."""
        complete = [bare or self._is_complete(text) for text in texts]
        run = self._library.encode_batch if with_offsets else self._library.encode_batch_fast
        found = {}
        try:
            for one in set(complete):
                chosen = [text for text, each in zip(texts, complete, strict=True) if each is one]
                found[one] = iter(run(chosen, add_special_tokens=not one))
        except (TypeError, UnicodeError) as error:  # by version; a str that UTF-8 cannot hold
            raise InvalidInput("input is not valid Unicode: it holds a lone surrogate") from error
        except Exception as error:  # the library raises bare Exception
            raise TokenizerFailed(f"tokenizer failed: {error}") from error
        return [next(found[each]) for each in complete]

    def _encoded(self, index: int, item: Input, encoding: tokenizers.Encoding | None, asked: _Asked) -> Encoded:
        """An input, and what the library made of it (None of an id list) -> its tokens after the cut."""
        whole = Encoded(list(item)) if encoding is None else self._whole(item, encoding, asked)  # type: ignore[arg-type]
        truncation, limit = asked.truncation, self.max_length
        if truncation.max_tokens is not None:
            limit = min(limit, truncation.max_tokens)
        if len(whole.ids) <= limit and truncation.max_second_tokens is None:
            return whole
        sides = [0] * len(whole.ids) if encoding is None else self._sides(item, encoding, asked)
        stay = kept(index, sides, truncation, limit)
        return Encoded(*(row and [row[i] for i in stay] for row in whole))  # type: ignore[arg-type]

    def _whole(self, item: Input, encoding: tokenizers.Encoding, asked: _Asked) -> Encoded:
        types = self._pairs is None if isinstance(item, Pair) else self._has_types
        return Encoded(
            encoding.ids,
            encoding.type_ids if types else None,
            encoding.offsets if asked.offsets else None,
            _special(encoding) if asked.offsets else None,
        )

    def _sides(self, item: Input, encoding: tokenizers.Encoding, asked: _Asked) -> list[int | None]:
        """Side of each token, None for what no cut takes away: specials, and what a template puts around a pair."""
        sides: list[int | None] = encoding.sequence_ids
        head, tail = self._ends(asked.prompt) if self._pairs and isinstance(item, Pair) else (0, 0)
        return [None] * head + sides[head : len(sides) - tail] + [None] * tail

    def _ends(self, instruction: str | None) -> tuple[int, int]:
        """Tokens before and after a pair that come from its template: what the ids of unlike pairs share."""
        if instruction not in self._pair_ends:
            assert self._pairs is not None
            texts = [self._pairs.text(probe, probe, instruction) for probe in PROBES]
            ids = [one.ids for one in self._run(texts, with_offsets=False)]
            self._pair_ends[instruction] = num_shared(ids), num_shared([row[::-1] for row in ids])
        return self._pair_ends[instruction]


def _special(encoding: tokenizers.Encoding) -> list[bool]:
    return [side is None for side in encoding.sequence_ids]
