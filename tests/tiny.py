"""What a tiny model is made of: the record Tiny, and the three kinds of tokenizer, built in memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

WORDS = ("the", "river", "bank", "bees", "make", "honey", "two", "plus", "is", "four", "deep", "learning")
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,?!"
SPARE_ROWS = 3  # vocabulary rows without a token, as nomic's and gte's checkpoints have
ROBERTA_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
BERT_SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def word_piece(specials: Sequence[str], unknown: str, first: str, last: str) -> Tokenizer:
    """BERT's kind: lower-casing, greedy pieces, ## inside words."""
    pieces = [*specials, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _with_specials(tokenizer, specials, first, last)


def byte_level_bpe() -> Tokenizer:
    """RoBERTa's kind: bytes as letters, merged in order."""
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("Ġ", "b")]
    pieces = [*ROBERTA_SPECIALS[:4], *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "<mask>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _with_specials(tokenizer, ROBERTA_SPECIALS, "<s>", "</s>")


def unigram() -> Tokenizer:
    """XLM-RoBERTa's kind: SentencePiece pieces with scores, ▁ for a space."""
    pieces = [(special, 0.0) for special in ROBERTA_SPECIALS[:4]]
    pieces += [("▁", -2.0)] + [(letter, -6.0) for letter in LETTERS]
    pieces += [(f"▁{word}", -3.0 - index / 10) for index, word in enumerate(WORDS)] + [("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return _with_specials(tokenizer, ROBERTA_SPECIALS, "<s>", "</s>")


def _with_specials(tokenizer: Tokenizer, specials: Sequence[str], first: str, last: str) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(special, special=True, normalized=False) for special in specials])
    double = f"{last} " if first == "<s>" else ""
    second = 0 if first == "<s>" else 1
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first}:0 $A:0 {last}:0 {double and last + ':0 '}$B:{second} {last}:{second}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last)],
    )
    return tokenizer


def bert_pieces() -> Tokenizer:
    return word_piece(BERT_SPECIALS, "[UNK]", "[CLS]", "[SEP]")


def mpnet_pieces() -> Tokenizer:
    return word_piece((*ROBERTA_SPECIALS, "[UNK]"), "[UNK]", "<s>", "</s>")


@dataclass(frozen=True)
class Tiny:
    """How to make one family: its transformers config and model classes, the config's own keys, its tokenizer.

    rewrite: turns the folder that transformers wrote into the one that the model's authors published.
    plain_norms: the norms' weights lie around 0 and not 1 (Gemma).
    """

    config: Callable[..., Any]
    model: Callable[..., Any]
    keys: dict[str, Any]
    tokenizer: Callable[[], Tokenizer]
    pad: str
    rewrite: Callable[[Path, Any], None] | None = None
    plain_norms: bool = False
