"""What stays of an input that is too long: by characters before it is tokenised, then by tokens.

Owns which end is cut, which side of a pair first, and what no cut takes away; never touches ids or the tokenizer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from openbei.engine.request import Direction
from openbei.errors import TooLong

MAX_CHARACTERS_PER_TOKEN = 250


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


def shortened(index: int, text: str, truncation: Truncation, max_characters: int) -> str:
    """Text -> what of it may still matter after the cut, so that megabytes are not tokenised for a few tokens.

    index: of the input, for the error. Raises TooLong with truncation off.
    """
    if len(text) <= max_characters:
        return text
    if not truncation.enabled:
        raise TooLong(f"input {index} has {len(text)} characters > maximum of {max_characters}; set truncate to cut it")
    return text[:max_characters] if truncation.direction == "right" else text[-max_characters:]


def kept(index: int, sides: Sequence[int | None], truncation: Truncation, limit: int) -> list[int]:
    """Side of each token (0, 1, or None: special) -> positions that stay: every special, and at most limit in all.

    index: of the input, for the error. Raises TooLong with truncation off, and where the specials fill the limit.
    """
    first, second = ([i for i, side in enumerate(sides) if side == wanted] for wanted in (0, 1))
    second = second[: truncation.max_second_tokens]
    specials = [i for i, side in enumerate(sides) if side is None]
    length, room = len(first) + len(second) + len(specials), limit - len(specials)
    if length > limit:
        if not truncation.enabled:
            raise TooLong(f"input {index} has {length} tokens > maximum of {limit}; set truncate to cut it")
        if room < 1:
            raise TooLong(f"input {index} needs {len(specials)} special tokens; the maximum is {limit} in all")
        num_first, num_second = _longest_first(len(first), len(second), room)
        first, second = _end(first, num_first, truncation.direction), _end(second, num_second, truncation.direction)
    return sorted([*specials, *first, *second])


def _longest_first(num_first: int, num_second: int, room: int) -> tuple[int, int]:
    """Tokens of a pair's two sides, too many for the room -> how many of each stay: the longer is cut first.

    Where both are cut and the room is odd, the longer keeps one more; of equals, the second. As the tokenizers
    library (tokenizers/src/utils/truncation.rs).
    """
    shorter = min(num_first, num_second, room // 2)
    return (shorter, room - shorter) if num_first <= num_second else (room - shorter, shorter)


def _end(positions: list[int], count: int, direction: Direction) -> list[int]:
    return positions[:count] if direction == "right" else positions[len(positions) - count :]
