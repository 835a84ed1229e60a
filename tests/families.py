"""A tiny random model of every family, as a complete sentence-transformers folder, and its judge: transformers.

The sizes make mistakes show: every width differs from every other, there are three layers or more, norms are far from
one, type 1 occurs, and the vocabulary holds rows that the tokenizer never uses. Weights are N(0, 0.2), where even a
tanh gelu or another eps moves a state by more than 1e-4. FAMILIES: those that sentence-transformers loads by itself
and quickly; ALL: these, and the rows of tests/encoders.py and tests/decoders.py.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tests.decoders import DECODERS
from tests.encoders import ENCODERS
from tests.tiny import SPARE_ROWS, Tiny, bert_pieces, byte_level_bpe, mpnet_pieces, unigram, word_piece

__all__ = [
    "ALL",
    "FAMILIES",
    "byte_level_bpe",
    "network",
    "save",
    "transformers_logits",
    "transformers_states",
    "unigram",
    "word_piece",
]

transformers.logging.disable_progress_bar()

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

FAMILIES = {
    "bert": Tiny(
        transformers.BertConfig,
        transformers.BertModel,
        {**_SIZES, "max_position_embeddings": 64, "layer_norm_eps": 1e-12},
        bert_pieces,
        "[PAD]",
    ),
    "roberta": Tiny(transformers.RobertaConfig, transformers.RobertaModel, _PAD_ONE, byte_level_bpe, "<pad>"),
    "xlm-roberta": Tiny(transformers.XLMRobertaConfig, transformers.XLMRobertaModel, _PAD_ONE, unigram, "<pad>"),
    "distilbert": Tiny(transformers.DistilBertConfig, transformers.DistilBertModel, _DISTILBERT, bert_pieces, "[PAD]"),
    "mpnet": Tiny(transformers.MPNetConfig, transformers.MPNetModel, _MPNET, mpnet_pieces, "<pad>"),
}

ALL: dict[str, Tiny] = FAMILIES | ENCODERS | DECODERS
NORMS = ("norm.weight", "layer_norm.weight", "layer_norm_q.weight", "layer_norm_k.weight", "_ln.weight")
NORMS += ("layer_norm_1.weight", "layer_norm_2.weight")


def network(family: str, kind: str = "", **changes: Any) -> PreTrainedModel:
    """A transformers model with weights N(0, 0.2) and norms 1 + N(0, 0.2), always the same. changes: config keys.

    kind: "Sequence", "Token" or "MaskedLM" for the family's ForSequenceClassification and so on.
    """
    tiny = ALL[family]
    rows = tiny.tokenizer().get_vocab_size() + SPARE_ROWS
    made = tiny.model
    if kind:
        task = kind if kind == "MaskedLM" else f"{kind}Classification"
        made = getattr(transformers, f"{made.__name__.removesuffix('Model')}For{task}")
    model: PreTrainedModel = made(tiny.config(**{"vocab_size": rows, **tiny.keys, **changes})).eval()
    generator = torch.Generator().manual_seed(20)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
            if name.lower().endswith(NORMS) and not tiny.plain_norms:
                parameter.add_(1.0)
    return model


def save(folder: Path, family: str, model: PreTrainedModel | None = None, pooling: str | None = "mean_tokens") -> Path:
    """Write a whole sentence-transformers folder (Transformer, Pooling, Normalize) -> the folder.

    pooling None: a plain transformers folder, as classifiers have it.
    """
    model = model or network(family)
    model.save_pretrained(folder)
    tiny = ALL[family]
    if tiny.rewrite is not None:
        tiny.rewrite(folder, model)
    takes_types = getattr(model.config, "type_vocab_size", 0) > 1
    PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer(),
        pad_token=tiny.pad,
        model_max_length=512,
        model_input_names=["input_ids", *["token_type_ids"] * takes_types, "attention_mask"],
    ).save_pretrained(folder)
    if pooling is None:
        return folder
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
    return np.concatenate([each.last_hidden_state[0].numpy() for each in _outputs(model, ids, types)])


def transformers_logits(
    model: PreTrainedModel, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]]
) -> NDArray[np.float32]:
    """Each sequence alone through transformers -> logits (B, L), or (T, L) of a token classifier."""
    return np.concatenate([each.logits.reshape(-1, each.logits.shape[-1]) for each in _outputs(model, ids, types)])


def _outputs(model: PreTrainedModel, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]]) -> list[Any]:
    takes_types = getattr(model.config, "type_vocab_size", 0) > 1
    outputs = []
    for sequence, its_types in zip(ids, types, strict=True):
        extra = {"token_type_ids": torch.tensor([its_types])} if takes_types else {}
        judge = copy.deepcopy(model)  # dynamic RoPE remembers the longest sequence it has met
        with torch.inference_mode():
            outputs.append(judge(input_ids=torch.tensor([sequence]), **extra))
    return outputs
