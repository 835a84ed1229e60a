"""Tiny masked language models as SPLADE folders, and their judge: sentence-transformers' SparseEncoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SparseEncoder
from transformers import PreTrainedModel

from tests import families

FAMILIES = ("bert", "roberta", "xlm-roberta", "distilbert", "mpnet", "modernbert")
FAMILIES += ("nomic", "nomic-native", "gte-new", "gte-native")


def network(family: str, **changes: Any) -> PreTrainedModel:
    """The family's ForMaskedLM with the weights of families.network's rule; a bias that lets about half be zero."""
    return families.network(family, "MaskedLM", **changes)


def save(
    folder: Path, family: str, model: PreTrainedModel | None = None, pooling: dict[str, Any] | None = None
) -> Path:
    """Write a whole folder of the older kind, MLMTransformer and SpladePooling -> the folder. pooling: its config."""
    if not (folder / "tokenizer.json").exists():
        families.save(folder, family, model or network(family), pooling=None)
    else:  # of late.network, whose tokens have roles
        (model or network(family)).save_pretrained(folder)
    modules(folder, {"MLMTransformer": "", "SpladePooling": "1_SpladePooling"})
    families.write_json(folder / "1_SpladePooling" / "config.json", pooling or {"pooling_strategy": "max"})
    families.write_json(folder / "config_sentence_transformers.json", {"model_type": "SparseEncoder"})
    return folder


def modules(folder: Path, paths: dict[str, str]) -> None:
    """Write modules.json: kinds of modules with their folders, in order."""
    entries = [
        {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.sparse_encoder.models.{kind}"}
        for idx, (kind, path) in enumerate(paths.items())
    ]
    families.write_json(folder / "modules.json", entries)


def judge(folder: Path, texts: Sequence[str]) -> NDArray[np.float32]:
    """Texts through SparseEncoder, one at a time -> dense vectors (N, V)."""
    encoder = SparseEncoder(str(folder), device="cpu")
    rows = [encoder.encode([text], convert_to_sparse_tensor=False, show_progress_bar=False) for text in texts]
    return np.concatenate([row.numpy() for row in rows])


def definition(
    model: PreTrainedModel, ids: Sequence[Sequence[int]], types: Sequence[Sequence[int]]
) -> NDArray[np.float32]:
    """Each sequence alone through transformers -> the largest log(1 + relu(logit)) of each word (B, V)."""
    logits = families.transformers_logits(model, ids, types)
    rows = np.split(logits, np.cumsum([len(one) for one in ids])[:-1])
    return np.stack([np.log1p(np.maximum(row, 0)).max(0) for row in rows])
