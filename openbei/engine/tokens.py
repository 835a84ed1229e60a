"""Encoded text -> Tokens: what each stands for in the text, and whether it goes on with a word.

Owns the reading of offsets and of sub-word marks; never touches labels or batches.
"""

from collections.abc import Sequence

from openbei.engine.request import Token, Tokenized
from openbei.engine.tokenizer import Encoded, Tokenizer
from openbei.engine.truncation import Truncation


def tokenized(tokenizer: Tokenizer, texts: Sequence[str], add_special_tokens: bool) -> list[Tokenized]:
    """Texts -> each with all its tokens. Raises TooLong, TokenizerFailed."""
    encoded = tokenizer.encode_whole(texts, add_special_tokens)
    whole = Truncation(enabled=False)
    return [Tokenized(text, tokens_of(text, one, tokenizer, whole)) for text, one in zip(texts, encoded, strict=True)]


def tokens_of(text: str, encoded: Encoded, tokenizer: Tokenizer, truncation: Truncation) -> list[Token]:
    """A text and its tokens, encoded with offsets -> Tokens.

    What continues a word is told as transformers' pipeline for token classification tells it: where the vocabulary
    marks sub-words ("##ing"), by a name longer than its slice; elsewhere by no space before or at its start.
    """
    lost = max(0, len(text) - tokenizer.max_characters)  # cut before it was tokenised
    shift = lost if truncation.direction == "left" else 0
    assert encoded.offsets is not None
    assert encoded.special is not None
    rows = zip(encoded.ids, tokenizer.names(encoded.ids), encoded.offsets, encoded.special, strict=True)
    return [
        Token(number, name, 0, 0, special=True, continues=False)
        if special
        else token_of(text, number, name, (start + shift, end + shift), tokenizer)
        for number, name, (start, end), special in rows
    ]


def token_of(text: str, number: int, name: str, offsets: tuple[int, int], tokenizer: Tokenizer) -> Token:
    """One token that is not special; name: the vocabulary's."""
    start, end = offsets
    if name == tokenizer.unknown:
        continues = False
    elif tokenizer.marks_subwords:
        continues = len(name) != end - start
    else:
        continues = start > 0 and " " not in text[start - 1 : start + 1]
    return Token(number, text[start:end], start, end, special=False, continues=continues)
