"""An engine over a fake executor and a fake clock: one word is one token, and a test says when a batch is done."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from threading import Event

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from openbei.config import EngineConfig
from openbei.engine.admission import Admission
from openbei.engine.core import LocalCore
from openbei.engine.engine import Engine
from openbei.engine.executor import Device, Output
from openbei.engine.metrics import Metrics
from openbei.engine.settle import Served
from openbei.engine.start import start_core
from openbei.model.spec import Batch, Embedding, Model, ModelSpec, Norm, Weights
from openbei.weights.checkpoint import Checkpoint, Labels, TextSpec

WAIT_S = 60
WIDTH = 4
VOCAB_SIZE = 50
SPEC = ModelSpec("fake", VOCAB_SIZE, WIDTH, 0, 1, 1, WIDTH, WIDTH, 1e-12, "gelu", 100, num_segments=2)
NOTHING = np.zeros((1, 1), np.float32)
MODEL = Model(SPEC, Weights(Embedding(NOTHING, NOTHING, None, Norm(NOTHING, NOTHING)), ()), "mean")


def checkpoint(
    folder: Path, max_length: int = 100, prompts: dict[str, str] | None = None, labels: Labels | None = None
) -> Checkpoint:
    """A model whose words w0 to w49 are the tokens 0 to 49."""
    words = {f"w{i}": i for i in range(VOCAB_SIZE)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A:0 $B:1", special_tokens=[])
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(tokenizer.to_str())))
    return Checkpoint("fake/model", None, folder, MODEL, TextSpec(file, max_length, prompts or {}), labels)


def words(count: int, word: int = 1) -> str:
    """A text of `count` tokens, all the same."""
    return " ".join([f"w{word}"] * count)


@dataclass(eq=False)
class Run:
    """A batch that the engine handed to the executor and waits for."""

    batch: Batch
    output: Output
    alone: bool
    done: Event = field(default_factory=Event)
    error: Exception | None = None
    answer: NDArray[np.float32] | None = None

    @property
    def lengths(self) -> list[int]:
        return sorted(self.batch.lengths.tolist())

    def finish(self) -> None:
        self.done.set()

    def fail(self, error: Exception) -> None:
        self.error = error
        self.done.set()


class FakeExecutor:
    """Answers each sequence with (first token, its length, 0, 0), and each token with (id, type id, 0, 0).

    Labels are the first of these numbers, as many as there are names. A Run is answered when a test finishes it.
    """

    def __init__(self, device: Device, started: "Queue[Run]", labels: Labels | None) -> None:
        self.device = device
        self.started, self.labels = started, labels
        self.runs: list[Run] = []

    def run(self, batch: Batch, output: Output, alone: bool) -> NDArray[np.float32]:
        run = Run(batch, output, alone)
        self.runs.append(run)
        self.started.put(run)
        assert run.done.wait(WAIT_S)
        if run.error is not None:
            raise run.error
        return self.rows(batch, output) if run.answer is None else run.answer

    def rows(self, batch: Batch, output: Output) -> NDArray[np.float32]:
        if output == "states" or (self.labels is not None and self.labels.per_token):
            first, second = batch.input_ids, batch.token_type_ids
        else:
            first, second = batch.input_ids[batch.cu_seqlens[:-1]], batch.lengths
        rows = np.zeros((len(first), WIDTH), np.float32)
        rows[:, 0], rows[:, 1] = first, second
        return rows[:, : len(self.labels.names)] if output == "labels" and self.labels else rows


class SlowToMend:
    """For harness' make: the first executor comes at once, any other when a test lets it."""

    def __init__(self) -> None:
        self.may_mend, self.num_made = Event(), 0

    def __call__(self, plain: Callable[[], FakeExecutor]) -> FakeExecutor:
        assert self.num_made == 0 or self.may_mend.wait(WAIT_S)
        self.num_made += 1
        return plain()


class FakeClock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Harness:
    """An engine with the handles that a test moves."""

    engine: Engine
    core: LocalCore
    started: "Queue[Run | None]"  # None: a test tells its own helper thread to stop
    clock: FakeClock

    def next_run(self) -> Run:
        return self.started.get(timeout=WAIT_S)

    def close(self) -> None:
        """Drop what still waits, let what runs finish, and stop the lanes."""
        self.engine.drain()
        with self.core._changed:
            self.core._queue.clear()
            self.core._closed = True
        executor = vars(self.core).get("_executor")  # none while it is being mended
        for run in executor.runs if executor else ():
            run.finish()
        self.core.close()

    def idle(self) -> bool:
        return self.started.empty()

    def wait_for_queue(self, length: int) -> None:
        with self.core._changed:
            assert self.core._changed.wait_for(lambda: len(self.core._queue) == length, WAIT_S)

    def wait_for_admitted(self, count: int) -> None:
        """Until the core knows of as many inputs that are neither answered nor cancelled."""
        admission = self.core.admission
        with admission._changed:
            assert admission._changed.wait_for(lambda: admission.num_taken == count, WAIT_S)

    def wait_until_ready(self) -> None:
        wait_until_ready(self.engine._core.admission)


def wait_until_ready(admission: Admission) -> None:
    with admission._changed:
        assert admission._changed.wait_for(lambda: admission.status == "ready", WAIT_S)


Wire = Callable[[LocalCore, Served, Metrics, FakeClock], Engine]


def here(core: LocalCore, served: Served, metrics: Metrics, clock: FakeClock) -> Engine:
    """Both halves of an engine in one process."""
    return Engine(served, core, metrics, clock)


def harness(
    folder: Path,
    *,
    num_lanes: int = 1,
    lane_tokens: int = 10,
    labels: Labels | None = None,
    divided: bool = True,
    patience_s: float | None = None,
    make: Callable[[Callable[[], FakeExecutor]], FakeExecutor] | None = None,
    wire: Wire = here,
    **config: object,
) -> Harness:
    """An engine with num_lanes lanes of lane_tokens tokens; make may wrap how an executor comes to be.

    wire: how the half that reads requests is joined to the half that computes.
    """
    started: Queue[Run] = Queue()
    clock = FakeClock()

    def plain() -> FakeExecutor:
        return FakeExecutor(Device("fake", "float32", num_lanes, lane_tokens, divided, patience_s), started, labels)

    prompts = config.pop("prompts", None)
    source = checkpoint(folder, int(config.pop("max_length", 100)), prompts, labels)
    engine_config, metrics = EngineConfig(**config), Metrics(source.text.max_length)
    core, served = start_core(source, engine_config, (lambda: make(plain)) if make else plain, metrics, clock)
    return Harness(wire(core, served, metrics, clock), core, started, clock)
