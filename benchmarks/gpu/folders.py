"""Whole model folders of random weights, written on the spot: what a server and its peers can load without a hub.

Sizes are the real ones. The tokenizer is WordPiece or BPE of 30,000 pieces learnt from Python's own documentation
(corpus.py), so that a text costs about as many steps as with a real one.
"""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import corpus
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
STANDARD_DEVIATION = 0.02
BERT_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
MISTRAL = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
MISTRAL |= {"intermediate_size": 14336, "head_dim": 128, "sliding_window": None}
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128, "head_dim": 32}
FOLDERS = {  # name: config class, model class, sizes, pooling
    "BERT-large": (transformers.BertConfig, transformers.BertModel, BERT_LARGE, "cls"),
    "Mistral-7B": (transformers.MistralConfig, transformers.MistralModel, MISTRAL, "lasttoken"),
}


@cache
def folder(name: str, device: str, tiny: bool) -> Path:
    """A model's folder, written when it is first asked for and gone when the process ends."""
    parent = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, parent, ignore_errors=True)
    return write(name, parent / name, device, tiny)


def write(name: str, folder: Path, device: str, tiny: bool) -> Path:
    """A sentence-transformers folder in bfloat16, weights N(0, 0.02) made on the device -> the folder."""
    config_class, model_class, sizes, pooling = FOLDERS[name]
    if tiny:
        sizes = {key: value for key, value in TINY.items() if key in sizes} | {"num_key_value_heads": 2}
    folder.mkdir(parents=True)
    tokenizer = learn()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = config_class(**sizes, vocab_size=30_522, dtype="bfloat16")
    with torch.device("meta"):
        shapes = model_class(config).state_dict()
    save_file(_random(shapes, device), folder / "model.safetensors", {"format": "pt"})
    config.architectures = [model_class.__name__]
    config.save_pretrained(folder)
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"})
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    _write(
        folder / "modules.json",
        [
            {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for number, (path, kind) in enumerate(modules)
        ],
    )
    (folder / "1_Pooling").mkdir()
    mode = f"pooling_mode_{pooling}{'' if pooling == 'lasttoken' else '_token'}"
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": config.hidden_size, mode: True})
    _write(folder / "sentence_bert_config.json", {"max_seq_length": 512})
    return folder


def learn() -> Tokenizer:
    """WordPiece in BERT's manner, learnt from the corpus."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=30_000, special_tokens=list(SPECIALS), show_progress=False)
    tokenizer.train_from_iterator([" ".join(corpus.words())], trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return tokenizer


def _random(shapes: dict[str, Any], device: str) -> dict[str, torch.Tensor]:
    """Norms' weights are one; position_ids and the like are left out: the library makes them itself."""
    tensors = {}
    for name, shape in shapes.items():
        if not shape.is_floating_point():
            continue
        values = torch.randn(shape.shape, device=device, dtype=torch.bfloat16) * STANDARD_DEVIATION
        is_norm = name.endswith("weight") and shape.ndim == 1
        tensors[name] = (torch.ones_like(values) if is_norm else values).cpu()
    return tensors


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))
