"""Tiny models of late interaction as the three kinds of folder; MultiVectorEncoder of sentence-transformers judges."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from sentence_transformers import MultiVectorEncoder
from transformers import PreTrainedTokenizerFast

from tests import families

WIDTH = 12
NAMED = {
    "bert": {"unk_token": "[UNK]", "mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
    "roberta": {"unk_token": "<unk>", "mask_token": "<mask>", "cls_token": "<s>", "sep_token": "</s>"},
}
NAMED["modernbert"], NAMED["xlm-roberta"] = NAMED["bert"], NAMED["roberta"]


def network(folder: Path, family: str, words: Sequence[str] = (), added: Sequence[str] = ()) -> Path:
    """A plain transformers folder -> the folder. words: more of the vocabulary; added: tokens as PyLate adds them."""
    families.save(folder, family, pooling=None)
    file = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = file["model"]["vocab"]
    for word in words:
        vocabulary[word] = len(vocabulary)
    families.write_json(folder / "tokenizer.json", file)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        pad_token=families.ALL[family].pad,
        model_max_length=48,
        model_input_names=json.loads((folder / "tokenizer_config.json").read_text())["model_input_names"],
        **NAMED[family],
    )
    tokenizer.add_tokens(list(added))
    tokenizer.save_pretrained(folder)
    return folder


def pylate(folder: Path, family: str, **said: Any) -> Path:
    """As PyLate writes it (pylate/models/colbert.py, save). said: its keys of config_sentence_transformers.json."""
    network(folder, family, added=("[Q] ", "[D] "))
    kinds = ("sentence_transformers.models.Transformer", "pylate.models.Dense.Dense")
    rows = [{"idx": n, "name": str(n), "path": ["", "1_Dense"][n], "type": kind} for n, kind in enumerate(kinds)]
    families.write_json(folder / "modules.json", rows)
    families.write_json(folder / "sentence_bert_config.json", {"max_seq_length": 31, "do_lower_case": False})
    families.write_json(
        folder / "1_Dense" / "config.json",
        {
            "in_features": 48,
            "out_features": WIDTH,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    save_file({"linear.weight": projection()}, folder / "1_Dense" / "model.safetensors")
    keys = {"model_type": "ColBERT", "query_prefix": "[Q] ", "document_prefix": "[D] ", **said}
    families.write_json(folder / "config_sentence_transformers.json", keys)
    return folder


def stanford(folder: Path, **metadata: Any) -> Path:
    """As colbert-ir/colbertv2.0 lies on the hub: BERT with a projection beside it. metadata: of artifact.metadata."""
    network(folder, "bert", words=("[unused0]", "[unused1]"))
    families.change_json(folder / "config.json", architectures=["HF_ColBERT"])
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file({**tensors, "linear.weight": projection()}, folder / "model.safetensors", {"format": "pt"})
    families.write_json(folder / "artifact.metadata", metadata)
    return folder


def projection() -> torch.Tensor:
    """The last matrix (WIDTH, 48)."""
    return torch.randn(WIDTH, 48, generator=torch.Generator().manual_seed(9))


def judge(folder: Path, texts: Sequence[str], kind: str) -> list[NDArray[np.float32]]:
    """Texts through MultiVectorEncoder, one at a time -> the vectors of each (n, WIDTH)."""
    model = MultiVectorEncoder(str(folder), device="cpu")
    encode = model.encode_query if kind == "query" else model.encode_document
    return [np.asarray(encode([text], show_progress_bar=False)[0]) for text in texts]
