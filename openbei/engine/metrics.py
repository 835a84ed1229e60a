"""Every metric of openbei, declared once with TEI's exact names, and their Prometheus text.

Owns the counts, the buckets and the text format (version 0.0.4); never touches HTTP, batches or tensors. The counts lie
on a Board (board.py), so that each of the processes that serve one port can tell what all of them counted. The text is
written here and not by prometheus_client, because that library puts `_total` behind every counter's name while TEI's
dashboards ask for the bare one. All methods may be called from any thread.
"""

import math
import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import NamedTuple

from openbei.engine.board import Board, Cells
from openbei.engine.request import Request, Result
from openbei.errors import EmptyInput, answer

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

METHODS = ("single", "batch")
FAILURES = (
    "validation",
    "batch_size",
    "overloaded",
    "tokenization",
    "inference",
    "model_type",
    "dropped",
    "missing_values",
)

DURATION_BUCKETS = tuple(1e-5 * 1.5**k for k in range(1, 36))  # seconds: 1.5e-5 to 14.56
STEPS = ("", "_tokenization", "_queue", "_inference")


class InputTimes(NamedTuple):
    """Where the time of one input went, in seconds, and its tokens after truncation."""

    tokenization_s: float
    queue_s: float
    inference_s: float
    total_s: float
    num_tokens: int

    @property
    def steps(self) -> tuple[float, float, float, float]:
        """Seconds in the order of STEPS: total, tokenization, queue, inference."""
        return self.total_s, self.tokenization_s, self.queue_s, self.inference_s


class Counter:
    """A number that only grows, one for each value of its label (or a single one without)."""

    kind = "counter"

    def __init__(self, cells: Cells, name: str, text: str, label: str = "", values: Sequence[str] = ("",)) -> None:
        self.name, self.text, self.label = name, text, label
        self._cells = cells.next(len(values))
        self._places = {value: place for place, value in enumerate(values)}

    def add(self, count: int = 1, value: str = "") -> None:
        """Count more of one label value."""
        self._cells.own[self._places[value]] += count

    def samples(self) -> Iterator[tuple[str, float]]:
        """Series name with its label -> its number, of all processes."""
        for value, total in zip(self._places, self._cells.totals(), strict=True):
            yield self.name + (f'{{{self.label}="{value}"}}' if self.label else ""), total


class Gauge:
    """A number as it is now."""

    kind = "gauge"

    def __init__(self, cells: Cells, name: str, text: str) -> None:
        self.name, self.text = name, text
        self._cells = cells.next(1)

    def set(self, value: float) -> None:
        """Note the number of this process."""
        self._cells.own[0] = value

    def samples(self) -> Iterator[tuple[str, float]]:
        """The one series and its number now, of all processes."""
        yield self.name, self._cells.totals()[0]


class Histogram:
    """How many observations were at most each bound, their number and their sum."""

    kind = "histogram"

    def __init__(self, cells: Cells, name: str, text: str, bounds: Sequence[float]) -> None:
        self.name, self.text, self.bounds = name, text, tuple(bounds)
        self._cells = cells.next(len(self.bounds) + 2)  # one a bucket, the last without bound; then the sum

    @property
    def sum(self) -> float:
        """The sum of what this process observed."""
        return self._cells.own[-1]

    def observe(self, value: float) -> None:
        """Count one value in the first bucket whose bound it does not exceed."""
        own = self._cells.own
        own[bisect_left(self.bounds, value)] += 1
        own[-1] += value

    def samples(self) -> Iterator[tuple[str, float]]:
        """The cumulative buckets, the sum and the count, of all processes."""
        *counts, total_sum = self._cells.totals()
        total = 0.0
        for bound, count in zip((*self.bounds, math.inf), counts, strict=True):
            total += count
            yield f'{self.name}_bucket{{le="{number(bound)}"}}', total
        yield f"{self.name}_sum", total_sum
        yield f"{self.name}_count", total


Metric = Counter | Gauge | Histogram


class Metrics:
    """What the engine counts. Times are seconds, lengths are tokens.

    max_input_length: tokens, ends the buckets of te_request_input_length. board: where the numbers lie; every process
    that shares one must be given the same max_input_length.
    """

    def __init__(self, max_input_length: int, board: Board | None = None) -> None:
        self._lock = threading.Lock()
        cells = (board or Board()).cells()
        lengths = [2**k for k in range(20) if 2**k <= max_input_length]
        self.request_count = Counter(cells, "te_request_count", "Requests begun", "method", METHODS)
        self.request_success = Counter(cells, "te_request_success", "Requests answered", "method", METHODS)
        self.request_failure = Counter(cells, "te_request_failure", "Requests failed", "err", FAILURES)
        self.embed_count = Counter(cells, "te_embed_count", "Inputs to embed begun")
        self.embed_success = Counter(cells, "te_embed_success", "Inputs embedded")
        self.predict_count = Counter(cells, "te_predict_count", "Inputs to predict or rerank begun")
        self.predict_success = Counter(cells, "te_predict_success", "Inputs predicted or reranked")
        self.queue_size = Gauge(cells, "te_queue_size", "Inputs waiting")
        self.queue_tokens = Gauge(cells, "openbei_queue_tokens", "Tokens of the inputs waiting")
        self.request_times = durations(
            cells, "te_request", "a request that was answered; of its steps, the mean of its inputs"
        )
        self.embed_times = durations(cells, "te_embed", "one input that was embedded")
        self.predict_times = durations(cells, "te_predict", "one input that was predicted or reranked")
        self.input_length = Histogram(cells, "te_request_input_length", "Tokens of an input after truncation", lengths)
        self.batch_size = Histogram(cells, "te_batch_next_size", "Inputs in a batch", [2**k for k in range(13)])
        self.batch_tokens = Histogram(cells, "te_batch_next_tokens", "Tokens in a batch", [2**k for k in range(21)])

    def begun(self, request: Request) -> None:
        """Count a request and its inputs, before anything is checked."""
        with self._lock:
            self.request_count.add(value=method(request))
            (self.embed_count if embeds(request) else self.predict_count).add(len(request.inputs))

    def succeeded(self, request: Request, result: Result, inputs: Sequence[InputTimes]) -> None:
        """Count an answered request with its times, and each input with its own."""
        times = result.timings
        request_steps = (times.total_s, times.tokenization_s, times.queue_s, times.inference_s)
        success = self.embed_success if embeds(request) else self.predict_success
        histograms = self.embed_times if embeds(request) else self.predict_times
        with self._lock:
            self.request_success.add(value=method(request))
            success.add(len(inputs))
            observe_all(self.request_times, request_steps)
            for one in inputs:
                observe_all(histograms, one.steps)
                self.input_length.observe(one.num_tokens)

    def failed(self, request: Request, error: BaseException | None) -> None:
        """Count a failed request under TEI's word for the error, None for one whose client is gone.

        What TEI has no word for is not counted.
        """
        err = failure(request, error)
        if err is not None:
            with self._lock:
                self.request_failure.add(value=err)

    def batch_formed(self, num_inputs: int, num_tokens: int) -> None:
        """Count a batch that is about to run."""
        with self._lock:
            self.batch_size.observe(num_inputs)
            self.batch_tokens.observe(num_tokens)

    def render(self) -> bytes:
        """All metrics -> Prometheus text, UTF-8.

        Takes no lock: other processes count meanwhile anyhow, and each number is written at once.
        """
        return "".join(map(exposition, self.all())).encode()

    def all(self) -> Iterator[Metric]:
        """Every metric, in the order of their declaration."""
        for entry in vars(self).values():
            if isinstance(entry, Metric):
                yield entry
            elif isinstance(entry, tuple):
                yield from entry


def durations(cells: Cells, prefix: str, what: str) -> tuple[Histogram, ...]:
    """One histogram of seconds for each of STEPS."""
    names = [f"{prefix}{step}_duration" for step in STEPS]
    return tuple(Histogram(cells, name, f"Seconds of {what}", DURATION_BUCKETS) for name in names)


def observe_all(histograms: Iterable[Histogram], values: Iterable[float]) -> None:
    """Each histogram observes its value."""
    for histogram, value in zip(histograms, values, strict=True):
        histogram.observe(value)


def method(request: Request) -> str:
    """TEI's label: one input is single, any other number is batch, and so is all reranking."""
    return "single" if len(request.inputs) == 1 and request.task != "rerank" else "batch"


def embeds(request: Request) -> bool:
    """True for the tasks that te_embed_* count; te_predict_* count the others."""
    return request.task in ("embed", "embed_tokens", "embed_sparse", "embed_multi")


def failure(request: Request, error: BaseException | None) -> str | None:
    """Error -> its `err` label; TEI counts an empty text among texts as tokenization, an empty list as validation."""
    if error is None or isinstance(error, CancelledError):
        return "dropped"
    if isinstance(error, EmptyInput) and len(request.inputs) > 0:
        return "tokenization"
    return answer(error).metric


def render_all(models: Mapping[str, Metrics]) -> bytes:
    """The metrics of several models by name -> Prometheus text, UTF-8: the label `model` says whose a series is."""
    columns = zip(*(metrics.all() for metrics in models.values()), strict=True)
    return "".join(exposition(*column, names=list(models)) for column in columns).encode()


def exposition(*metrics: Metric, names: Sequence[str] = ("",)) -> str:
    """The same metric of each model -> its HELP, TYPE and sample lines; no label for the model without a name."""
    first = metrics[0]
    lines = [f"# HELP {first.name} {first.text}.", f"# TYPE {first.name} {first.kind}"]
    for metric, model in zip(metrics, names, strict=True):
        lines += [f"{labelled(name, model)} {number(value)}" for name, value in metric.samples()]
    return "\n".join(lines) + "\n"


def labelled(series: str, model: str) -> str:
    """A series -> the same with a label for the model, if it has a name."""
    if not model:
        return series
    escaped = model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    name, _, labels = series.partition("{")
    return f'{name}{{model="{escaped}"' + (f",{labels}" if labels else "}")


def number(value: float) -> str:
    """A number as Prometheus writes it: infinity is +Inf, whole numbers have no point."""
    if value == math.inf:
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(value)
