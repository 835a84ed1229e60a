"""What the OpenVINO graph must do beside its maths: hold 16-bit weights once, and never pack in two streams at once."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ml_dtypes import bfloat16

from openbei.model.ops.openvino_graph import Graph
from openbei.model.ops.openvino_model import CompileOptions, compile_model, native_bfloat16
from openbei.model.positions import alibi_slopes
from openbei.model.spec import Array, Embedding, Layer, Linear, Model, Norm, Weights, pack
from tests.engine.fakes import SPEC


def test_first_runs_of_a_size_never_overlap_and_later_ones_may(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = object.__new__(Graph), object.__new__(Graph)
    for graph in graphs:
        graph._packed = set()
    running, overlaps, met = [], [], set()
    together = threading.Barrier(2, timeout=60)

    def infer(inputs: list[Array]) -> None:
        size = len(inputs[0])
        first = size not in met
        if first:
            overlaps.append(len(running))
            running.append(size)
        else:
            together.wait()  # passes only if two later runs are here at once
        met.add(size)
        if first:
            running.remove(size)

    monkeypatch.setattr(Graph, "_infer", lambda _, inputs: infer(inputs))
    sizes = (2, 8, 16, 32)
    inputs = [[np.zeros(size, np.int32)] for size in sizes]
    runs = [graph.infer for graph in graphs * 2]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda run, *of: run(*of), runs, inputs, sizes))
        assert overlaps == [0] * 4
        list(threads.map(lambda run, *of: run(*of), runs[:2], inputs[:2], sizes[:2]))
    assert [len(graph._packed) for graph in graphs] == [2, 2]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_16_bit_weights_are_held_once_in_the_type_that_computes(dtype: str, tmp_path: Path) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("anonymous memory is read from /proc")
    if dtype == "bfloat16" and not native_bfloat16():
        pytest.skip("this CPU has no bfloat16")
    program = [sys.executable, "-m", "tests.model.memory", str(tmp_path), dtype]
    said = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    grown_bytes, weights_bytes, table_bytes = map(int, said.split())
    packed_bytes = weights_bytes * (2 if dtype == "float32" else 1)
    assert grown_bytes < packed_bytes + weights_bytes // 2
    assert weights_bytes // 2 < table_bytes  # a copy of the table would be seen, too


@pytest.mark.parametrize("stored", [np.float16, bfloat16])
def test_16_bit_weights_give_what_their_float32_values_give(stored: type[np.generic]) -> None:
    random = np.random.default_rng(0)

    def rounded(*shape: int) -> Array:
        return random.normal(0, 0.2, shape).astype(stored)

    spec = replace(SPEC, num_layers=1, num_heads=1, head_dim=SPEC.width, ffn_width=8)
    norm = Norm(np.ones(4, np.float32), np.zeros(4, np.float32))
    shapes = {"q": (4, 4), "k": (4, 4), "v": (4, 4), "out": (4, 4), "up": (8, 4), "down": (4, 8)}
    matrices = {name: rounded(*shape) for name, shape in shapes.items()}
    word, segment = rounded(50, 4), rounded(2, 4)
    answers = []
    for dtype in (stored, np.float32):
        linears = {name: Linear(matrix.astype(dtype)) for name, matrix in matrices.items()}
        layer = Layer(**linears, attention_norm=norm, ffn_norm=norm)
        tables = Embedding(word.astype(dtype), segment=segment.astype(dtype), norm=norm)
        graph = compile_model(Model(spec, Weights(tables, (layer,)), "cls"), CompileOptions("float32", 1, 1))
        answers.append(graph.run(pack(spec, [[3, 1, 4], [1, 5]], [[0, 1, 1], [0, 1]])))
    assert np.abs(answers[1]).max() > 0.1
    np.testing.assert_allclose(answers[0], answers[1], rtol=0, atol=1e-6)


def test_alibi_is_right_where_a_bias_of_every_pair_and_head_would_pass_2_gib() -> None:
    """OpenVINO gave other numbers there, silently, when the bias was an array (H, S, S)."""
    heads, length, random = 12, 8192, np.random.default_rng(0)
    spec = replace(SPEC, width=48, num_layers=1, num_heads=heads, num_kv_heads=heads, head_dim=4, ffn_width=4)
    spec = replace(spec, num_positions=length, num_segments=0, alibi=True)
    word, wq, wk, wv = (np.float32(random.normal(0, 0.5, (rows, 48))) for rows in (50, 48, 48, 48))
    nothing, norm = np.zeros((4, 48), np.float32), Norm(np.ones(48, np.float32), np.zeros(48, np.float32))
    linears = [Linear(weight) for weight in (wq, wk, wv, np.eye(48, dtype=np.float32))]
    layer = Layer(*linears, norm, Linear(nothing), Linear(nothing.T.copy()), norm)
    ids = random.integers(0, 50, length)
    graph = compile_model(
        Model(spec, Weights(Embedding(word), (layer,)), "last_token"), CompileOptions("float32", 1, 2)
    )
    got = graph.run(pack(spec, [ids.tolist()]))[0]

    x = word[ids].astype(np.float64)
    q, k, v = (x[-1:] @ wq.T).reshape(heads, 4), (x @ wk.T).reshape(-1, heads, 4), (x @ wv.T).reshape(-1, heads, 4)
    scores = np.einsum("hd,shd->hs", q, k) / 2 - alibi_slopes(heads)[:, None] * np.arange(length)[::-1]
    shares = np.exp(scores - scores.max(1, keepdims=True))
    y = np.einsum("hs,shd->hd", shares / shares.sum(1, keepdims=True), v).reshape(48) + x[-1]
    for _ in range(2):  # the feed-forward half adds nothing
        y = (y - y.mean()) / np.sqrt(y.var() + spec.norm_eps)
    np.testing.assert_allclose(got, y, rtol=0, atol=1e-4)
