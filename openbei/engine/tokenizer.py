"""Texts, pairs, chats and token ids -> token ids with specials, cut to the model's limit.

Owns the tokenizers library and the rules of truncation and prompts; never touches batches or tensors.
The library's batch calls release the GIL, so several threads may encode at once; nothing is changed in it after
start, so truncation is done here, on its encodings, and not by its own switch.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import tokenizers
from tokenizers import processors
from tokenizers.normalizers import BertNormalizer, Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence

from openbei.engine.chat import Rendered, render_whole
from openbei.engine.request import Chat, Direction, Input, Pair
from openbei.errors import InvalidInput, ModelError, TokenizerFailed, TooLong
from openbei.weights.checkpoint import Edge, TextSpec

MAX_CHARACTERS_PER_TOKEN = 250

Text = str | tuple[str, str]


@dataclass(frozen=True, slots=True)
class Truncation:
    """Whether a text that is too long is cut, and at which end."""

    enabled: bool
    direction: Direction = "right"


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
    """What an Encoded shall hold beside its ids."""

    types: bool
    offsets: bool


class Tokenizer:
    """tokenizer.json with its baked truncation and padding off; the limit is TextSpec.max_length.

    Raises ModelError if the file cannot be read, or lacks a special token that the model's other files put around
    every text.
    """

    def __init__(self, text: TextSpec) -> None:
        try:
            self._library = tokenizers.Tokenizer.from_file(str(text.tokenizer_file))
        except Exception as error:  # the library raises bare Exception
            raise ModelError(f"{text.tokenizer_file.name} cannot be read: {error}") from error
        self._library.no_truncation()
        self._library.no_padding()
        self._library.encode_special_tokens = text.split_special_tokens
        _set_normalizer(self._library, text)
        _add_tokens(self._library, text)
        _set_edges(self._library, text)
        self.max_length = text.max_length
        self.vocab_size = self._library.get_vocab_size()
        self.marks_subwords = bool(getattr(self._library.model, "continuing_subword_prefix", None))  # "##", or none
        self.unknown = text.special_tokens.get("unk_token")
        self._special_tokens, self._chat_template = text.special_tokens, text.chat_template
        self._has_types = any(self._library.encode("a").type_ids)
        bos = text.special_tokens.get("bos_token")
        self._bos = bos if text.chat_template and bos in _around(self._library)[0] else None

    def encode(
        self, inputs: Sequence[Input], truncation: Truncation, prompt: str | None = None, with_offsets: bool = False
    ) -> list[Encoded]:
        """Texts, pairs, chats and id lists -> the tokens of each, at most max_length.

        A text gets the prompt in front and the model's special tokens around it, a pair only the special tokens. A
        chat becomes what the model's template makes of it, and gets neither; so does any text that begins with the
        BOS token, if the model has a chat template. An id list is taken as it is, unless a prompt is in force: then
        it is decoded first. Raises TooLong (with truncation off), TokenizerFailed, InvalidInput.
        """
        texts = {
            index: self._text(index, item, truncation, prompt)
            for index, item in enumerate(inputs)
            if isinstance(item, str | Pair | Chat) or prompt
        }
        encodings: dict[int, tokenizers.Encoding] = {}
        for complete in (False, True):
            chosen = {i: text for i, text in texts.items() if self._is_complete(text) is complete}
            encodings.update(zip(chosen, self._run(list(chosen.values()), complete, with_offsets), strict=True))
        return [
            self._encoded(i, encodings[i], truncation, _Asked(self._has_types or isinstance(item, Pair), with_offsets))
            if i in encodings
            else Encoded(self._cut_ids(i, list(item), truncation))  # type: ignore[arg-type]
            for i, item in enumerate(inputs)
        ]

    def names(self, ids: Sequence[int]) -> list[str]:
        """Token ids -> the vocabulary's own strings, such as "[CLS]" or "##ing"; "" for an id without one."""
        return [self._library.id_to_token(token) or "" for token in ids]

    def _text(self, index: int, item: Input, truncation: Truncation, prompt: str | None) -> Text:
        if isinstance(item, Pair):
            return self._shortened(index, item.first, truncation), self._shortened(index, item.second, truncation)
        if isinstance(item, Chat):
            item = self._rendered(index, item)
        if isinstance(item, Rendered):
            return Rendered(self._shortened(index, item, truncation))
        text = item if isinstance(item, str) else self._library.decode(list(item))
        return self._shortened(index, (prompt or "") + text, truncation)

    def _rendered(self, index: int, chat: Chat) -> Rendered:
        if self._chat_template is None:
            raise InvalidInput(f"input {index} is a list of messages, and the model has no chat template: send a text")
        return render_whole(self._chat_template, chat, self._special_tokens)

    def _shortened(self, index: int, text: str, truncation: Truncation) -> str:
        """Text -> what of it may still matter after the cut, so that megabytes are not tokenised for a few tokens."""
        limit = MAX_CHARACTERS_PER_TOKEN * self.max_length
        if len(text) <= limit:
            return text
        if not truncation.enabled:
            raise TooLong(f"input {index} has {len(text)} characters > maximum of {limit}; set truncate to cut it")
        return text[:limit] if truncation.direction == "right" else text[-limit:]

    def _is_complete(self, text: Text) -> bool:
        """Whether a text holds its special tokens already: adding them would make two BOS."""
        if not isinstance(text, str):
            return False
        return isinstance(text, Rendered) or (self._bos is not None and text.startswith(self._bos))

    def _run(self, texts: list[Text], complete: bool, with_offsets: bool) -> list[tokenizers.Encoding]:
        if not texts:
            return []
        run = self._library.encode_batch if with_offsets else self._library.encode_batch_fast
        try:
            return run(texts, add_special_tokens=not complete)
        except (TypeError, UnicodeError) as error:  # by version; a str that UTF-8 cannot hold
            raise InvalidInput("input is not valid Unicode: it holds a lone surrogate") from error
        except Exception as error:  # the library raises bare Exception
            raise TokenizerFailed(f"tokenizer failed: {error}") from error

    def _encoded(self, index: int, encoding: tokenizers.Encoding, truncation: Truncation, asked: _Asked) -> Encoded:
        rows = (
            encoding.ids,
            encoding.type_ids if asked.types else None,
            encoding.offsets if asked.offsets else None,
            [side is None for side in encoding.sequence_ids] if asked.offsets else None,
        )
        if len(rows[0]) <= self.max_length:
            return Encoded(*rows)
        self._refuse_long(index, len(rows[0]), truncation)
        kept = self._kept(index, encoding.sequence_ids, truncation.direction)
        return Encoded(*(row and [row[i] for i in kept] for row in rows))  # type: ignore[arg-type]

    def _kept(self, index: int, sides: Sequence[int | None], direction: Direction) -> list[int]:
        """Side of each token (0, 1, or None: special) -> positions that stay: every special, and max_length in all."""
        first, second = ([i for i, side in enumerate(sides) if side == wanted] for wanted in (0, 1))
        specials = [i for i, side in enumerate(sides) if side is None]
        room = self.max_length - len(specials)
        if room < 1:
            raise TooLong(
                f"input {index} needs {len(specials)} special tokens; the maximum is {self.max_length} in all"
            )
        num_first, num_second = longest_first(len(first), len(second), room)
        return sorted([*specials, *_end(first, num_first, direction), *_end(second, num_second, direction)])

    def _cut_ids(self, index: int, ids: list[int], truncation: Truncation) -> list[int]:
        if len(ids) <= self.max_length:
            return ids
        self._refuse_long(index, len(ids), truncation)
        return _end(ids, self.max_length, truncation.direction)

    def _refuse_long(self, index: int, length: int, truncation: Truncation) -> None:
        if not truncation.enabled:
            raise TooLong(f"input {index} has {length} tokens > maximum of {self.max_length}; set truncate to cut it")


def longest_first(num_first: int, num_second: int, room: int) -> tuple[int, int]:
    """Tokens of a pair's two sides, too many for the room -> how many of each stay: the longer is cut first.

    Where both are cut and the room is odd, the longer keeps one more; of equals, the second. As the tokenizers
    library (tokenizers/src/utils/truncation.rs).
    """
    shorter = min(num_first, num_second, room // 2)
    return (shorter, room - shorter) if num_first <= num_second else (room - shorter, shorter)


def _end(items: list[int], count: int, direction: Direction) -> list[int]:
    return items[:count] if direction == "right" else items[len(items) - count :]


def _set_normalizer(library: tokenizers.Tokenizer, text: TextSpec) -> None:
    present = library.normalizer
    if isinstance(present, BertNormalizer):
        for name, value in text.bert_normalizer.items():
            setattr(present, name, value)
    if text.lower_case:  # harmless where the file lower-cases too
        library.normalizer = Lowercase() if present is None else NormalizerSequence([Lowercase(), present])


def _add_tokens(library: tokenizers.Tokenizer, text: TextSpec) -> None:
    """Added tokens that tokenizer_config.json names otherwise than tokenizer.json, as transformers adds them."""
    known = {repr(token) for token in library.get_added_tokens_decoder().values()}
    tokens = (tokenizers.AddedToken(**asdict(token)) for _, token in sorted(text.added_tokens.items()))
    if other := [token for token in tokens if repr(token) not in known]:
        library.add_tokens(other)


def _set_edges(library: tokenizers.Tokenizer, text: TextSpec) -> None:
    """Make the library put around every text what TextSpec wants there, where tokenizer.json says otherwise."""
    present = _around(library)
    wanted = _edge(present[0], text.first), _edge(present[1], text.last)
    if wanted == present:
        return
    for token in (*wanted[0], *wanted[1]):
        if library.token_to_id(token) is None:
            raise ModelError(f"{text.tokenizer_file.name} has no token {token!r}, which every text needs around it")
    library.post_processor = _with_byte_level(library.post_processor, _template(library, *wanted))


def _around(library: tokenizers.Tokenizer) -> tuple[list[str], list[str]]:
    """The special tokens before a text and after it."""
    encoding = library.encode("a")
    sides, tokens = encoding.sequence_ids, encoding.tokens
    num_before = sides.index(0) if 0 in sides else 0
    num_after = sides[::-1].index(0) if 0 in sides else 0
    return tokens[:num_before], tokens[len(tokens) - num_after :]


def _edge(present: list[str], edge: Edge | None) -> list[str]:
    """What stands at one end of a text now -> what shall. A wanted token is never put next to another special."""
    if edge is None:
        return present
    if edge.wanted:
        return present or [edge.token]
    return [] if present == [edge.token] else present


def _template(library: tokenizers.Tokenizer, before: list[str], after: list[str]) -> processors.TemplateProcessing:
    """Tokens around a text -> the template; a pair has them around both its parts, as transformers builds it."""
    first, second = (
        [*(f"{token}:{side}" for token in before), f"${name}:{side}", *(f"{token}:{side}" for token in after)]
        for side, name in enumerate("AB")
    )
    ids = [(token, library.token_to_id(token)) for token in {*before, *after}]
    return processors.TemplateProcessing(single=first, pair=[*first, *second], special_tokens=ids)


def _with_byte_level(
    present: processors.PostProcessor | None, template: processors.TemplateProcessing
) -> processors.PostProcessor:
    """The template, after the byte-level step of the present post-processor, which sets offsets."""
    steps = [*present] if isinstance(present, processors.Sequence) else [present]  # type: ignore[misc]
    kept = [step for step in steps if isinstance(step, processors.ByteLevel)]
    return processors.Sequence([*kept, template]) if kept else template
