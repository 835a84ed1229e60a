"""Level 7 for the tasks beside embed: what each asks of the executor and makes of its rows. Exact, nothing sleeps."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from openbei.engine.request import Chat, Input, Kind, Options, Pair, Request, Result, Task
from openbei.engine.tokenizer import Tokenizer
from openbei.errors import (
    BatchTooLarge,
    EmptyInput,
    InferenceFailed,
    InvalidInput,
    RequestError,
    UnknownPrompt,
    WrongTask,
)
from openbei.weights.checkpoint import Labels
from tests.engine.conftest import Make
from tests.engine.fakes import VOCAB_SIZE, WAIT_S, Harness, words

LABELS: dict[Kind, Labels | None] = {
    "embedding": None,
    "classifier": Labels(("bad", "good"), "softmax"),
    "reranker": Labels(("relevance",), "sigmoid", reranker=True),
    "token_classifier": Labels(("O", "B-PER", "I-PER"), "softmax", per_token=True),
}
CHAT = Chat([{"role": "user", "content": "w1"}])
REWARD = Labels(("reward",), "identity")


def submit(house: Harness, task: Task, *inputs: Input, **options: Any) -> Future[Result]:
    return house.engine.submit(Request(inputs=inputs, task=task, options=Options(**options)))


def answer(house: Harness, task: Task, *inputs: Input, **options: Any) -> Result:
    """The result of a request that fits into one batch."""
    future = submit(house, task, *inputs, **options)
    house.next_run().finish()
    return future.result(WAIT_S)


def finishing(house: Harness, call: Callable[[], Any]) -> Any:
    """What a blocking call returns while every batch is finished at once."""

    def finish_all() -> None:
        while (run := house.started.get(timeout=WAIT_S)) is not None:
            run.finish()

    worker = threading.Thread(target=finish_all)
    worker.start()
    try:
        return call()
    finally:
        house.started.put(None)
        worker.join(WAIT_S)


def test_embed_tokens_answers_one_row_a_token_in_input_order(make: Make) -> None:
    result = answer(make(), "embed_tokens", "w5 w6 w7", "w8", [9, 4])
    assert [rows[:, 0].tolist() for rows in result.rows] == [[5, 6, 7], [8], [9, 4]]
    assert {rows.shape[1] for rows in result.rows} == {4}
    assert {rows.dtype for rows in result.rows} == {np.dtype(np.float32)}
    assert result.usage.num_tokens == 6


def test_embed_tokens_counts_the_prompt_and_what_is_left_after_the_cut(make: Make) -> None:
    house = make(max_length=3, prompts={"query": "w9 "})
    (rows,) = answer(house, "embed_tokens", "w1 w2 w3 w4", prompt_name="query").rows
    assert rows[:, 0].tolist() == [9, 1, 2]


def test_the_oldest_decides_what_a_batch_computes(make: Make) -> None:
    house = make()
    submit(house, "embed", words(1))
    blocker = house.next_run()
    for task in ("embed_tokens", "embed", "embed_tokens", "embed"):
        submit(house, task, words(2))
    house.wait_for_queue(4)
    blocker.finish()
    seen = []
    for _ in range(2):
        run = house.next_run()
        seen.append((run.output, run.lengths))
        run.finish()
    assert seen == [("states", [2, 2]), ("vectors", [2, 2])]


def test_classify_and_rerank_share_a_batch(make: Make) -> None:
    house = make(labels=LABELS["reranker"])
    submit(house, "classify", words(1))
    blocker = house.next_run()
    futures = [submit(house, "rerank", Pair("w1", "w2")), submit(house, "classify", "w3 w4")]
    house.wait_for_queue(2)
    blocker.finish()
    run = house.next_run()
    assert (run.output, run.lengths) == ("labels", [2, 2])
    run.finish()
    assert [future.result(WAIT_S).rows.shape for future in futures] == [(1,), (1, 1)]


def sigmoid(value: float) -> float:
    return float(1 / (1 + np.exp(-value)))


@pytest.mark.parametrize(
    ("activation", "raw_scores", "want"),
    [
        ("softmax", False, [1 / (1 + np.e), np.e / (1 + np.e)]),
        ("sigmoid", False, [sigmoid(1), sigmoid(2)]),
        ("identity", False, [1, 2]),
        ("softmax", True, [1, 2]),
        ("sigmoid", True, [1, 2]),
    ],
)
def test_classify_activates_as_the_labels_say(make: Make, activation: Any, raw_scores: bool, want: list[float]) -> None:
    house = make(labels=Labels(("bad", "good"), activation))
    result = answer(house, "classify", "w1 w1", Pair("w1", "w1"), raw_scores=raw_scores)
    assert np.allclose(result.rows, [want, want], atol=1e-7)
    assert result.rows.dtype == np.float32


def test_rerank_answers_one_score_a_pair_and_counts_pairs_whole(make: Make) -> None:
    house = make(labels=LABELS["reranker"])
    result = answer(house, "rerank", Pair("w1 w2", "w3"), Pair("w4", "w5 w6 w7"))
    assert np.allclose(result.rows, [sigmoid(1), sigmoid(4)], atol=1e-7)
    assert result.usage.num_tokens == 7
    assert result.usage.num_characters == len("w1 w2w3w4w5 w6 w7")


def test_a_pair_reaches_the_executor_with_its_types_beside_single_texts(make: Make) -> None:
    house = make(labels=LABELS["classifier"])
    submit(house, "classify", "w9", Pair("w1 w2", "w3"))
    batch = house.next_run().batch
    assert batch.input_ids.tolist() == [9, 1, 2, 3]
    assert batch.token_type_ids.tolist() == [0, 0, 0, 1]


def test_classify_tokens_tells_probabilities_and_what_each_token_stands_for(make: Make) -> None:
    result = answer(make(labels=LABELS["token_classifier"]), "classify_tokens", "w3  w2", "w1")
    assert np.allclose(result.rows[1], np.exp([[1, 0, 0]]) / (np.e + 2), atol=1e-7)
    assert [rows.shape for rows in result.rows] == [(2, 3), (1, 3)]
    assert [[(token.id, token.text, token.start, token.end) for token in tokens] for tokens in result.tokens] == [
        [(3, "w3", 0, 2), (2, "w2", 4, 6)],
        [(1, "w1", 0, 2)],
    ]
    assert not any(token.continues or token.special for tokens in result.tokens for token in tokens)
    raw = answer(make(labels=LABELS["token_classifier"]), "classify_tokens", "w3 w2", raw_scores=True)
    assert raw.rows[0].tolist() == [[3, 0, 0], [2, 0, 0]]


@pytest.mark.parametrize(("direction", "want"), [("right", ["w1", "w2"]), ("left", ["w2", "w3"])])
def test_tokens_of_a_text_that_was_cut(make: Make, direction: Any, want: list[str]) -> None:
    house = make(labels=LABELS["token_classifier"], max_length=2)
    text = f"w1 w2{' ' * 600}w3"
    (tokens,) = answer(house, "classify_tokens", text, truncation_direction=direction).tokens
    kept = ["w1", "w2"] if direction == "right" else ["w3"]  # 500 characters, then 2 tokens
    assert [token.text for token in tokens] == kept
    assert [text[token.start : token.end] for token in tokens] == kept
    (tokens,) = answer(house, "classify_tokens", "w1 w2 w3", truncation_direction=direction).tokens
    assert [token.text for token in tokens] == want


TASKS: tuple[Task, ...] = ("embed", "embed_tokens", "classify", "rerank", "classify_tokens")


@pytest.mark.parametrize(
    ("labels", "can"),
    [
        (LABELS["embedding"], {"embed", "embed_tokens"}),
        (LABELS["classifier"], {"classify"}),
        (LABELS["reranker"], {"classify", "rerank"}),
        (REWARD, {"classify", "rerank"}),
        (LABELS["token_classifier"], {"classify_tokens"}),
    ],
)
def test_a_model_does_what_its_kind_can_and_refuses_the_rest(make: Make, labels: Labels | None, can: set[str]) -> None:
    house = make(labels=labels)
    for task in TASKS:
        if task in can:
            answer(house, task, "w1")
        else:
            number = "" if labels is None else f" of {len(labels.names)} label{'' if len(labels.names) == 1 else 's'}:"
            with pytest.raises(WrongTask, match=f"{number} .*not {task}"):
                submit(house, task, "w1")


@pytest.mark.parametrize(
    ("inputs", "error"),
    [
        ((), EmptyInput),
        (("w1",) * 4, WrongTask),
    ],
)
def test_an_empty_list_comes_before_the_task_and_the_task_before_the_size(
    make: Make, inputs: tuple[str, ...], error: type[RequestError]
) -> None:
    with pytest.raises(error):
        submit(make(max_client_batch_size=3), "rerank", *inputs)


@pytest.mark.parametrize(
    ("kind", "task", "inputs", "options", "error"),
    [
        ("reranker", "rerank", (Pair("w1", "w2"),) * 4, {}, BatchTooLarge),
        ("reranker", "rerank", (Pair("", "w2"), Pair("", "")), {}, EmptyInput),
        ("reranker", "rerank", (Pair("w1", "w2"),), {"prompt_name": "query"}, UnknownPrompt),
        ("classifier", "classify", ("w1",), {"prompt_name": "nope"}, UnknownPrompt),
        ("classifier", "classify", ([VOCAB_SIZE],), {}, InvalidInput),
        ("token_classifier", "classify_tokens", ([1],), {}, InvalidInput),
        ("token_classifier", "classify_tokens", (Pair("w1", "w2"),), {}, InvalidInput),
        ("token_classifier", "classify_tokens", ("w1",), {"prompt_name": "query"}, UnknownPrompt),
        ("embedding", "embed_tokens", ("",), {}, EmptyInput),
        ("embedding", "embed", (CHAT,), {}, InvalidInput),
        ("reranker", "rerank", (CHAT,), {}, InvalidInput),
        ("classifier", "classify", (CHAT,), {"prompt_name": "query"}, UnknownPrompt),
        ("classifier", "classify", (Chat([{"role": "user", "content": ""}]),), {}, EmptyInput),
    ],
)
def test_bad_input_is_refused_at_once(
    make: Make, kind: Kind, task: Task, inputs: Any, options: Any, error: type[RequestError]
) -> None:
    house = make(labels=LABELS[kind], max_client_batch_size=3, prompts={"query": "w9 "})
    with pytest.raises(error):
        submit(house, task, *inputs, **options)
    assert house.core.admission.num_taken == 0


def test_a_pair_with_one_empty_side_is_answered(make: Make) -> None:
    house = make(labels=LABELS["reranker"])
    assert answer(house, "rerank", Pair("", "w2"), Pair("w2", "")).usage.num_tokens == 2


def test_the_default_prompt_is_for_single_texts_only(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    for kind, task, inputs, lengths in (
        ("classifier", "classify", ("w1", Pair("w1", "w2")), [2, 2]),
        ("token_classifier", "classify_tokens", ("w1",), [1]),
        ("embedding", "embed_tokens", ("w1",), [2]),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            house = make(labels=LABELS[kind], default_prompt="w9 ")
        assert ("default prompt" in caplog.text) is (kind != "embedding")
        submit(house, task, *inputs)
        run = house.next_run()
        assert run.lengths == lengths
        run.finish()


def test_the_template_of_a_chat_never_runs_on_the_callers_thread(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a program that came with the model, and the caller may be the event loop. A short text runs there."""
    threads, encode = [], Tokenizer.encode
    monkeypatch.setattr(
        Tokenizer, "encode", lambda *a, **k: [threads.append(threading.current_thread()), encode(*a)][1]
    )
    house = make(labels=REWARD)
    with pytest.raises(InvalidInput, match="the model has no chat template"):
        submit(house, "classify", CHAT).result(WAIT_S)
    answer(house, "classify", "w1")
    assert [thread is threading.main_thread() for thread in threads] == [False, True]


@pytest.mark.parametrize("raw_scores", [True, False])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("kind", "task", "width"),
    [
        ("classifier", "classify", 2),
        ("reranker", "rerank", 1),
        ("token_classifier", "classify_tokens", 3),
        ("embedding", "embed_tokens", 4),
    ],
)
def test_nan_and_infinity_never_become_scores(
    make: Make, kind: Kind, task: Task, width: int, value: float, raw_scores: bool
) -> None:
    house = make(labels=LABELS[kind])
    future = submit(house, task, "w1", raw_scores=raw_scores)
    run = house.next_run()
    run.answer = np.full((1, width), value, np.float32)
    run.finish()
    with pytest.raises(InferenceFailed, match="NaN or infinity"):
        future.result(WAIT_S)


def test_calls_of_a_python_process_take_any_number_of_texts_in_order(make_here: Make) -> None:
    limits = {"lane_tokens": 50, "max_concurrent_requests": 64, "max_client_batch_size": 10}
    texts = [words(1 + i % 7, i % VOCAB_SIZE) for i in range(100)]
    classifier = make_here(labels=LABELS["classifier"], **limits)
    scores = finishing(classifier, lambda: classifier.engine.classify(texts, raw_scores=True))
    assert scores.tolist() == [[i % VOCAB_SIZE, 1 + i % 7] for i in range(100)]
    assert classifier.engine.classify([]).shape == (0, 2)
    reranker = make_here(labels=LABELS["reranker"], **limits)
    raw = finishing(reranker, lambda: reranker.engine.rerank("", texts, raw_scores=True))
    assert raw.tolist() == [i % VOCAB_SIZE for i in range(100)]
    assert raw.dtype == np.float32
    assert np.allclose(finishing(reranker, lambda: reranker.engine.rerank("w2", ["w1"])), [sigmoid(2)])
    assert reranker.engine.rerank("w1", []).shape == (0,)
    embedder = make_here(**limits)
    states = finishing(embedder, lambda: embedder.engine.embed_tokens(texts))
    assert [rows[:, 0].tolist() for rows in states] == [[i % VOCAB_SIZE] * (1 + i % 7) for i in range(100)]
    assert embedder.engine.embed_tokens([]) == []
    with pytest.raises(WrongTask):
        embedder.engine.rerank("w1", ["w2"])


def test_info_tells_kind_and_labels(make: Make) -> None:
    for kind, labels in LABELS.items():
        info = make(labels=labels).engine.info
        assert (info.kind, info.labels) == (kind, labels.names if labels else ())
    assert make(labels=REWARD).engine.info.kind == "classifier"


def test_predictions_are_counted_as_predictions(make: Make) -> None:
    house = make(labels=LABELS["reranker"])
    answer(house, "rerank", Pair("w1", "w2"))
    answer(house, "classify", "w1")
    text = house.engine.metrics.render().decode()
    for line in (
        'te_request_count{method="batch"} 1',
        'te_request_count{method="single"} 1',
        'te_request_success{method="batch"} 1',
        "te_predict_count 2",
        "te_predict_success 2",
        "te_predict_duration_count 2",
        "te_embed_count 0",
        "te_embed_success 0",
        "te_embed_duration_count 0",
    ):
        assert f"\n{line}\n" in text
