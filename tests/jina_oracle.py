"""JinaBERT v2, English and code, written out from its equations: the judge where transformers has no class.

One sequence at a time, a loop over heads, ALiBi as a whole n x n matrix, float64. Shares nothing with openbei.
Equations: Günther et al. 2023 (JinaBERT), Press et al. 2022 (ALiBi), and the model's own modeling_bert.py.
English: x = LN(x + attention); x = LN(x + Wo (gelu(first half) * second half)). Code: q and k through a LayerNorm over
all heads; c = LN(x + attention), x = LN(x + c); x = LN(x + W (first half * gelu(second half))).
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

EPS = 1e-12


@dataclass
class JinaConfig:
    """Sizes of a JinaBERT; code: the variant with norms of q and k. num_labels: 0 for no head."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    code: bool
    type_vocab_size: int = 2
    num_labels: int = 0


class JinaOracle:
    """The network, its tensors by the names they have in a checkpoint; called as a transformers model is."""

    def __init__(self, config: JinaConfig) -> None:
        self.config = config
        self.tensors = {name: torch.zeros(shape) for name, shape in _shapes(config).items()}

    def eval(self) -> "JinaOracle":
        """As a module has it."""
        return self

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """As a module has them."""
        return iter(self.tensors.items())

    def parameters(self) -> Iterator[Tensor]:
        """As a module has them."""
        return iter(self.tensors.values())

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json and model.safetensors as the published models have them."""
        folder.mkdir(parents=True, exist_ok=True)
        repository = "jinaai/jina-bert-v2-qk-post-norm" if self.config.code else "jinaai/jina-bert-implementation"
        config: dict[str, Any] = {
            "model_type": "bert",
            "architectures": ["JinaBertForMaskedLM"],
            "auto_map": {"AutoModel": f"{repository}--modeling_bert.JinaBertModel"},
            "position_embedding_type": "alibi",
            "feed_forward_type": "geglu",
            "hidden_act": "gelu",
            "layer_norm_eps": EPS,
            "model_max_length": 64,
            "max_position_embeddings": 64,
            "emb_pooler": "mean",
            "pad_token_id": 0,
        }
        tensors = self.tensors
        if self.config.num_labels:  # as jina-reranker-v1-tiny-en is published
            config["architectures"] = ["JinaBertModel"]
            tensors = {
                name if name.startswith("classifier.") else f"bert.{name}": each for name, each in tensors.items()
            }
        sizes = {key: value for key, value in vars(self.config).items() if key not in ("code", "num_labels")}
        (folder / "config.json").write_text(json.dumps(config | sizes))
        save_file(tensors, folder / "model.safetensors")

    def __call__(self, input_ids: Tensor, token_type_ids: Tensor) -> SimpleNamespace:
        """ids and types (1, n) -> last_hidden_state (1, n, C), and logits (1, L) of the head: BERT's, on token 0."""
        x = self._table("word_embeddings")[input_ids[0]] + self._table("token_type_embeddings")[token_type_ids[0]]
        x = self._norm(x, "embeddings.LayerNorm")
        for number in range(self.config.num_hidden_layers):
            x = self._layer(x, f"encoder.layer.{number}")
        if not self.config.num_labels:
            return SimpleNamespace(last_hidden_state=x.float()[None])
        logits = self._linear(torch.tanh(self._linear(x[:1], "pooler.dense")), "classifier")
        return SimpleNamespace(last_hidden_state=x.float()[None], logits=logits.float())

    def _layer(self, x: Tensor, at: str) -> Tensor:
        attended = self._attend(x, at)
        if not self.config.code:
            x = self._norm(x + attended, f"{at}.attention.output.LayerNorm")
            first, second = (x @ self._get(f"{at}.mlp.gated_layers.weight").T).chunk(2, dim=-1)
            return self._norm(x + self._linear(_gelu(first) * second, f"{at}.mlp.wo"), f"{at}.mlp.layernorm")
        inner = self._norm(x + attended, f"{at}.attention.output.LayerNorm")
        x = self._norm(x + inner, f"{at}.layer_norm_1")
        first, second = (x @ self._get(f"{at}.mlp.up_gated_layer.weight").T).chunk(2, dim=-1)
        return self._norm(x + self._linear(first * _gelu(second), f"{at}.mlp.down_layer"), f"{at}.layer_norm_2")

    def _attend(self, x: Tensor, at: str) -> Tensor:
        q, k, v = (self._linear(x, f"{at}.attention.self.{name}") for name in ("query", "key", "value"))
        if self.config.code:
            q = self._norm(q, f"{at}.attention.self.layer_norm_q")
            k = self._norm(k, f"{at}.attention.self.layer_norm_k")
        heads = self.config.num_attention_heads
        width = x.shape[1] // heads
        place = torch.arange(len(x), dtype=torch.float64)
        distance = (place[:, None] - place[None, :]).abs()
        attended = []
        for head, slope in enumerate(alibi_slopes(heads)):
            columns = slice(head * width, (head + 1) * width)
            scores = q[:, columns] @ k[:, columns].T / math.sqrt(width) - slope * distance
            attended.append(torch.softmax(scores, dim=-1) @ v[:, columns])
        return self._linear(torch.cat(attended, dim=1), f"{at}.attention.output.dense")

    def _get(self, name: str) -> Tensor:
        return self.tensors[name].double()

    def _table(self, name: str) -> Tensor:
        return self._get(f"embeddings.{name}.weight")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self._get(f"{name}.weight").T + self._get(f"{name}.bias")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + EPS)
        return scaled * self._get(f"{name}.weight") + self._get(f"{name}.bias")


def alibi_slopes(heads: int) -> list[float]:
    """The paper's rule: a geometric list for a power of two; else that of the lower one, then every second of 2c."""
    if heads & (heads - 1) == 0:
        start = 2 ** (-8 / heads)
        return [start ** (number + 1) for number in range(heads)]
    lower = 2 ** (heads.bit_length() - 1)
    return alibi_slopes(lower) + alibi_slopes(2 * lower)[::2][: heads - lower]


def _gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def _shapes(config: JinaConfig) -> dict[str, tuple[int, ...]]:
    width, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config.vocab_size, width),
        "embeddings.token_type_embeddings.weight": (config.type_vocab_size, width),
        "pooler.dense.weight": (width, width),
        "pooler.dense.bias": (width,),
    }
    if config.num_labels:
        shapes |= {"classifier.weight": (config.num_labels, width), "classifier.bias": (config.num_labels,)}
    norms, linears = ["embeddings.LayerNorm"], {}
    for number in range(config.num_hidden_layers):
        at = f"encoder.layer.{number}"
        linears |= {f"{at}.attention.self.{name}": (width, width) for name in ("query", "key", "value")}
        linears[f"{at}.attention.output.dense"] = (width, width)
        linears[f"{at}.mlp.down_layer" if config.code else f"{at}.mlp.wo"] = (width, inner)
        shapes[f"{at}.mlp.up_gated_layer.weight" if config.code else f"{at}.mlp.gated_layers.weight"] = (
            2 * inner,
            width,
        )
        norms += [f"{at}.attention.output.LayerNorm"]
        qk = [f"{at}.attention.self.layer_norm_{which}" for which in "qk"]
        norms += [*qk, f"{at}.layer_norm_1", f"{at}.layer_norm_2"] if config.code else [f"{at}.mlp.layernorm"]
    for name, shape in linears.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return shapes
