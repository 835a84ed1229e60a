"""The executor of a GPU: recorded launches over buckets of tokens, and two batches in flight.

A batch is laid out in pinned memory, copied to the device, computed by the graph of its bucket (or, where no bucket
holds it, launched kernel by kernel) and copied back, all in the order of one stream. Each of the engine's lanes waits
for its own batch: one is prepared while the other computes, and the device never waits for the host.
Owns memory, graphs and the split of batches that are too large; never touches requests, queues or HTTP.
"""

import logging
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import PriorityQueue

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openbei.config import DType
from openbei.engine.buckets import best_tokens, bucket_of, buckets, loose_size
from openbei.engine.executor import Device
from openbei.engine.machine import CudaMachine, Machine, Stream
from openbei.engine.precision import Precision, choose_precision
from openbei.errors import ConfigError, InferenceFailed
from openbei.model.ops.cuda import CudaModel, Placement
from openbei.model.spec import Batch, Model, ModelSpec, Output, Size, num_parameters, pack

IN_FLIGHT = 2  # one computes, one is prepared
SMALL_MODEL = 150_000_000  # parameters below which one stream leaves a large GPU idle
PINNED_ROWS = 8 << 20  # float32 values of answers; larger ones, states of many tokens, take plain memory
PATIENCE_S = 60.0  # no batch takes a hundredth of it
TIMED_TOKENS = (256, 512, 1024, 2048, 4096, 8192)
TIMED_LENGTH = 128
TIMED_RUNS = 5

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A recorded launch: replay does all of it, rows is where its answer then lies on the device."""

    replay: Callable[[], None]
    rows: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Track:
    """A stream with what its batches share: the words that graphs read, and the right to launch."""

    stream: Stream
    words: Tensor
    graphs: dict[Size, Graph]
    launching: threading.Lock


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """Host memory of one batch in flight, and the track it runs on. words int32, rows float32, both pinned."""

    track: Track
    words: Tensor
    rows: Tensor


def on_gpu(model: Model, dtype: DType, number: int) -> "CudaExecutor":
    """A model -> its executor on one GPU, warmed up. Raises ConfigError if precision or memory is not there."""
    machine = CudaMachine(number)
    return CudaExecutor(model, choose_precision(dtype, model, machine.capability, machine.free_bytes()), machine)


class CudaExecutor:
    """Runs batches on a Machine. A batch that does not fit in memory is halved, and halved again.

    Two streams run at once for small models. What the model is for is recorded at start, for every bucket; other
    outputs are launched kernel by kernel.
    """

    def __init__(self, model: Model, precision: Precision, machine: Machine) -> None:
        dtype = "bfloat16" if precision == "fp8" else precision
        self._model = CudaModel(model, Placement(machine.location, dtype, fp8=precision == "fp8"))
        self._machine = machine
        self._output = model.main_output
        self._is_by_token = model.is_by_token
        self._sizes = buckets(model.spec.max_length)
        self._max_tokens = 1 << 62  # lowered when memory runs out
        num_tracks = 2 if num_parameters(model) < SMALL_MODEL else 1
        tracks = [self._make_track() for _ in range(num_tracks)]
        # A track's second slot is taken only when each track's first is.
        self._slots: PriorityQueue[tuple[int, int, Slot]] = PriorityQueue()
        for place in range(IN_FLIGHT):
            for number, track in enumerate(tracks):
                self._slots.put((place, number, self._make_slot(track)))
        num_lanes = num_tracks * IN_FLIGHT
        self.device = Device(
            f"{machine.name}, {num_tracks} streams", precision, num_lanes, self._measure(), False, PATIENCE_S
        )

    def run(self, batch: Batch, output: Output, alone: bool) -> NDArray[np.float32]:
        """Batch -> rows as Executor says; threads may call it at once. alone makes no difference here.

        Raises InferenceFailed where a single sequence does not fit in memory.
        """
        if batch.num_tokens < self._max_tokens or len(batch.lengths) == 1:
            try:
                return self._run(batch, output)
            except torch.OutOfMemoryError as error:
                self._shrink(batch)
                if len(batch.lengths) == 1:
                    raise InferenceFailed(
                        f"an input of {batch.num_tokens} tokens does not fit in the GPU's memory"
                    ) from error
        first, second = halves(batch)
        return np.concatenate((self.run(first, output, alone), self.run(second, output, alone)))

    def _run(self, batch: Batch, output: Output) -> NDArray[np.float32]:
        taken = self._slots.get()
        slot = taken[-1]
        try:
            rows, wait = self._launch(batch, output, slot)
            wait()
            return rows.numpy().copy()  # the slot is the next batch's from here on
        except torch.OutOfMemoryError:
            slot.track.stream.mark()()  # what was launched until then still reads the slot's words
            raise
        finally:
            self._slots.put(taken)

    def _launch(self, batch: Batch, output: Output, slot: Slot) -> tuple[Tensor, Callable[[], None]]:
        """Write, copy, compute, copy back: all but the writing is only asked of the device."""
        track, num_tokens, num_sequences = slot.track, batch.num_tokens, len(batch.lengths)
        bucket = bucket_of(self._sizes, num_tokens, num_sequences) if output == self._output else None
        size = bucket or loose_size(num_tokens, num_sequences)
        words = self._words(size, slot)
        self._model.write(batch, size, words.numpy())
        with track.launching, track.stream.use():
            if bucket is None:
                answer = self._model.forward(words.to(self._machine.location, non_blocking=True), size, output)
            else:
                graph = track.graphs[bucket]
                track.words[: len(words)].copy_(words, non_blocking=True)
                graph.replay()
                answer = graph.rows
            answer = answer[: num_tokens if self._is_by_token(output) else num_sequences]
            rows = _host_rows(answer, slot)
            rows.copy_(answer, non_blocking=True)
            return rows, track.stream.mark()

    def _words(self, size: Size, slot: Slot) -> Tensor:
        num_words = self._model.num_words(size)
        return slot.words[:num_words] if num_words <= len(slot.words) else self._machine.pinned(num_words, torch.int32)

    def _shrink(self, batch: Batch) -> None:
        """Out of memory: remember the size, free what can be freed."""
        self._max_tokens = min(self._max_tokens, batch.num_tokens)
        free_bytes = self._machine.free_bytes()
        log.warning("%d tokens did not fit in memory (%d MB free)", batch.num_tokens, free_bytes >> 20)

    # Start

    def _make_track(self) -> Track:
        words = torch.empty(max(map(self._model.num_words, self._sizes)), dtype=torch.int32)
        track = Track(self._machine.stream(), words.to(self._machine.location), {}, threading.Lock())
        for size in reversed(self._sizes):  # the largest first: the others fit in its memory
            track.graphs[size] = self._record(track, size)
        return track

    def _record(self, track: Track, size: Size) -> Graph:
        num_words = self._model.num_words(size)
        words = torch.empty(num_words, dtype=torch.int32)
        self._model.write(example(self._model.spec, size), size, words.numpy())
        static = track.words[:num_words]
        with track.stream.use():
            static.copy_(words)
        return Graph(*track.stream.record(lambda: self._model.forward(static, size, self._output)))

    def _make_slot(self, track: Track) -> Slot:
        words = self._machine.pinned(len(track.words), torch.int32)
        return Slot(track, words, self._machine.pinned(PINNED_ROWS, torch.float32))

    def _measure(self) -> int:
        """The size of batch that nearly reaches the best rate, in tokens, of those that fit."""
        seconds: dict[int, float] = {}
        for num_tokens in TIMED_TOKENS:
            batch = example(self._model.spec, Size(num_tokens, -(-num_tokens // TIMED_LENGTH)))
            try:
                seconds[batch.num_tokens] = self._timed(batch)
            except torch.OutOfMemoryError:
                self._shrink(batch)
                break
        if not seconds:
            raise ConfigError("the GPU has no room for a batch beside the model")
        return best_tokens(seconds)

    def _timed(self, batch: Batch) -> float:
        self._run(batch, self._output)
        runs = []
        for _ in range(TIMED_RUNS):
            begin_s = time.perf_counter()
            self._run(batch, self._output)
            runs.append(time.perf_counter() - begin_s)
        return statistics.median(runs)


def example(spec: ModelSpec, size: Size) -> Batch:
    """A batch of random tokens that fills a size, as far as the model's longest sequence allows."""
    random = np.random.default_rng(size.num_tokens)
    length = min(size.num_tokens // size.num_sequences, spec.max_length)
    return pack(spec, random.integers(0, spec.vocab_size, (size.num_sequences, length)).tolist())


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """A batch of two sequences or more -> its first and its second half, by sequences."""
    middle = len(batch.lengths) // 2
    row, num_keys = int(batch.cu_seqlens[middle]), batch.num_keys
    first = Batch(
        batch.input_ids[:row],
        batch.position_ids[:row],
        batch.token_type_ids[:row],
        batch.cu_seqlens[: middle + 1],
        None if num_keys is None else num_keys[:middle],
    )
    second = Batch(
        batch.input_ids[row:],
        batch.position_ids[row:],
        batch.token_type_ids[row:],
        batch.cu_seqlens[middle:] - row,
        None if num_keys is None else num_keys[middle:],
    )
    return first, second


def _host_rows(answer: Tensor, slot: Slot) -> Tensor:
    """Pinned memory for an answer, or plain memory where it is too large."""
    if answer.numel() > len(slot.rows):
        return torch.empty(answer.shape, dtype=torch.float32)
    return slot.rows[: answer.numel()].view(answer.shape)
