"""Weights as an artifact stores them: what a device would make of the source, bit for bit, and readable by others."""

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from openbei.engine.cpu import CpuExecutor
from openbei.errors import UnsupportedModel, WeightsError
from openbei.model.kernels.quantize import quantize_weight
from openbei.model.ops import numpy as plain
from openbei.model.ops.cuda_weights import DeviceWeights, Placement, place
from openbei.model.spec import Model, num_parameters, pack
from openbei.model.stored import stored_as, weight_of, without_fp8
from openbei.weights.load import load
from tests import families, late, rerankers, splade
from tests.model.oracles import error, sequences
from tests.weights.building import make

WEIGHTS = "model.safetensors"
TORCH = {"bfloat16": torch.bfloat16, "float16": torch.float16, "fp8": torch.bfloat16}
LENGTHS = (3, 17, 1, 9)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBEI_HOME", str(tmp_path / "home"))


def _config(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text())


def _rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], **config: object) -> Path:
    path = folder / WEIGHTS
    save_file(change({name: tensor.clone() for name, tensor in load_file(path).items()}), path)
    families.change_json(folder / "config.json", **config)
    return folder


@pytest.fixture
def folder(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of tiny BERT that a test may change."""
    return shutil.copytree(tiny_folder("bert"), tmp_path / "bert")


# --- 16 bit


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_matrices_are_rounded_and_vectors_stay(dtype: str, folder: Path, tmp_path: Path) -> None:
    out = make(folder, tmp_path / "out", dtype=dtype).folder
    before, after = load_file(folder / WEIGHTS), load_file(out / WEIGHTS)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        wanted = tensor.to(TORCH[dtype]) if tensor.ndim == 2 else tensor
        assert after[name].dtype == wanted.dtype
        assert torch.equal(after[name], wanted), name
    assert _config(out)["dtype"] == dtype
    assert stored_as(load(str(out)).model) == dtype
    assert (out / WEIGHTS).stat().st_size < 0.56 * (folder / WEIGHTS).stat().st_size


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_transformers_reads_an_artifact(family: str, tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    out = make(tiny_folder(family), tmp_path / "out", dtype="bfloat16").folder
    model = load(str(out)).model
    ids, types = sequences(model, LENGTHS)
    judge = transformers.AutoModel.from_pretrained(out, dtype=torch.float32).eval()
    states = families.transformers_states(judge, ids, types)
    assert error(plain.run(model, pack(model.spec, ids, types), "states"), states) <= 1e-4


def test_what_is_of_that_type_already_is_copied_as_it_is(folder: Path, tmp_path: Path) -> None:
    _rewrite(folder, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    out = make(folder, tmp_path / "out", dtype="bf16").folder
    for name in (WEIGHTS, "config.json"):
        assert (out / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_other_precisions_leave_the_weights_as_they_are(dtype: str, folder: Path, tmp_path: Path) -> None:
    _rewrite(folder, lambda tensors: {name: tensor.half() for name, tensor in tensors.items()})
    out = make(folder, tmp_path / "out", dtype=dtype).folder
    assert (out / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()


def test_shards_and_pickles_become_one_file(folder: Path, tmp_path: Path) -> None:
    whole = make(folder, tmp_path / "whole", dtype="fp8").folder
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save(state, folder / "pytorch_model.bin")
    pickled = make(folder, tmp_path / "pickled", dtype="fp8").folder
    (folder / "pytorch_model.bin").unlink()
    halves: tuple[dict[str, Tensor], ...] = ({}, {})
    for number, (name, tensor) in enumerate(sorted(state.items())):
        halves[number % 2][name] = tensor
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for file, half in zip(files, halves, strict=True):
        save_file(half, folder / file)
    index = {"weight_map": {name: file for file, half in zip(files, halves, strict=True) for name in half}}
    families.write_json(folder / f"{WEIGHTS}.index.json", index)
    sharded = make(folder, tmp_path / "sharded", dtype="fp8").folder
    for out in (pickled, sharded):
        assert sorted(path.name for path in out.glob("*model*")) == [WEIGHTS]
        ours, theirs = load_file(out / WEIGHTS), load_file(whole / WEIGHTS)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name].float(), theirs[name].float()) for name in ours)


def test_a_value_that_float16_cannot_hold_is_refused(folder: Path, tmp_path: Path) -> None:
    name = "encoder.layer.1.output.dense.weight"
    _rewrite(folder, lambda tensors: tensors | {name: torch.full_like(tensors[name], 70000)})
    with pytest.raises(
        WeightsError, match=rf"{name} holds 70000, and float16 ends at 65504: build it with .* bfloat16"
    ):
        make(folder, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()
    assert make(folder, tmp_path / "out", dtype="bfloat16").new


def test_a_matrix_that_is_tied_and_stored_twice_stays_tied(tmp_path: Path) -> None:
    folder = splade.save(tmp_path / "splade", "distilbert")
    word = "distilbert.embeddings.word_embeddings.weight"
    _rewrite(folder, lambda tensors: tensors | {"vocab_projector.weight": tensors[word].clone()})
    out = make(folder, tmp_path / "out", dtype="fp8").folder
    stored = load_file(out / WEIGHTS)
    assert torch.equal(stored[word], stored["vocab_projector.weight"])
    assert load(str(out)).model.num_logs == 1


# --- FP8


@pytest.mark.parametrize("family", ["bert", "llama", "nomic", "modernbert"])  # separate and fused matrices
def test_the_blocks_are_quantised_by_rows_and_all_else_is_16_bit(
    family: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    out = make(tiny_folder(family), tmp_path / "out", dtype="fp8").folder
    before, after = load_file(tiny_folder(family) / WEIGHTS), load_file(out / WEIGHTS)
    quantised = {name for name, tensor in after.items() if tensor.dtype == torch.float8_e4m3fn}
    matrices = {name for name, tensor in before.items() if "layer" in name and tensor.ndim == 2}
    around_attention = ("attention.", "attn.")
    if family != "llama":  # of encoders the feed-forward half alone
        matrices = {name for name in matrices if not any(part in name for part in around_attention)}
    assert quantised == matrices
    assert after.keys() == before.keys() | {f"{name}_scale" for name in quantised}
    for name, tensor in before.items():
        if name in quantised:
            values, scale = quantize_weight(tensor)
            assert torch.equal(after[name].view(torch.uint8), values.view(torch.uint8))
            assert torch.equal(after[f"{name}_scale"], scale[:, None])
        else:
            assert torch.equal(after[name], tensor.bfloat16() if tensor.ndim == 2 else tensor)
    scheme = _config(out)["quantization_config"]
    assert (scheme["quant_method"], scheme["format"]) == ("compressed-tensors", "float-quantized")
    linears = {name for name, tensor in before.items() if tensor.ndim == 2 and "embedding" not in name}
    linears -= {"embed_tokens.weight", "embeddings.tok_embeddings.weight"}
    assert scheme["ignore"] == sorted(name.removesuffix(".weight") for name in linears - quantised)
    model = load(str(out)).model
    assert num_parameters(model) == num_parameters(load(str(tiny_folder(family))).model)
    assert stored_as(model) == "fp8"


def test_a_product_of_a_size_that_gpus_do_not_multiply_in_fp8_is_16_bit(tmp_path: Path) -> None:
    """72 is no multiple of 16, but a gate and up of 72 rows each are one product."""
    model = families.network("llama", intermediate_size=72)
    out = make(families.save(tmp_path / "odd", "llama", model), tmp_path / "out", dtype="fp8").folder
    stored = load_file(out / WEIGHTS)
    assert stored["layers.0.mlp.down_proj.weight"].dtype == torch.bfloat16
    assert stored["layers.0.mlp.up_proj.weight"].dtype == torch.float8_e4m3fn
    assert _config(out)["quantization_config"]["ignore"] == [f"layers.{number}.mlp.down_proj" for number in range(4)]
    load(str(out))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "fp8"])
@pytest.mark.parametrize("family", ["bert", "mpnet", "llama", "nomic", "gemma3"])
def test_a_gpu_gets_from_an_artifact_what_it_would_make_of_the_source(
    family: str, dtype: str, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    _same_on_device(tiny_folder(family), tmp_path / "out", dtype)


@pytest.mark.parametrize("kind", ["Sequence", "Token"])
def test_a_head_stays_in_float32(kind: str, tmp_path: Path) -> None:
    folder = families.save(tmp_path / "head", "bert", families.network("bert", kind, num_labels=3), pooling=None)
    _same_on_device(folder, tmp_path / "out", "fp8")
    head = load(str(tmp_path / "out")).model.head
    assert head is not None
    assert {layer.linear.weight.dtype for layer in head.layers} == {np.dtype(np.float32)}


def _same_on_device(folder: Path, out: Path, dtype: str) -> None:
    make(folder, out, dtype=dtype)
    placement = Placement("cpu", "float16" if dtype == "float16" else "bfloat16", fp8=dtype == "fp8")
    models = load(str(folder)).model, load(str(out)).model
    before, after = (_tensors(place(model, placement)) for model in models)
    assert len(before) == len(after)
    for one, other in zip(before, after, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def _tensors(weights: DeviceWeights) -> list[Tensor]:
    parts = [getattr(weights.tables, item.name) for item in fields(weights.tables)] + [weights.slopes, weights.bias]
    parts += [part for one in weights.products.values() for part in (one.weight, one.bias, one.scale)]
    parts += [part for one in weights.norms.values() for part in (one.weight, one.bias)]
    return [part for part in parts if part is not None]


def test_a_gpu_that_computes_in_16_bit_multiplies_the_scales_in_once(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = load(str(make(tiny_folder("llama"), tmp_path / "out", dtype="fp8").folder)).model
    placed = place(model, Placement("cpu", "bfloat16"))
    layer = model.weights.layers[0]
    gate, up = (torch.from_numpy(np.array(weight_of(linear))) for linear in (layer.gate, layer.up) if linear)
    assert torch.equal(placed.products[id(layer.gate)].weight, torch.cat((gate, up)).bfloat16())


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-4), ("bfloat16", 0.3)])
def test_a_cpu_computes_with_values_times_scales(
    dtype: Any, limit: float, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = load(str(make(tiny_folder("bert"), tmp_path / "out", dtype="fp8").folder)).model
    batch = pack(model.spec, *sequences(model, LENGTHS))
    judged = plain.run(model, batch, "states")
    if dtype == "bfloat16" and not _native():
        pytest.skip("this CPU has no native bfloat16")
    assert error(CpuExecutor(model, dtype).run(batch, "states", True), judged) <= limit
    assert error(judged, plain.run(load(str(tiny_folder("bert"))).model, batch, "states")) > 1e-2  # another model, then


def _native() -> bool:
    from openbei.model.ops.openvino_model import native_bfloat16

    return native_bfloat16()


def test_widening_touches_nothing_else(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    plain_model: Model = load(str(tiny_folder("bert"))).model
    assert without_fp8(plain_model, "float32") is plain_model
    model = load(str(make(tiny_folder("bert"), tmp_path / "out", dtype="fp8").folder)).model
    wide: Model = without_fp8(model, "float32")
    assert wide.weights.embedding is model.weights.embedding
    for one, other in zip(wide.weights.layers, model.weights.layers, strict=True):
        assert one.ffn_norm is other.ffn_norm
        assert (one.up.scale, one.up.weight.dtype) == (None, np.float32)
        assert other.up.scale is not None
        np.testing.assert_array_equal(one.up.weight, other.up.weight.astype(np.float32) * other.up.scale[:, None])


# --- FP8 as others publish it

CHANNEL = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
QUERY, UP = "encoder.layer.1.attention.self.query.weight", "encoder.layer.1.intermediate.dense.weight"


def _compressed(weights: dict[str, object], **more: object) -> dict[str, object]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": groups, **more}


PUBLISHED: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, object]]] = {
    "channel": (lambda weight: weight.abs().amax(1, keepdim=True) / 448, _compressed(CHANNEL)),
    "channel, bfloat16": (lambda weight: (weight.abs().amax(1, keepdim=True) / 440).bfloat16(), _compressed(CHANNEL)),
    "channel, flat": (lambda weight: weight.abs().amax(1) / 448, _compressed(CHANNEL)),
    "tensor": (lambda weight: weight.abs().amax() / 448, _compressed(CHANNEL | {"strategy": "tensor"})),
    "static": (lambda weight: weight.abs().amax()[None] / 448, {"quant_method": "fp8", "activation_scheme": "static"}),
}


def _publish(folder: Path, how: str) -> dict[str, Tensor]:
    """A folder's blocks in FP8, as a publisher would write them -> what each weight then is, in float32."""
    make_scale, scheme = PUBLISHED[how]
    wanted: dict[str, Tensor] = {}

    def change(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        new = dict(tensors)
        for name, tensor in tensors.items():
            if "encoder.layer" in name and tensor.ndim == 2:
                scale = make_scale(tensor)
                by_row = scale.float().reshape(-1, 1)
                values = (tensor / by_row).clamp(-448, 448).to(torch.float8_e4m3fn)
                new |= {name: values, f"{name}_scale": scale}
                if how in ("tensor", "static"):
                    new[name.removesuffix("weight") + "input_scale"] = torch.tensor([0.5])
                wanted[name] = values.float() * by_row
        return new

    _rewrite(folder, change, quantization_config=scheme)
    return wanted


@pytest.mark.parametrize("how", PUBLISHED)
def test_a_published_checkpoint_is_read_exactly(how: str, folder: Path) -> None:
    wanted = _publish(folder, how)
    model = load(str(folder)).model
    query, up = model.weights.layers[1].q, model.weights.layers[1].up
    assert torch.equal(torch.from_numpy(np.array(weight_of(query))), wanted[QUERY])
    products = place(model, Placement("cpu", "bfloat16", fp8=True)).products
    assert torch.equal(products[id(query)].weight[:48], wanted[QUERY].bfloat16())  # an encoder attends in 16 bit
    stored, placed = load_file(folder / WEIGHTS), products[id(up)]
    assert torch.equal(placed.weight.view(torch.uint8), stored[UP].view(torch.uint8))
    assert placed.scale is not None
    assert torch.equal(placed.scale, stored[f"{UP}_scale"].float().reshape(-1).expand(80))


def test_a_published_checkpoint_stays_as_it_is_or_is_widened(folder: Path, tmp_path: Path) -> None:
    wanted = _publish(folder, "tensor")
    for dtype in ("auto", "fp8"):
        stored = load_file(make(folder, tmp_path / dtype, dtype=dtype).folder / WEIGHTS)
        source = load_file(folder / WEIGHTS)
        assert stored.keys() == source.keys()
        assert torch.equal(stored[QUERY].view(torch.uint8), source[QUERY].view(torch.uint8))
        assert torch.equal(stored[f"{QUERY}_scale"], source[f"{QUERY}_scale"])
        assert _config(tmp_path / dtype)["quantization_config"] == PUBLISHED["tensor"][1]
    stored = load_file(make(folder, tmp_path / "wide", dtype="bfloat16").folder / WEIGHTS)
    assert not [name for name in stored if name.endswith("_scale")]
    assert torch.equal(stored[QUERY], wanted[QUERY].bfloat16())
    assert "quantization_config" not in _config(tmp_path / "wide")


@pytest.mark.parametrize(
    ("scheme", "said"),
    [
        ({"quant_method": "awq", "bits": 4}, "quant_method awq, 4 bit"),
        ({"quant_method": "gptq", "bits": 8}, "quant_method gptq, 8 bit"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "quant_method bitsandbytes"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, r"a scale for each block of \[128, 128\] weights"),
        (_compressed(CHANNEL | {"strategy": "block"}), "FP8 with a scale for each block"),
        (_compressed(CHANNEL | {"strategy": "group"}), "FP8 with a scale for each group"),
        (_compressed(CHANNEL | {"symmetric": False}), "FP8 with zero points"),
        (_compressed(CHANNEL | {"type": "int"}, format="int-quantized"), r"int 8 bit weights \(int-quantized\)"),
        (_compressed(CHANNEL | {"num_bits": 4}, format="nvfp4-pack-quantized"), "float 4 bit weights"),
        (_compressed(CHANNEL, format="mxfp8-quantized"), "format 'mxfp8-quantized'"),
        (_compressed(CHANNEL, sparsity_config={"format": "sparse-24-bitmask"}), "sparse weights"),
        (_compressed(CHANNEL, transform_config={"config_groups": {}}), "rotated weights"),
        ("gptq", "quantised weights: 'gptq'"),
    ],
)
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_what_is_quantised_otherwise_is_refused_as_what_it_is(
    scheme: object, said: str, key: str, folder: Path
) -> None:
    families.change_json(folder / "config.json", **{key: scheme})
    with pytest.raises(UnsupportedModel, match=f"{said}.*supported: FP8"):
        load(str(folder))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda scale: {}, rf"{QUERY} is stored as float8_e4m3fn, not float32, float16 or bfloat16"),
        (
            lambda scale: {f"{QUERY}_scale": torch.ones(3, 3)},
            rf"{QUERY}_scale is \(3, 3\), neither one scale nor one for each of 48 rows",
        ),
        (
            lambda scale: {f"{QUERY}_scale": scale.to(torch.int32)},
            rf"{QUERY}_scale is stored as int32, not float32",
        ),
        (
            lambda scale: {f"{QUERY}_scale": scale, "embeddings.LayerNorm.weight_scale": scale.clone()},
            r"1 left over: embeddings\.LayerNorm\.weight_scale",
        ),
    ],
)
def test_scales_that_do_not_fit_are_refused(change: Callable[[Tensor], Any], said: str, folder: Path) -> None:
    _publish(folder, "channel")

    def spoil(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        scale = tensors.pop(f"{QUERY}_scale")
        return tensors | change(scale)

    _rewrite(folder, spoil)
    with pytest.raises(WeightsError, match=said):
        load(str(folder))
    with pytest.raises(WeightsError, match=said):
        make(folder, folder.parent / "out", dtype="bfloat16")


def test_a_table_in_fp8_is_refused(folder: Path) -> None:
    name = "embeddings.word_embeddings.weight"
    _rewrite(
        folder,
        lambda tensors: tensors | {name: tensors[name].to(torch.float8_e4m3fn), f"{name}_scale": torch.ones(1)},
    )
    with pytest.raises(WeightsError, match=r"left over: embeddings\.word_embeddings\.weight_scale"):
        load(str(folder))


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_model_that_is_known_by_its_name_is_known_by_it_while_it_is_built(dtype: str, tmp_path: Path) -> None:
    folder = rerankers.save(tmp_path / "Qwen3-Reranker-0.6B", rerankers.language_model())
    families.change_json(folder / "config.json", _name_or_path=None)
    make(folder, tmp_path / "out", dtype=dtype)
    labels = load(str(tmp_path / "out")).labels
    assert labels is not None
    assert labels.reranker


@pytest.mark.parametrize("dtype", ["bfloat16", "fp8"])
def test_a_projection_that_lies_among_the_weights_is_converted_with_them(dtype: str, tmp_path: Path) -> None:
    """Stanford's ColBERT keeps its last layer in the network's own file."""
    folder = late.stanford(tmp_path / "stanford")
    out = make(folder, tmp_path / "out", dtype=dtype).folder
    projection = load(str(out)).model.multi[0].linear
    assert projection.scale is None
    before = load_file(folder / WEIGHTS)["linear.weight"]
    assert torch.equal(load_file(out / WEIGHTS)["linear.weight"], before.bfloat16())
    np.testing.assert_array_equal(projection.weight.astype(np.float32), before.bfloat16().float().numpy())
