"""The ways of embedding that are compared, each as `make(folder) -> Way`.

Vectors are float32 (B, C), rows of norm 1. All take raw strings, so all pay for their tokenizer. Imports are inside:
a peer lives in a process of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Way:
    """embed: texts -> an answer, timed. decode: the answer -> vectors, not timed."""

    embed: Callable[[list[str]], Any]
    decode: Callable[[Any], np.ndarray] = np.asarray


def openbei_in_process(folder: Path) -> Way:
    """openbei.load(folder).embed, with the defaults of a user."""
    import openbei

    engine = openbei.load(str(folder))
    return Way(engine.embed)


def sentence_transformers_float32(folder: Path) -> Way:
    """SentenceTransformer.encode as its manual says: 32 texts a batch, sorted by length."""
    return _sentence_transformers(folder, "float32")


def sentence_transformers_bfloat16(folder: Path) -> Way:
    """The same with bfloat16 weights."""
    return _sentence_transformers(folder, "bfloat16")


def _sentence_transformers(folder: Path, dtype: str) -> Way:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype})
    settings = {"batch_size": 32, "normalize_embeddings": True, "show_progress_bar": False}
    return Way(lambda texts: model.encode(texts, **settings))


def onnx_padded(folder: Path) -> Way:
    """TEI's way on a CPU: ONNX Runtime in float32, 8 texts a batch as they come, padded to the longest of them."""
    import onnxruntime
    from tokenizers import Tokenizer

    graph = folder / "model.onnx"
    if not graph.exists():
        _export(folder, graph)
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(512)
    tokenizer.enable_padding()

    def batch(texts: list[str]) -> np.ndarray:
        encodings = tokenizer.encode_batch_fast(texts)
        ids = np.array([encoding.ids for encoding in encodings])
        mask = np.array([encoding.attention_mask for encoding in encodings])
        return session.run(None, {"ids": ids, "mask": mask})[0]

    def embed(texts: list[str]) -> np.ndarray:
        return np.concatenate([batch(texts[start : start + 8]) for start in range(0, len(texts), 8)])

    return Way(embed)


def _export(folder: Path, graph: Path) -> None:
    """Write the network with its mean pooling and norm as one ONNX graph, free in batch and length."""
    import torch
    from transformers import AutoModel

    class Embedder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network: Any = AutoModel.from_pretrained(folder, attn_implementation="eager")

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            bias = (1 - mask.to(torch.float32))[:, None, None, :] * -1e9
            states = self.network(input_ids=ids, attention_mask=bias).last_hidden_state
            weights = mask.unsqueeze(-1).to(states.dtype)
            return torch.nn.functional.normalize((states * weights).sum(1) / weights.sum(1), dim=-1)

    example = torch.ones(2, 16, dtype=torch.long)
    axes = {"ids": {0: "batch", 1: "length"}, "mask": {0: "batch", 1: "length"}, "rows": {0: "batch"}}
    names = {"input_names": ["ids", "mask"], "output_names": ["rows"], "dynamic_axes": axes}
    torch.onnx.export(Embedder().eval(), (example, example), str(graph), dynamo=False, opset_version=17, **names)
