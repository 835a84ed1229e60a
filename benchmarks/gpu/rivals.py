"""sentence-transformers on the same device and folders, in the same run: bfloat16, the best of three batch sizes."""

import time
from collections.abc import Iterator
from typing import Any

import corpus
import torch

from benchmarks.gpu import folders
from openbei.engine.machine import Machine

Row = dict[str, Any]
MODELS = ("BERT-large", "Mistral-7B")
LENGTHS = (32, 128, 500)
BATCH_SIZES = (32, 128, 512)
NUM_TOKENS = {"BERT-large": 400_000, "Mistral-7B": 60_000}


def sentence_transformers(machine: Machine, tiny: bool) -> Iterator[Row]:
    """A row a model and length: tokens a second, strings in, vectors out; and one text alone."""
    from sentence_transformers import SentenceTransformer

    for model in MODELS[:1] if tiny else MODELS:
        folder = folders.folder(model, machine.location, tiny)
        peer = SentenceTransformer(str(folder), device=machine.location, model_kwargs={"dtype": torch.bfloat16})
        for length in LENGTHS[:1] if tiny else LENGTHS:
            count = 16 if tiny else NUM_TOKENS[model] // length
            texts = corpus.make(folder / "tokenizer.json", (length, length), count).texts
            rates = {size: _rate(peer, texts, size, length) for size in BATCH_SIZES}
            best = max(rates, key=rates.__getitem__)
            alone_ms = min(_seconds(peer, texts[:1], 1) for _ in range(20)) * 1e3
            row: Row = {"model": model, "what": f"{length} tokens", "tokens/s": rates[best], "batch": best}
            yield row | {"one text ms": alone_ms}
        del peer
        machine.free_bytes()


def _rate(peer: Any, texts: list[str], size: int, length: int) -> float:
    try:
        _seconds(peer, texts[:size], size)
        return len(texts) * length / _seconds(peer, texts, size)
    except torch.OutOfMemoryError:
        return 0.0


def _seconds(peer: Any, texts: list[str], size: int) -> float:
    begin_s = time.perf_counter()
    peer.encode(texts, batch_size=size, normalize_embeddings=True, show_progress_bar=False)
    return time.perf_counter() - begin_s
