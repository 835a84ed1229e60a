"""Tiny tokenizers in memory, each built as one family's tokenizer.json is: same normalizer, model and ends."""

from collections.abc import Callable, Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ("the", "fox", "red", "on")
LLAMA_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
)


def bert() -> Tokenizer:
    specials = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    pieces = [*specials, *LETTERS, *(f"##{letter}" for letter in LETTERS), *WORDS]
    tokenizer = Tokenizer(models.WordPiece(_numbered(pieces), unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return _ended(tokenizer, specials, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")


def xlm_roberta() -> Tokenizer:
    specials = ("<s>", "<pad>", "</s>", "<unk>")
    pieces = [(special, 0.0) for special in specials] + [("▁", -2.0)] + [(letter, -6.0) for letter in LETTERS]
    tokenizer = Tokenizer(models.Unigram([*pieces, *((f"▁{word}", -3.0) for word in WORDS)], unk_id=3))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    return _ended(tokenizer, specials, "<s> $A </s>", "<s> $A </s> </s> $B </s>")


def roberta() -> Tokenizer:
    tokenizer = _byte_level(("<s>", "<pad>", "</s>", "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return tokenizer


def mistral() -> Tokenizer:
    """Llama 2's and Mistral's: SentencePiece pieces, bytes for what is unknown, only the BOS in the file."""
    tokenizer = _sentence_piece(("<unk>", "<s>", "</s>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return _ended(tokenizer, ("<unk>", "<s>", "</s>"), "<s> $A", "<s> $A <s>:1 $B:1")


def gemma() -> Tokenizer:
    tokenizer = _sentence_piece(("<pad>", "<eos>", "<bos>", "<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return _ended(tokenizer, ("<pad>", "<eos>", "<bos>", "<unk>"), "<bos> $A", "<bos> $A <bos>:1 $B:1")


def qwen2() -> Tokenizer:
    """No ends at all: its post-processor sets offsets only."""
    tokenizer = _byte_level(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _llama_words()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    return tokenizer


def llama3() -> Tokenizer:
    specials = (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
    )
    tokenizer = _byte_level(specials)
    tokenizer.pre_tokenizer = _llama_words()
    template = _template(tokenizer, "<|begin_of_text|> $A", "<|begin_of_text|> $A <|begin_of_text|>:1 $B:1")
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(add_prefix_space=False, trim_offsets=True), template]
    )
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bert": bert,
    "xlm-roberta": xlm_roberta,
    "roberta": roberta,
    "mistral": mistral,
    "gemma": gemma,
    "qwen2": qwen2,
    "llama3": llama3,
}


def _numbered(pieces: Iterable[str]) -> dict[str, int]:
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}


def _byte_level(specials: tuple[str, ...]) -> Tokenizer:
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("o", "n"), ("Ġ", "f")]
    pieces = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    tokenizer = Tokenizer(models.BPE(_numbered(pieces), merges))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(special, special=True, normalized=False) for special in specials])
    return tokenizer


def _sentence_piece(specials: tuple[str, ...]) -> Tokenizer:
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("o", "n"), ("▁", "f"), ("▁", "on")]
    octets = [f"<0x{octet:02X}>" for octet in range(256)]
    pieces = [*specials, *octets, "▁", *LETTERS, *("".join(pair) for pair in merges)]
    model = models.BPE(_numbered(pieces), merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _llama_words() -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.Split(Regex(LLAMA_REGEX), "isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _ended(tokenizer: Tokenizer, specials: tuple[str, ...], single: str, pair: str) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(special, special=True, normalized=False) for special in specials])
    tokenizer.post_processor = _template(tokenizer, single, pair)
    return tokenizer


def _template(tokenizer: Tokenizer, single: str, pair: str) -> processors.TemplateProcessing:
    names = {part.split(":")[0] for part in pair.split() if not part.startswith("$")}
    ids = [(name, tokenizer.token_to_id(name)) for name in names]
    return processors.TemplateProcessing(single=single, pair=pair, special_tokens=ids)
