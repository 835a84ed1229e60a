"""Every metric of the contract by name, type, label and bucket, and what each event counts."""

import asyncio
from concurrent.futures import CancelledError

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from openbei import errors
from openbei.engine.metrics import Metrics
from openbei.engine.request import Request, Result
from tests.server.fakes import TIMES, FakeEngine

STEPS = ("duration", "tokenization_duration", "queue_duration", "inference_duration")
COUNTERS = {
    *("te_request_count", "te_request_success", "te_request_failure"),
    *("te_embed_count", "te_embed_success", "te_predict_count", "te_predict_success"),
}
HISTOGRAMS = {
    *(f"te_{what}_{step}" for what in ("request", "embed", "predict") for step in STEPS),
    *("te_request_input_length", "te_batch_next_size", "te_batch_next_tokens"),
}

ONE, TWO = Request(inputs=["a"]), Request(inputs=["a", "b"])


def families(metrics: Metrics) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}


def values(metrics: Metrics) -> dict[str, float]:
    """Series -> number. The parser puts the `_total` behind counters that the text does not have; it is cut again."""
    return {
        " ".join([sample.name.removesuffix("_total"), *sample.labels.values()]): sample.value
        for family in families(metrics).values()
        for sample in family.samples
    }


def bounds(family: Metric) -> list[float]:
    return [float(sample.labels["le"]) for sample in family.samples if sample.name.endswith("_bucket")]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(512)


def answered(metrics: Metrics, request: Request) -> None:
    result: Result = FakeEngine().submit(request).result()
    metrics.begun(request)
    metrics.succeeded(request, result, [TIMES] * len(request.inputs))


def test_names_and_types(metrics: Metrics) -> None:
    kinds = {name: family.type for name, family in families(metrics).items()}
    assert {name for name, kind in kinds.items() if kind == "counter"} == COUNTERS
    assert {name for name, kind in kinds.items() if kind == "histogram"} == HISTOGRAMS
    assert {name for name, kind in kinds.items() if kind == "gauge"} == {"te_queue_size", "openbei_queue_tokens"}
    assert "_total" not in metrics.render().decode()


def test_buckets(metrics: Metrics) -> None:
    made = families(metrics)
    for name in HISTOGRAMS:
        if name.endswith("duration"):
            edges = bounds(made[name])
            assert len(edges) == 36
            assert (edges[0], edges[34], edges[35]) == (
                pytest.approx(1.5e-5),
                pytest.approx(14.56, abs=0.01),
                float("inf"),
            )
    assert bounds(made["te_request_input_length"]) == [*(2**k for k in range(10)), float("inf")]
    assert bounds(made["te_batch_next_size"]) == [*(2**k for k in range(13)), float("inf")]
    assert bounds(made["te_batch_next_tokens"]) == [*(2**k for k in range(21)), float("inf")]


@pytest.mark.parametrize(("limit", "last"), [(511, 256), (512, 512), (10**7, 2**19)])
def test_input_length_buckets_end_at_the_limit(limit: int, last: int) -> None:
    assert bounds(families(Metrics(limit))["te_request_input_length"])[-2] == last


def test_labels_are_there_before_anything_happens(metrics: Metrics) -> None:
    labels = {
        name: {tuple(sample.labels.items()) for sample in family.samples}
        for name, family in families(metrics).items()
        if family.type == "counter"
    }
    methods = {(("method", "single"),), (("method", "batch"),)}
    words = ["validation", "batch_size", "overloaded", "tokenization", "inference", "model_type"]
    assert labels["te_request_count"] == labels["te_request_success"] == methods
    assert labels["te_request_failure"] == {(("err", word),) for word in [*words, "dropped", "missing_values"]}
    assert labels["te_embed_count"] == labels["te_predict_success"] == {()}


def test_an_answer_counts_its_request_and_its_inputs(metrics: Metrics) -> None:
    answered(metrics, ONE)
    answered(metrics, TWO)
    seen = values(metrics)
    assert (seen["te_request_count single"], seen["te_request_count batch"]) == (1, 1)
    assert (seen["te_request_success single"], seen["te_request_success batch"]) == (1, 1)
    assert (seen["te_embed_count"], seen["te_embed_success"]) == (3, 3)
    assert seen["te_predict_count"] == 0
    for step, seconds in zip(STEPS, TIMES.steps, strict=True):
        assert seen[f"te_request_{step}_count"] == 2
        assert seen[f"te_request_{step}_sum"] == pytest.approx(2 * seconds)
        assert seen[f"te_embed_{step}_count"] == 3
        assert seen[f"te_embed_{step}_sum"] == pytest.approx(3 * seconds)
        assert seen[f"te_predict_{step}_count"] == 0
    assert seen["te_request_input_length_sum"] == 9
    assert (seen["te_request_input_length_bucket 2"], seen["te_request_input_length_bucket 4"]) == (0, 3)


def test_a_value_on_a_bound_is_within_it(metrics: Metrics) -> None:
    metrics.batch_formed(4, 5)
    metrics.batch_formed(8192, 1)
    seen = values(metrics)
    assert (seen["te_batch_next_size_bucket 2"], seen["te_batch_next_size_bucket 4"]) == (0, 1)
    assert (seen["te_batch_next_size_bucket 4096"], seen["te_batch_next_size_bucket +Inf"]) == (1, 2)
    assert (seen["te_batch_next_tokens_sum"], seen["te_batch_next_tokens_count"]) == (6, 2)


@pytest.mark.parametrize(
    ("request_", "error", "word"),
    [
        (Request(inputs=[]), errors.EmptyInput("x"), "validation"),
        (TWO, errors.EmptyInput("x"), "tokenization"),
        (TWO, errors.InvalidInput("x"), "validation"),
        (TWO, errors.BatchTooLarge("x"), "batch_size"),
        (TWO, errors.TooLong("x"), "tokenization"),
        (TWO, errors.TokenizerFailed("x"), "tokenization"),
        (TWO, errors.WrongTask("x"), "model_type"),
        (TWO, errors.InferenceFailed("x"), "inference"),
        (TWO, errors.Overloaded(), "overloaded"),
        (TWO, CancelledError(), "dropped"),
        (TWO, None, "dropped"),
        (TWO, errors.Unhealthy(), None),
        (TWO, errors.DeadlineExceeded("x"), None),
        (TWO, ZeroDivisionError(), None),
    ],
)
def test_failures(metrics: Metrics, request_: Request, error: BaseException | None, word: str | None) -> None:
    metrics.failed(request_, error)
    failures = {name.split()[1]: count for name, count in values(metrics).items() if "failure" in name}
    assert {name for name, count in failures.items() if count} == ({word} if word else set())


def test_counting_from_many_threads_loses_nothing(metrics: Metrics) -> None:
    async def count() -> None:
        await asyncio.gather(*(asyncio.to_thread(lambda: [metrics.begun(TWO) for _ in range(2000)]) for _ in range(4)))

    asyncio.run(count())
    assert values(metrics)["te_embed_count"] == 16000


def test_the_queue_is_told_as_it_is_now(metrics: Metrics) -> None:
    for size in (7, 3):
        metrics.queue_size.set(size)
        assert values(metrics)["te_queue_size"] == size
