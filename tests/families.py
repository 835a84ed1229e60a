"""A tiny random model of every family, as a complete sentence-transformers folder, and transformers as its judge.

The sizes make mistakes show: every width differs from every other, there are three layers, norms are far from one,
type 1 occurs, and the vocabulary holds rows that the tokenizer never uses. Weights are N(0, 0.2), where even a tanh
gelu or another eps moves a state by more than 1e-4.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
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
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

transformers.logging.disable_progress_bar()

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


@dataclass(frozen=True)
class Tiny:
    """How to make one family: its transformers config and model classes, the config's own keys, its tokenizer."""

    config: type[PretrainedConfig]
    model: type[PreTrainedModel]
    keys: dict[str, Any]
    tokenizer: Callable[[], Tokenizer]
    pad: str


_SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "type_vocab_size": 2,
}
_PAD_ONE = {**_SIZES, "max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}
_MPNET = {**_PAD_ONE, "max_position_embeddings": 162, "layer_norm_eps": 1e-5}  # past 128, the last relative bucket
_DISTILBERT = {"dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 80, "max_position_embeddings": 64}


def _bert_pieces() -> Tokenizer:
    return word_piece(BERT_SPECIALS, "[UNK]", "[CLS]", "[SEP]")


def _mpnet_pieces() -> Tokenizer:
    return word_piece((*ROBERTA_SPECIALS, "[UNK]"), "[UNK]", "<s>", "</s>")


FAMILIES = {
    "bert": Tiny(
        transformers.BertConfig,
        transformers.BertModel,
        {**_SIZES, "max_position_embeddings": 64, "layer_norm_eps": 1e-12},
        _bert_pieces,
        "[PAD]",
    ),
    "roberta": Tiny(transformers.RobertaConfig, transformers.RobertaModel, _PAD_ONE, byte_level_bpe, "<pad>"),
    "xlm-roberta": Tiny(transformers.XLMRobertaConfig, transformers.XLMRobertaModel, _PAD_ONE, unigram, "<pad>"),
    "distilbert": Tiny(transformers.DistilBertConfig, transformers.DistilBertModel, _DISTILBERT, _bert_pieces, "[PAD]"),
    "mpnet": Tiny(transformers.MPNetConfig, transformers.MPNetModel, _MPNET, _mpnet_pieces, "<pad>"),
}


def network(family: str, **changes: Any) -> PreTrainedModel:
    """A transformers model with weights N(0, 0.2) and norms 1 + N(0, 0.2), always the same. changes: config keys."""
    tiny = FAMILIES[family]
    rows = tiny.tokenizer().get_vocab_size() + SPARE_ROWS
    model: PreTrainedModel = tiny.model(tiny.config(**{"vocab_size": rows, **tiny.keys, **changes})).eval()
    generator = torch.Generator().manual_seed(20)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
            if name.lower().endswith(("norm.weight", "layer_norm.weight")):
                parameter.add_(1.0)
    return model


def save(folder: Path, family: str, model: PreTrainedModel | None = None, pooling: str = "mean_tokens") -> Path:
    """Write a whole sentence-transformers folder (Transformer, Pooling, Normalize) -> the folder."""
    model = model or network(family)
    model.save_pretrained(folder)
    tiny = FAMILIES[family]
    PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer(), pad_token=tiny.pad, model_max_length=512
    ).save_pretrained(folder)
    write_json(
        folder / "modules.json",
        [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ],
    )
    pooling_config = {"word_embedding_dimension": model.config.hidden_size, f"pooling_mode_{pooling}": True}
    write_json(folder / "1_Pooling" / "config.json", pooling_config)
    return folder


def write_json(path: Path, value: Any) -> None:
    """A value -> a JSON file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def change_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON object in a file; a value of ... takes the key away."""
    value = json.loads(path.read_text()) | changes
    write_json(path, {key: item for key, item in value.items() if item is not ...})


def transformers_states(
    model: PreTrainedModel, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]]
) -> NDArray[np.float32]:
    """Each sequence alone through transformers -> its last hidden states, end to end (T, C)."""
    takes_types = getattr(model.config, "type_vocab_size", 0) > 1
    rows = []
    for sequence, its_types in zip(ids, types, strict=True):
        extra = {"token_type_ids": torch.tensor([its_types])} if takes_types else {}
        with torch.inference_mode():
            rows.append(model(input_ids=torch.tensor([sequence]), **extra).last_hidden_state[0].numpy())
    return np.concatenate(rows)
