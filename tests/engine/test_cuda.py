"""The GPU executor, launched on the host: right rows from any bucket, many at once, and when memory runs out."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from openbei.engine import cuda
from openbei.engine.buckets import buckets
from openbei.engine.cuda import CudaExecutor, example, halves
from openbei.engine.machine import CudaMachine
from openbei.errors import ConfigError, InferenceFailed
from openbei.model.ops import numpy as reference
from openbei.model.spec import Batch, Model, Output, Size, num_parameters, pack
from openbei.weights.load import load
from tests import families
from tests.engine.host_machine import HostMachine, HostStream

TOLERANCE = 1e-5
torch.set_num_threads(1)  # for a tiny model the threads of more wait longer than they work


@pytest.fixture(scope="module")
def model(tiny_folder: Callable[[str], Path]) -> Model:
    return load(str(tiny_folder("bert"))).model


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Model:
    network = families.network("bert", "Token", num_labels=3)
    return load(str(families.save(tmp_path_factory.mktemp("token"), "bert", network, pooling=None))).model


@pytest.fixture(autouse=True)
def few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model's buckets, timed once."""
    monkeypatch.setattr(cuda, "buckets", lambda longest: [size for size in buckets(longest) if size.num_tokens <= 64])
    monkeypatch.setattr(cuda, "TIMED_TOKENS", (32, 64))
    monkeypatch.setattr(cuda, "TIMED_RUNS", 1)
    monkeypatch.setattr(cuda, "SMALL_MODEL", 0)  # one stream


@pytest.fixture(params=[1, 2])
def num_tracks(request: pytest.FixtureRequest, few_sizes: None, monkeypatch: pytest.MonkeyPatch) -> int:
    """Streams that run at once: two for a small model."""
    monkeypatch.setattr(cuda, "SMALL_MODEL", 1 << 30 if request.param == 2 else 0)
    return request.param


def executor_of(model: Model) -> CudaExecutor:
    return CudaExecutor(model, "float32", HostMachine())


def batch_of(model: Model, lengths: Sequence[int]) -> Batch:
    random = np.random.default_rng(sum(lengths))
    return pack(model.spec, [random.integers(5, model.spec.vocab_size, length).tolist() for length in lengths])


LENGTHS = ([1], [16], [17, 3], [5] * 9, [30, 20], [1] * 40, [60] * 3)  # the last two lie in no bucket


def test_rows_are_the_references_whatever_the_bucket(model: Model) -> None:
    executor = executor_of(model)
    for lengths in LENGTHS:
        batch = batch_of(model, lengths)
        rows = executor.run(batch, "vectors", alone=True)
        assert rows.shape == (len(lengths), model.spec.width)
        assert np.abs(rows - reference.run(model, batch, "vectors")).max() <= TOLERANCE, lengths


def test_states_and_labels_of_tokens_come_one_a_token(model: Model, labelled: Model) -> None:
    batch = batch_of(model, [7, 3])
    states = executor_of(model).run(batch, "states", alone=False)
    assert np.abs(states - reference.run(model, batch, "states")).max() <= TOLERANCE
    labels = executor_of(labelled).run(batch, "labels", alone=False)
    assert labels.shape == (10, 3)
    assert np.abs(labels - reference.run(labelled, batch, "labels")).max() <= TOLERANCE


def test_many_threads_get_their_own_rows(model: Model, num_tracks: int) -> None:
    executor = executor_of(model)
    assert executor.device.num_lanes == 2 * num_tracks
    batches = [batch_of(model, lengths) for lengths in LENGTHS] * 4
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda batch: executor.run(batch, "vectors", alone=False), batches))
    for batch, rows in zip(batches, answers, strict=True):
        assert np.abs(rows - reference.run(model, batch, "vectors")).max() <= TOLERANCE


def test_a_stream_that_idles_is_taken_before_one_that_works(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "SMALL_MODEL", num_parameters(model) + 1)
    executor, used = executor_of(model), []
    launch = executor._launch

    def noted(batch: Batch, output: Output, slot: cuda.Slot) -> tuple[torch.Tensor, Callable[[], None]]:
        used.append(slot.track)
        return launch(batch, output, slot)

    monkeypatch.setattr(executor, "_launch", noted)
    busy = executor._slots.get()[-1].track
    for _ in range(3):
        executor.run(batch_of(model, [3]), "vectors", alone=True)
    assert len(used) == 3
    assert busy not in used


def test_the_rows_of_a_batch_are_its_own_memory(model: Model) -> None:
    executor, batch = executor_of(model), batch_of(model, [9, 9])
    first = executor.run(batch, "vectors", alone=True)
    kept = first.copy()
    for _ in range(4):
        executor.run(batch_of(model, [8, 8]), "vectors", alone=True)
    assert np.array_equal(first, kept)


class Cramped:
    """The model on a device on which more than so many tokens run out of memory. seen: tokens of each forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
        self.seen: list[int] = []
        forward = cuda.CudaModel.forward

        def cramped(network: cuda.CudaModel, words: torch.Tensor, size: Size, output: str) -> torch.Tensor:
            self.seen.append(size.num_tokens)
            if size.num_tokens > limit:
                raise torch.OutOfMemoryError
            return forward(network, words, size, output)

        monkeypatch.setattr(cuda.CudaModel, "forward", cramped)


def test_out_of_memory_halves_the_batch_and_is_not_tried_again(
    model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    executor = executor_of(model)
    cramped = Cramped(monkeypatch, 256)
    batch = batch_of(model, [60] * 16)  # 960 tokens: too many, as are 480; 240 are rounded up to 256
    rows = executor.run(batch, "vectors", alone=True)
    assert np.abs(rows - reference.run(model, batch, "vectors")).max() <= TOLERANCE
    assert cramped.seen == [1024, 512, 256, 256, 256, 256]
    assert "960 tokens did not fit" in caplog.text
    cramped.seen.clear()
    executor.run(batch, "vectors", alone=True)
    assert cramped.seen == [256] * 4


def test_words_of_a_batch_without_memory_are_not_written_over_while_they_are_read(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, waited = executor_of(model), []
    mark = HostStream.mark

    def marked(stream: HostStream) -> Callable[[], None]:
        waited.append("asked")
        return lambda: waited.append("waited") or mark(stream)()

    monkeypatch.setattr(HostStream, "mark", marked)
    Cramped(monkeypatch, 0)
    with pytest.raises(InferenceFailed):
        executor.run(batch_of(model, [60]), "states", alone=True)
    assert waited == ["asked", "waited"]


def test_sizes_that_do_not_fit_are_not_aimed_at(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "TIMED_TOKENS", (32, 64, 1024, 2048))  # the last two are of 8 and 16 texts of 64
    cramped = Cramped(monkeypatch, 256)
    executor = executor_of(model)
    assert executor.device.max_batch_tokens in (32, 64)
    assert max(cramped.seen) == 512  # no more is tried
    assert executor.run(batch_of(model, [60] * 16), "vectors", alone=True).shape == (16, model.spec.width)


def test_a_model_that_leaves_no_room_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "buckets", lambda _: [Size(16, 1)])
    Cramped(monkeypatch, 16)
    with pytest.raises(ConfigError, match="no room for a batch beside the model"):
        executor_of(model)


def test_a_device_that_hangs_is_given_up(model: Model) -> None:
    assert executor_of(model).device.patience_s == cuda.PATIENCE_S


def test_one_sequence_that_does_not_fit_is_an_error_and_the_next_works(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = executor_of(model)
    Cramped(monkeypatch, 0)
    with pytest.raises(InferenceFailed, match="an input of 60 tokens does not fit in the GPU's memory"):
        executor.run(batch_of(model, [60]), "states", alone=True)
    monkeypatch.undo()
    batch = batch_of(model, [60])
    assert np.abs(executor.run(batch, "states", alone=True) - reference.run(model, batch, "states")).max() <= TOLERANCE


def test_an_error_of_the_device_leaves_no_slot_taken(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = executor_of(model)

    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr(cuda.CudaModel, "forward", broken)
        for _ in range(5):  # more than there are slots
            with pytest.raises(RuntimeError, match="illegal memory access"):
                executor.run(batch_of(model, [3]), "vectors", alone=True)
    assert executor.run(batch_of(model, [3]), "vectors", alone=True).shape == (1, model.spec.width)


def test_halves_are_whole_sequences(model: Model) -> None:
    batch = batch_of(model, [3, 1, 4, 1, 5])
    assert [half.num_keys for half in halves(batch)] == [None, None]
    batch = replace(batch, num_keys=np.array([2, 1, 3, 1, 4], np.int32))
    first, second = halves(batch)
    assert first.lengths.tolist() == [3, 1]
    assert second.lengths.tolist() == [4, 1, 5]
    assert first.num_keys is not None
    assert first.num_keys.tolist() == [2, 1]
    for name in ("input_ids", "position_ids", "token_type_ids", "num_keys"):
        assert np.array_equal(np.concatenate((getattr(first, name), getattr(second, name))), getattr(batch, name))


def test_an_example_fills_its_bucket(model: Model) -> None:
    assert example(model.spec, Size(96, 8)).lengths.tolist() == [12] * 8
    assert example(model.spec, Size(512, 1)).lengths.tolist() == [64]  # the model's longest


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_graphs_give_the_references_rows(model: Model, num_tracks: int) -> None:
    executor = CudaExecutor(model, "float32", CudaMachine())
    assert executor.device.num_lanes == 2 * num_tracks
    batches = [batch_of(model, lengths) for lengths in LENGTHS] * 8
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda batch: executor.run(batch, "vectors", alone=False), batches))
    for batch, rows in zip(batches, answers, strict=True):
        assert np.abs(rows - reference.run(model, batch, "vectors")).max() <= 1e-4
