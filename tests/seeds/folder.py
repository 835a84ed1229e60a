"""A Seed -> its tiny folder, laid out as the model's authors published it, and its Judge, which never meets openbei."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedConfig

from tests.families import NORMS, write_json
from tests.seeds.rows import Modules, Seed

Floats = NDArray[np.float32]
Tensors = dict[str, torch.Tensor]


class Judge:
    """transformers, or our oracle: one text at a time, ids by transformers' tokenizer from the same folder."""

    def __init__(self, seed: Seed, folder: Path) -> None:
        self.seed = seed
        self.network = seed.judge(seed.tiny_config())
        _randomise(self.network, seed)
        write(seed, self.network, folder)
        self.layers = _write_layers(seed, folder, self.network.config.hidden_size)
        self.ends = {"add_bos_token": True, "add_eos_token": True} if seed.text.ends else {}
        # Without a config transformers would ask for the authors' code.
        config = {"config": PreTrainedConfig()} if "AutoConfig" in seed.config.get("auto_map", {}) else {}
        self.tokenizer = AutoTokenizer.from_pretrained(folder, **self.ends, **config)

    def num_tokens(self, *texts: str) -> int:
        """Of one text or pair, after the cut."""
        return len(self._encoded(*texts)["input_ids"][0])

    def logits(self, *texts: str) -> Floats:
        """Of one text or pair (L,)."""
        return self._run(self._encoded(*texts)).logits[0].numpy()

    def chat_logits(self, messages: Sequence[dict[str, str]]) -> Floats:
        """Of a chat (L,)."""
        cut = {"truncation": True, "max_length": self.seed.limit}
        ids = self.tokenizer.apply_chat_template(messages, return_dict=False, **cut)
        return self._run({"input_ids": torch.tensor([ids])}).logits[0].numpy()

    def vector(self, text: str) -> Floats:
        """Of one text, pooled and not normalised (C,)."""
        states = self._run(self._encoded(text)).last_hidden_state[0].numpy()
        pooling = self.seed.modules.pooling if self.seed.modules else "lasttoken"
        return states.mean(axis=0) if pooling == "mean_tokens" else states[0 if pooling == "cls_token" else -1]

    def tokens(self, text: str) -> tuple[list[int], torch.Tensor]:
        """The ids of one text, and the last states of its tokens (n, C)."""
        encoded = self._encoded(text)
        return encoded["input_ids"][0].tolist(), self._run(encoded).last_hidden_state[0]

    def _encoded(self, *texts: str) -> Tensors:
        encoded = self.tokenizer(*texts, truncation=True, max_length=self.seed.limit, return_tensors="pt")
        types = encoded.get("token_type_ids", torch.zeros_like(encoded["input_ids"]))
        takes_types = getattr(self.network.config, "type_vocab_size", 0) > 1
        return {"input_ids": encoded["input_ids"], **({"token_type_ids": types} if takes_types else {})}

    def _run(self, encoded: Tensors) -> Any:
        with torch.inference_mode():
            return self.network(**encoded)


def _randomise(network: Any, seed: Seed) -> None:
    """Weights N(0, 0.2), norms around one (Gemma's around zero), all of them values of the type they are stored in."""
    generator = torch.Generator().manual_seed(24)
    plain = seed.config["model_type"] == "gemma2"
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
            if name.lower().endswith(NORMS) and not plain:
                parameter.add_(1.0)
            parameter.copy_(parameter.to(seed.stored.dtype).float())


def _write_layers(seed: Seed, folder: Path, width: int) -> dict[str, torch.nn.Linear]:
    layers, generator = {}, torch.Generator().manual_seed(25)
    for name, rows in seed.layers.items():
        layer = layers[name] = torch.nn.Linear(width, rows).requires_grad_(False)
        layer.weight.normal_(0.0, 0.2, generator=generator)
        layer.bias.normal_(0.0, 0.2, generator=generator)
        torch.save(layer.state_dict(), folder / name)
    return layers


def write(seed: Seed, network: Any, folder: Path) -> None:
    """All files of the folder; those that a server must not touch hold nothing readable."""
    network.save_pretrained(folder)  # nomic's and GTE's tensors get their published names by this
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    _write_weights(seed, tensors, folder)
    write_json(folder / "config.json", seed.tiny_config())
    seed.text.tokenizer().save(str(folder / "tokenizer.json"))
    _write_tokenizer_config(seed, folder)
    if seed.modules:
        _write_modules(seed.modules, folder, network.config.hidden_size)
        limit = {"max_seq_length": seed.limit, "do_lower_case": False}
        write_json(folder / seed.modules.text_file, limit)
    for trap in ("onnx/model.onnx", "lora/adapter_model.safetensors", "tf_model.h5"):
        (folder / trap).parent.mkdir(exist_ok=True)
        (folder / trap).write_bytes(b"not for you")


def _write_tokenizer_config(seed: Seed, folder: Path) -> None:
    """The newer repositories list the added tokens here too; the older ones have the map of special tokens only."""
    config, added = seed.text.config, seed.text.tokenizer().get_added_tokens_decoder()
    if seed.text.kind in ("mistral", "gemma", "qwen2", "llama3"):
        flags = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
        tokens = {str(number): {flag: getattr(token, flag) for flag in flags} for number, token in added.items()}
        config = {**config, "added_tokens_decoder": tokens}
    write_json(folder / "tokenizer_config.json", config)
    special = {role: token for role, token in config.items() if role.endswith("_token") and isinstance(token, str)}
    write_json(folder / "special_tokens_map.json", special)


def _write_weights(seed: Seed, tensors: Tensors, folder: Path) -> None:
    stored = seed.stored
    own = (stored.prefix, "classifier.", "score.")
    named = {name if name.startswith(own) else stored.prefix + name: each for name, each in tensors.items()}
    named = {name: tensor.to(stored.dtype) for name, tensor in named.items()}
    named |= {name: torch.arange(9) if name.endswith("_ids") else torch.ones(9, 4) for name in stored.unused}
    if stored.layout == "one":
        save_file(named, folder / "model.safetensors", {"format": "pt"})
    elif stored.layout == "bin":
        torch.save(named, folder / "pytorch_model.bin")
    else:
        _write_shards(named, stored.layout, folder)


def _write_shards(tensors: Tensors, num_shards: int, folder: Path) -> None:
    files = {name: f"model-{i % num_shards + 1:05}-of-{num_shards:05}.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in files if files[name] == file}, folder / file, {"format": "pt"})
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": 1}, "weight_map": files})


def _write_modules(modules: Modules, folder: Path, width: int) -> None:
    kinds = ["Transformer", "Pooling", *["Normalize"] * modules.normalize]
    paths = ["", "1_Pooling", "2_Normalize"]
    entries = [
        {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    write_json(folder / "modules.json", entries)
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    pooling = {f"pooling_mode_{mode}": mode == modules.pooling for mode in modes}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **pooling})
    prompts = {"prompts": modules.prompts, "default_prompt_name": None} if modules.prompts else {}
    write_json(folder / "config_sentence_transformers.json", {"__version__": {"pytorch": "2.1"}, **prompts})
