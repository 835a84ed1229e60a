"""A batch in the words that go to a GPU: where all of it lies, which query tiles it has, and what does not fit."""

from dataclasses import replace

import numpy as np
import pytest

from openbei.model.ops.cuda import CudaModel, Placement
from openbei.model.ops.cuda_batch import Layout, make_tiles, num_tiles
from openbei.model.positions import cos_sin
from openbei.model.spec import HIDDEN, Model, Size, pack
from tests.model import oracles


@pytest.mark.parametrize("family", ["bert", "nomic-dynamic"])
def test_a_batch_lies_in_its_words_padded(model: Model, family: str) -> None:
    """Padding rows are token 0 at position 0 of no sequence, padding sequences are empty, absent tiles are -1."""
    layout, size = Layout(model.spec), Size(7, 4)
    words = np.full(layout.num_words(size), -7, np.int32)
    batch = pack(model.spec, [[5, 6], [7, 8, 9]], [[0, 1], [0, 0, 1]])
    layout.write(batch, size, words)
    regions = layout.regions(words, size)
    dynamic = family == "nomic-dynamic"
    assert regions.ids.tolist() == [5, 6, 7, 8, 9, 0, 0]
    assert regions.positions.tolist() == ([0, 1, 2, 3, 4, 0, 0] if dynamic else [0, 1, 0, 1, 2, 0, 0])
    assert regions.types.tolist() == [0, 1, 0, 0, 1, 0, 0]
    assert regions.cu_seqlens.tolist() == [0, 2, 5, 5, 5]
    assert regions.key_ends.tolist() == [2, 5, 5, 5]
    assert sorted(zip(regions.tile_sequence.tolist(), regions.tile_first_row.tolist(), strict=True)) == [
        *[(-1, -1)] * 2,
        (0, 0),
        (1, 2),
    ]
    if dynamic:
        assert model.spec.rope is not None
        table = regions.angles.view(np.float32).reshape(2, 7, -1)
        np.testing.assert_array_equal(table[:, :5], cos_sin(model.spec.rope, model.spec.head_dim, batch))
        assert not table[:, 5:].any()
    else:
        assert len(regions.angles) == 0


@pytest.mark.parametrize("family", ["bert", "nomic-dynamic"])
def test_regions_begin_at_16_bytes_and_never_overlap(model: Model) -> None:
    layout = Layout(model.spec)
    for size in (Size(1, 1), Size(17, 3), Size(4095, 130)):
        regions = layout.regions(np.arange(layout.num_words(size), dtype=np.int32), size)
        begins = [region[0] for region in regions if len(region)]
        assert all(begin % 4 == 0 for begin in begins)
        assert len(np.unique(np.concatenate(regions))) == sum(map(len, regions))


@pytest.mark.parametrize("family", ["bert"])
@pytest.mark.parametrize(
    ("ids", "size", "words"),
    [
        ([[2] * 9, [3] * 8], Size(16, 2), "at most 16 tokens fit, got 17"),
        ([[2], [3], [4]], Size(16, 2), "at most 2 sequences fit, got 3"),
        ([[2] * 65], Size(80, 1), "position must be in 0 to 63, got 0 to 64"),
        ([[2, -1]], Size(16, 1), "token id must be in 0 to"),
        ([[2, 10_000]], Size(16, 1), "token id must be in 0 to .* got 2 to 10000"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(model: Model, ids: oracles.Ids, size: Size, words: str) -> None:
    made = CudaModel(model, Placement("cpu", "float32"))
    with pytest.raises(ValueError, match=words):
        made.write(pack(model.spec, ids), size, np.empty(made.num_words(size), np.int32))


@pytest.mark.parametrize("family", ["bert"])
def test_the_keys_of_a_sequence_end_before_its_hidden_tokens(model: Model) -> None:
    layout, size = Layout(model.spec), Size(9, 4)
    words = np.full(layout.num_words(size), -7, np.int32)
    batch = pack(model.spec, [[5, 6], [7, 8, 9], [3]], [[0, HIDDEN], [0, 0, 0], [0]])
    layout.write(batch, size, words)
    regions = layout.regions(words, size)
    assert regions.cu_seqlens.tolist() == [0, 2, 5, 6, 6]
    assert regions.key_ends.tolist() == [1, 5, 6, 6]


@pytest.mark.parametrize("family", ["bert"])
@pytest.mark.parametrize("num_keys", [[2, 0], [2, 4]])
def test_a_sequence_without_keys_or_with_those_of_another_is_refused(model: Model, num_keys: list[int]) -> None:
    """Attention would read rows that are not the sequence's."""
    made = CudaModel(model, Placement("cpu", "float32"))
    batch = replace(pack(model.spec, [[2, 3], [4, 5, 6]]), num_keys=np.array(num_keys, np.int32))
    with pytest.raises(ValueError, match=rf"of \[2, 3\] tokens 1 to all are keys, got \[2, {num_keys[1]}\]"):
        made.write(batch, Size(16, 2), np.empty(made.num_words(Size(16, 2)), np.int32))


@pytest.mark.parametrize("family", ["bert"])
def test_words_of_another_size_are_refused(model: Model) -> None:
    made = CudaModel(model, Placement("cpu", "float32"))
    with pytest.raises(ValueError, match=r"Size\(num_tokens=16, num_sequences=1\) has \d+ words, got 3"):
        made.write(pack(model.spec, [[2]]), Size(16, 1), np.empty(3, np.int32))


@pytest.mark.parametrize("rows", [64, 128])
def test_tiles_cover_every_row_once(rows: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(0, 300, rng.integers(1, 20))
        cu_seqlens = np.cumsum([0, *lengths]).astype(np.int32)
        size = num_tiles(int(cu_seqlens[-1]), len(lengths), rows)
        sequence, first = make_tiles(cu_seqlens, rows, size)
        seen = np.zeros(cu_seqlens[-1], np.int32)
        for which, start in zip(sequence[sequence >= 0], first[sequence >= 0], strict=True):
            assert cu_seqlens[which] <= start < cu_seqlens[which + 1]
            seen[start : min(start + rows, cu_seqlens[which + 1])] += 1
        assert (seen == 1).all()
        spare = (sequence < 0).sum()
        assert (sequence[size - spare :] == -1).all()


def test_tiles_of_the_longest_come_first_and_their_last_rows_before() -> None:
    tiles = make_tiles(np.array([0, 10, 210, 210, 300], np.int32), 64, 9)
    assert tiles.tolist() == [[1, 1, 1, 1, 3, 3, 0, -1, -1], [202, 138, 74, 10, 274, 210, 0, -1, -1]]


def test_too_few_tiles_are_refused_with_the_number() -> None:
    with pytest.raises(ValueError, match="3 attention tiles of 64 rows, at most 2"):
        make_tiles(np.array([0, 65, 70], np.int32), 64, 2)
