"""Local layers on a CPU: blocks of queries beside the keys of their windows, and never all keys of a long text."""

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from openbei.model.ops import openvino_batch
from openbei.model.ops.openvino_batch import Blocks, inputs_of, make_blocks
from openbei.model.positions import visible
from openbei.model.spec import HIDDEN, ModelSpec, pack
from tests import families
from tests.model.oracles import Case, case, error, states_of

FAMILIES = ("modernbert", "mistral", "qwen2", "gemma2", "gemma3", "gemma3-both-sides")
LENGTHS = (60, 3, 29, 1, 34)


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    @cache
    def make(family: str) -> Case:
        return case(family, families.save(tmp_path_factory.mktemp(family), family), LENGTHS)

    return make


@pytest.mark.parametrize("smallest", [1, 3, 128])
@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_give_the_states_of_transformers(
    family: str, smallest: int, cases: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = cases(family)
    monkeypatch.setattr(openvino_batch, "SMALLEST_BLOCK", smallest)
    shapes = []
    monkeypatch.setattr(openvino_batch, "make_blocks", lambda grid: shapes.append(make_blocks(grid)) or shapes[-1])
    assert error(states_of("openvino", case.model)(case.batch), case.states) <= 1e-4
    [blocks] = shapes
    assert (len(blocks.queries) > len(LENGTHS)) is (smallest < 128)


def spec_of(window: int, causal: bool, max_length: int) -> ModelSpec:
    return ModelSpec("fake", 50, 8, 1, 1, 1, 8, 8, 1e-5, "gelu", max_length, causal=causal, window=window)


@pytest.mark.parametrize("causal", [False, True])
def test_every_pair_inside_the_window_is_in_one_block(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_batch, "SMALLEST_BLOCK", 2)
    spec = spec_of(6, causal, 100)
    batch = pack(spec, [[1] * n for n in (50, 1, 4, 33)], [[0] * 45 + [HIDDEN] * 5, [0], [0] * 4, [0] * 33])
    found: list[Blocks] = []
    monkeypatch.setattr(openvino_batch, "make_blocks", lambda grid: found.append(make_blocks(grid)) or found[-1])
    inputs_of(["queries", "key_positions"], batch, spec)
    [blocks] = found
    pairs = set()
    flat = blocks.queries.reshape(-1)
    for cell in blocks.cells[: batch.num_tokens]:
        block, query = divmod(int(cell), blocks.queries.shape[1])
        ahead = blocks.key_positions[block] - blocks.query_positions[block, query]
        there = visible(ahead, causal, spec.window) & (blocks.key_positions[block] < openvino_batch.FAR)
        pairs |= {(int(flat[cell]), int(key)) for key in blocks.keys[block][there]}
    wanted = set()
    for begin, num_keys, end in ((0, 45, 50), (50, 51, 51), (51, 55, 55), (55, 88, 88)):
        for query in range(begin, end):
            seen = visible(np.arange(begin, num_keys) - query, causal, spec.window)
            wanted |= {(query, int(key)) for key in np.arange(begin, num_keys)[seen]}
    assert pairs == wanted


@pytest.mark.parametrize(("window", "causal", "length"), [(128, False, 8192), (4096, True, 32_768)])
def test_a_long_text_needs_memory_for_its_windows_only(window: int, causal: bool, length: int) -> None:
    spec = spec_of(window, causal, length)
    names = ["queries", "keys", "query_positions", "key_positions", "query_cells"]
    inputs = dict(zip(names, inputs_of(names, pack(spec, [[1] * length]), spec), strict=True))
    assert sum(one.nbytes for one in inputs.values()) <= 40 * length
    (num_blocks, num_queries), num_keys = inputs["queries"].shape, inputs["keys"].shape[1]
    assert num_blocks * num_queries * num_keys <= 2 * length * window  # values of the mask; length² before
