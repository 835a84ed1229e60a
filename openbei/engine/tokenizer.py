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
from openbei.engine.pairs import PROBES, PairTexts, joined, num_shared
from openbei.engine.request import Chat, Direction, Input, Pair
from openbei.errors import InvalidInput, ModelError, TokenizerFailed, TooLong
from openbei.weights.checkpoint import Edge, TextSpec

MAX_CHARACTERS_PER_TOKEN = 250

Text = str | tuple[str, str]


@dataclass(frozen=True, slots=True)
class Truncation:
    """Whether a text that is too long is cut, and at which end.

    max_tokens: a limit below the model's own. max_second_tokens: a pair's second text is cut to so many at its end,
    whether or not the pair is too long.
    """

    enabled: bool
    direction: Direction = "right"
    max_tokens: int | None = None
    max_second_tokens: int | None = None


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
    """What an Encoded shall hold beside its ids. ends: tokens at both its ends that no cut takes away."""

    types: bool
    offsets: bool
    ends: tuple[int, int] = (0, 0)


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
        _set_markers(self._library, text.markers)
        _set_edges(self._library, text)
        self.max_length = text.max_length
        self._max_characters = MAX_CHARACTERS_PER_TOKEN * text.max_length
        self.vocab_size = self._library.get_vocab_size()
        self.marks_subwords = bool(getattr(self._library.model, "continuing_subword_prefix", None))  # "##", or none
        self.unknown = text.special_tokens.get("unk_token")
        self._special_tokens, self._chat_template = text.special_tokens, text.chat_template
        self._has_types = any(self._library.encode("a").type_ids)
        bos = text.special_tokens.get("bos_token")
        self._bare = text.bare
        self._bos = bos if text.chat_template and bos in _around(self._library)[0] else None
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
        texts = {
            index: self._text(index, item, truncation, prompt)
            for index, item in enumerate(inputs)
            if isinstance(item, str | Pair | Chat) or (prompt and self._pairs is None)
        }
        encodings: dict[int, tokenizers.Encoding] = {}
        for complete in (False, True):
            chosen = {i: text for i, text in texts.items() if self._is_complete(text) is complete}
            encodings.update(zip(chosen, self._run(list(chosen.values()), complete, with_offsets), strict=True))
        return [
            self._encoded(i, encodings[i], truncation, self._asked(item, prompt, with_offsets))
            if i in encodings
            else Encoded(self._cut_ids(i, list(item), truncation))  # type: ignore[arg-type]
            for i, item in enumerate(inputs)
        ]

    def encode_whole(self, texts: Sequence[str], add_special_tokens: bool) -> list[Encoded]:
        """Texts -> all their tokens with offsets, however many; the special tokens as encode, or none.

        Raises TooLong for more characters than encode would read, TokenizerFailed, InvalidInput.
        """
        for index, text in enumerate(texts):
            if len(text) > self._max_characters:
                raise TooLong(f"input {index} has {len(text)} characters > maximum of {self._max_characters}")
        complete = [not add_special_tokens or self._is_complete(text) for text in texts]
        encodings = [self._run([text], whole, True)[0] for text, whole in zip(texts, complete, strict=True)]
        return [
            Encoded(one.ids, offsets=one.offsets, special=[side is None for side in one.sequence_ids])
            for one in encodings
        ]

    def decode(self, ids: Sequence[Sequence[int]], skip_special_tokens: bool) -> list[str]:
        """Id lists -> their texts. Raises TokenizerFailed."""
        try:
            return self._library.decode_batch([list(one) for one in ids], skip_special_tokens=skip_special_tokens)
        except Exception as error:  # the library raises bare Exception
            raise TokenizerFailed(f"tokenizer failed: {error}") from error

    def names(self, ids: Sequence[int]) -> list[str]:
        """Token ids -> the vocabulary's own strings, such as "[CLS]" or "##ing"; "" for an id without one."""
        return [self._library.id_to_token(token) or "" for token in ids]

    def _text(self, index: int, item: Input, truncation: Truncation, prompt: str | None) -> Text:
        if isinstance(item, Pair):
            first, second = (self._shortened(index, side, truncation) for side in item)
            if self._pairs is None:
                return first, second
            if self._pairs.is_rendered(first):
                if truncation.max_second_tokens is not None:
                    raise InvalidInput(f"input {index} is a prompt already: its document cannot be cut by itself")
                return joined(first, second)
            return self._pairs.text(first, self._head(second, truncation.max_second_tokens), prompt)
        if isinstance(item, Chat):
            item = self._rendered(index, item)
        if isinstance(item, Rendered):
            return Rendered(self._shortened(index, item, truncation))
        text = item if isinstance(item, str) else self._library.decode(list(item))
        return self._shortened(index, text if self._pairs else (prompt or "") + text, truncation)

    def _head(self, text: str, max_tokens: int | None) -> str:
        """A text -> what its first tokens stand for, of a pair that a template makes one text of."""
        if max_tokens is None or not text:
            return text
        offsets = self._run([text], complete=True, with_offsets=True)[0].offsets
        return text if len(offsets) <= max_tokens else text[: offsets[max_tokens - 1][1]]

    def _rendered(self, index: int, chat: Chat) -> Rendered:
        if self._chat_template is None:
            raise InvalidInput(f"input {index} is a list of messages, and the model has no chat template: send a text")
        return render_whole(self._chat_template, chat, self._special_tokens)

    def _shortened(self, index: int, text: str, truncation: Truncation) -> str:
        """Text -> what of it may still matter after the cut, so that megabytes are not tokenised for a few tokens."""
        limit = self._max_characters
        if len(text) <= limit:
            return text
        if not truncation.enabled:
            raise TooLong(f"input {index} has {len(text)} characters > maximum of {limit}; set truncate to cut it")
        return text[:limit] if truncation.direction == "right" else text[-limit:]

    def _is_complete(self, text: Text) -> bool:
        """Whether a text has all its special tokens: adding them would make two BOS, or the model wants none."""
        if not isinstance(text, str):
            return False
        return self._bare or isinstance(text, Rendered) or (self._bos is not None and text.startswith(self._bos))

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

    def _asked(self, item: Input, prompt: str | None, with_offsets: bool) -> _Asked:
        if not isinstance(item, Pair):
            return _Asked(self._has_types, with_offsets)
        return _Asked(True, with_offsets) if self._pairs is None else _Asked(False, with_offsets, self._ends(prompt))

    def _ends(self, instruction: str | None) -> tuple[int, int]:
        """Tokens before and after a pair that come from its template: what the ids of unlike pairs share."""
        if instruction not in self._pair_ends:
            assert self._pairs is not None
            texts: list[Text] = [self._pairs.text(probe, probe, instruction) for probe in PROBES]
            ids = [one.ids for one in self._run(texts, isinstance(texts[0], Rendered), with_offsets=False)]
            self._pair_ends[instruction] = num_shared(ids), num_shared([row[::-1] for row in ids])
        return self._pair_ends[instruction]

    def _encoded(self, index: int, encoding: tokenizers.Encoding, truncation: Truncation, asked: _Asked) -> Encoded:
        rows = (
            encoding.ids,
            encoding.type_ids if asked.types else None,
            encoding.offsets if asked.offsets else None,
            [side is None for side in encoding.sequence_ids] if asked.offsets else None,
        )
        if len(rows[0]) <= self._limit(truncation) and truncation.max_second_tokens is None:
            return Encoded(*rows)
        head, tail = asked.ends
        sides = [None] * head + encoding.sequence_ids[head : len(rows[0]) - tail] + [None] * tail
        kept = self._kept(index, sides, truncation)
        return Encoded(*(row and [row[i] for i in kept] for row in rows))  # type: ignore[arg-type]

    def _limit(self, truncation: Truncation) -> int:
        return self.max_length if truncation.max_tokens is None else min(self.max_length, truncation.max_tokens)

    def _kept(self, index: int, sides: Sequence[int | None], truncation: Truncation) -> list[int]:
        """Side of each token (0, 1, or None: special) -> positions that stay: every special, and the limit in all."""
        first, second = ([i for i, side in enumerate(sides) if side == wanted] for wanted in (0, 1))
        second = second[: truncation.max_second_tokens]
        specials = [i for i, side in enumerate(sides) if side is None]
        limit, length = self._limit(truncation), len(first) + len(second) + len(specials)
        if length > limit:
            self._refuse_long(index, length, truncation)
            room = limit - len(specials)
            if room < 1:
                raise TooLong(f"input {index} needs {len(specials)} special tokens; the maximum is {limit} in all")
            num_first, num_second = longest_first(len(first), len(second), room)
            first, second = _end(first, num_first, truncation.direction), _end(second, num_second, truncation.direction)
        return sorted([*specials, *first, *second])

    def _cut_ids(self, index: int, ids: list[int], truncation: Truncation) -> list[int]:
        limit = self._limit(truncation)
        if len(ids) <= limit:
            return ids
        self._refuse_long(index, len(ids), truncation)
        return _end(ids, limit, truncation.direction)

    def _refuse_long(self, index: int, length: int, truncation: Truncation) -> None:
        if not truncation.enabled:
            limit = self._limit(truncation)
            raise TooLong(f"input {index} has {length} tokens > maximum of {limit}; set truncate to cut it")


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


def _set_markers(library: tokenizers.Tokenizer, markers: Sequence[str]) -> None:
    """Make one token of each marker that the vocabulary has but a text would not become, as sentence-transformers."""
    for marker in markers:
        known = [one for one in (marker, *marker.split(maxsplit=1)[:1]) if library.token_to_id(one) is not None]
        if known and library.encode(known[0], add_special_tokens=False).tokens != known[:1]:
            library.add_special_tokens([tokenizers.AddedToken(known[0], normalized=False, special=True)])


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
