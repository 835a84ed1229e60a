"""What can go wrong, on every route: how to bring it about, and what TEI and openbei answer. Data, and one function.

TEI's side is read from its source, version 1.9.3 (github.com/huggingface/text-embeddings-inference: router/src/http/
server.rs and types.rs, core/src/infer.rs and tokenization.rs); openbei's side is asked of the app by tests/server/
test_conditions.py and by docs/api.py, which makes docs/api.md of both.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import httpx

from openbei import errors
from openbei.engine.models import Models
from openbei.engine.request import EngineInfo, Kind
from tests.server.fakes import DIM, INFO, FakeEngine
from tests.server.wire import JSON, Wire

MANY = ["a"] * 5  # the fake engine takes 4
LONG = "x" * (INFO.max_input_length + 1)
HUGE = "x" * (250 * INFO.max_input_length + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One route: a model that answers it, and a body that is right.

    wrong: by condition, the fields that bring it about; a route without a row there cannot meet the condition.
    other: a model that the route refuses, None if it takes all. in_tei: whether TEI has the route.
    """

    kind: Kind = "embedding"
    body: dict[str, Any]
    wrong: dict[str, dict[str, Any]]
    other: Kind | None = "classifier"
    in_tei: bool = True
    computes: bool = True


def texts(field: str, **more: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The faults of a list of texts or ids in one field, and of the options that come with it."""
    return {
        "E08": {field: ""},
        "E09": {field: MANY},
        "E10": {field: LONG, "truncate": False},
        "E11": {field: HUGE, "truncate": False},
        **more,
    }


DIMENSIONS, PROMPT = {"dimensions": DIM + 1}, {"prompt_name": "nobody"}
SOURCE = {"source_sentence": "a"}
EMBED = Row(body={"inputs": "a"}, wrong=texts("inputs", E12=DIMENSIONS, E13=PROMPT))
RANK = {"query": "q", "documents": ["a"]}
RANK_WRONG = {"E08": {"documents": []}, "E09": {"documents": MANY}}
COHERE_WRONG = {
    "E08": {"texts": []},
    "E09": {"texts": MANY},
    "E10": {"texts": [LONG], "truncate": "NONE"},
    "E11": {"texts": [HUGE], "truncate": "NONE"},
}
OPENAI_WRONG = texts("input", E12=DIMENSIONS, E13=PROMPT)

ROWS: dict[str, Row] = {
    "/v1/embeddings": Row(body={"input": "a"}, wrong=OPENAI_WRONG),
    "/embeddings": Row(body={"input": "a"}, wrong=OPENAI_WRONG),
    "/embed": EMBED,
    "/embed_all": Row(body={"inputs": "a"}, wrong=texts("inputs", E13=PROMPT)),
    "/embed_sparse": Row(kind="sparse", body={"inputs": "a"}, wrong=texts("inputs", E13=PROMPT), other="embedding"),
    "/v1/multi-vector": Row(
        kind="multi_vector",
        body={"input": "a"},
        wrong=texts("input", E12=DIMENSIONS, E13=PROMPT),
        other="embedding",
        in_tei=False,
    ),
    "/predict": Row(
        kind="classifier",
        body={"inputs": "a"},
        wrong=texts("inputs", E09={"inputs": [["a"]] * 5}),
        other="embedding",
    ),
    "/rerank": Row(
        kind="reranker",
        body={"query": "q", "texts": ["a"]},
        wrong={
            "E08": {"texts": []},
            "E09": {"texts": MANY},
            "E10": {"texts": [LONG], "truncate": False},
            "E11": {"texts": [HUGE], "truncate": False},
        },
        other="embedding",
    ),
    "/predict_tokens": Row(
        kind="token_classifier", body={"inputs": "a"}, wrong=texts("inputs"), other="embedding", in_tei=False
    ),
    "/similarity": Row(
        body={"inputs": {**SOURCE, "sentences": ["b"]}},
        wrong={
            "E08": {"inputs": {**SOURCE, "sentences": []}},
            "E09": {"inputs": {**SOURCE, "sentences": ["a"] * 4}},
            "E10": {"inputs": {**SOURCE, "sentences": [LONG]}, "parameters": {"truncate": False}},
            "E11": {"inputs": {**SOURCE, "sentences": [HUGE]}, "parameters": {"truncate": False}},
            "E12": {"parameters": DIMENSIONS},
            "E13": {"parameters": PROMPT},
        },
    ),
    "/tokenize": Row(
        body={"inputs": "a"},
        wrong={"E08": {"inputs": ""}, "E09": {"inputs": MANY}, "E11": {"inputs": HUGE}, "E13": PROMPT},
        other=None,
        computes=False,
    ),
    "/decode": Row(
        body={"ids": [5]}, wrong={"E08": {"ids": []}, "E09": {"ids": [[5]] * 5}}, other=None, computes=False
    ),
    "/": Row(body=EMBED.body, wrong=EMBED.wrong, other=None),
    "/invocations": Row(body=EMBED.body, wrong=EMBED.wrong, other=None),
    "/vertex": Row(
        body={"instances": [EMBED.body]},
        wrong={
            "E09": {"instances": [EMBED.body] * 5},
            **{
                name: {"instances": [{**EMBED.body, **fields}]} for name, fields in EMBED.wrong.items() if name != "E09"
            },
        },
        other=None,
    ),
    "/v1/rerank": Row(kind="reranker", body=RANK, wrong=RANK_WRONG, other="embedding", in_tei=False),
    "/v2/rerank": Row(kind="reranker", body=RANK, wrong=RANK_WRONG, other="embedding", in_tei=False),
    "/v1/embed": Row(body={"texts": ["a"]}, wrong=COHERE_WRONG, in_tei=False),
    "/v2/embed": Row(body={"texts": ["a"]}, wrong={**COHERE_WRONG, "E12": {"output_dimension": DIM + 1}}, in_tei=False),
}


@dataclass(frozen=True, slots=True)
class Condition:
    """One thing that goes wrong, and the error that openbei raises for it.

    tei: what TEI answers, in words. same: whether TEI's status and body are openbei's. why: openbei differs.
    """

    what: str
    error: type[errors.RequestError]
    tei: str
    same: bool = True
    why: str = ""


NONE = "none: it loads nothing later"
NO_JSON = "clients parse every body as JSON, and the text tells what to change"
RETRY = "clients wait as long as it says, instead of guessing"

CONDITIONS: dict[str, Condition] = {
    "E01": Condition("The body is not JSON, or not UTF-8", errors.MalformedBody, "400, plain text", False, NO_JSON),
    "E02": Condition(
        "The Content-Type is not JSON", errors.UnsupportedMediaType, "415, plain text", False,
        f"{NO_JSON}; the form type that curl sends by itself is read as JSON",
    ),
    "E03": Condition(
        "A field is missing, or has a wrong type or value", errors.InvalidInput, "422, plain text", False,
        f"{NO_JSON}; the field is named",
    ),
    "E04": Condition(
        "The body is larger than the payload limit", errors.PayloadTooLarge, "413, plain text", False, NO_JSON
    ),
    "E05": Condition(
        "A key is set, and the request has none or another", errors.Unauthorized, "401, empty", False,
        f"{NO_JSON}; WWW-Authenticate is part of a 401 (RFC 9110)",
    ),
    "E06": Condition("No such path", errors.NotFound, "404, empty", False, NO_JSON),
    "E07": Condition(
        "The path exists, the method does not", errors.MethodNotAllowed, "405, empty", False, NO_JSON
    ),
    "E08": Condition("An empty list, text or list of ids", errors.EmptyInput, "400, Empty"),
    "E09": Condition("More inputs than the maximum", errors.BatchTooLarge, "422, Validation; 413 up to 1.8.3"),
    "E10": Condition(
        "More tokens than the maximum, and truncation is off", errors.TooLong, "422, Validation; 413 up to 1.8.3"
    ),
    "E11": Condition(
        "More characters than 250 times that, and truncation is off", errors.TooLong,
        "422, Validation; 413 up to 1.8.3",
    ),
    "E12": Condition(
        "Dimensions of 0, or more than the model has", errors.InvalidInput, "422, Validation; 413 up to 1.8.3"
    ),
    "E13": Condition("No prompt of that name", errors.UnknownPrompt, "422, Validation; 413 up to 1.8.3"),
    "E14": Condition("The tokenizer failed", errors.TokenizerFailed, "422, Tokenizer"),
    "E15": Condition("The model does not do this", errors.WrongTask, "424, Backend"),
    "E16": Condition(
        "The model's output is NaN or infinite", errors.InferenceFailed,
        "424, Backend for scores; 200 with null for vectors", False, "clients that read numbers fail on null",
    ),
    "E17": Condition(
        "Too much is waiting already", errors.Overloaded, "429, Overloaded, without Retry-After", False, RETRY
    ),
    "E18": Condition(
        "Starting, draining, or the device is down", errors.Unhealthy, "503, Unhealthy, without Retry-After", False,
        RETRY,
    ),
    "E19": Condition(
        "The client's deadline passed before inference began", errors.DeadlineExceeded,
        "200: it knows no deadlines", False, "nobody waits for that answer any more",
    ),
    "E20": Condition(
        "A bug in the server", errors.InternalError, "none: the process ends", False, "other clients are served on"
    ),
    "E21": Condition(
        "The body does not come in within the read timeout", errors.TooSlow, "none: it waits", False,
        "clients that dawdle would hold connections for ever",
    ),
    "E22": Condition(
        "Several models are served, and none has the name", errors.UnknownModel, "200: it serves one", False,
        "another model's answer would be wrong",
    ),
    "E23": Condition("Models are to be loaded, and no key is set", errors.Forbidden, NONE),
    "E24": Condition("The name is taken, or the model is the last", errors.Conflict, NONE),
    "E25": Condition("The model that is to be loaded cannot be served", errors.LoadFailed, NONE),
    "E26": Condition("Its weights do not fit", errors.OutOfMemory, NONE),
}  # fmt: skip

# What the fake engine raises for conditions that no body brings about. /tokenize and /decode never reach the model.
RAISED: dict[str, tuple[str, Exception]] = {
    "E14": ("fail_with", errors.TokenizerFailed("tokenizer failed")),
    "E16": ("fail_with", errors.InferenceFailed("inference failed: the model's output holds NaN or infinity")),
    "E17": ("refuse_with", errors.Overloaded()),
    "E18": ("refuse_with", errors.Unhealthy("unhealthy: draining")),
    "E19": ("fail_with", errors.DeadlineExceeded("the request's deadline passed before inference began")),
    "E20": ("fail_with", ZeroDivisionError("bug")),
}
OF_THE_MODEL = {"E16", "E17", "E19"}
OF_LOADING = {"E23", "E24", "E25", "E26"}

# The routes that load and unload, each with a right body, and what can go wrong there.
ADMIN: dict[str, dict[str, Any]] = {"/models/load": {"model": "m"}, "/models/unload": {"model": INFO.served_model_name}}
ADMIN_RAISED: dict[str, Exception] = {
    "E18": errors.Unhealthy("unhealthy: draining"),
    "E20": ZeroDivisionError("bug"),
    "E22": errors.UnknownModel("there is no model 'm' here"),
    "E24": errors.Conflict("a model 'm' is served already"),
    "E25": errors.LoadFailed("there is no folder m"),
    "E26": errors.OutOfMemory("'m' needs at least 2 bytes"),
}
AUTH = {"authorization": "Bearer k"}


def tei_answer(path: str, name: str) -> str | None:
    """What TEI answers on one of its routes where that is not openbei's answer: a status, or what CONDITIONS says."""
    if path in ADMIN or not ROWS[path].in_tei or (path, name) in TEI_SAME:
        return None
    return TEI_OTHER.get((path, name), None if CONDITIONS[name].same else CONDITIONS[name].tei)


TEI_SAME = {("/predict", "E16"), ("/rerank", "E16")}
TEI_OTHER = {  # fields that TEI does not read on these routes
    **{(path, name): "200" for path in ("/v1/embeddings", "/embeddings") for name in ("E10", "E11", "E13")},
    ("/similarity", "E12"): "200",
}


@cache
def ask(path: str, name: str) -> httpx.Response | None:
    """Bring a condition about on a route -> its answer; None if the route cannot meet it."""
    if path in ADMIN:
        return ask_admin(path, name)
    if name in OF_LOADING:
        return None
    row = ROWS[path]
    if name in RAISED:
        return None if name in OF_THE_MODEL and not row.computes else ask_failing(path, row, *RAISED[name])
    if name in SPECIAL:
        return SPECIAL[name](path, row)
    if name == "E15":
        return served(row.other).post(path, row.body) if row.other else None
    return served(row.kind).post(path, {**row.body, **row.wrong[name]}) if name in row.wrong else None


@cache
def served(kind: Kind, **config: Any) -> Wire:
    """An app that is not changed."""
    return Wire(FakeEngine(kind), **config)


def ask_failing(path: str, row: Row, where: str, error: Exception) -> httpx.Response:
    """A right body to an engine that fails."""
    engine = FakeEngine(row.kind)
    setattr(engine, where, error)
    return Wire(engine).post(path, row.body)


class FakeModels(Models):
    """One model; another comes in at once, unless there is something to raise."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__(FakeEngine())
        self.error = error

    async def load(self, model: str, name: str | None = None, revision: str | None = None) -> EngineInfo:
        if self.error is not None:
            raise self.error
        self.add(FakeEngine(name=name or model))  # type: ignore[arg-type]
        return self.named(name or model).info

    async def unload(self, name: str) -> None:
        if self.error is not None:
            raise self.error


def ask_admin(path: str, name: str) -> httpx.Response | None:
    """As ask, of a route that loads or unloads."""
    limits: dict[str, Any] = {"E04": {"payload_limit": 2}, "E21": {"read_timeout_ms": 1}}.get(name, {})
    wire = Wire(FakeModels(ADMIN_RAISED.get(name)), api_key=None if name == "E23" else "k", **limits)  # type: ignore[arg-type]
    right: dict[str, Any] = {"content": json.dumps(ADMIN[path]).encode(), "headers": JSON | AUTH}
    asks: dict[str, dict[str, Any]] = {
        **{name: {"content": body} for name, body in (("E01", b"{"), ("E03", b"{}"), ("E04", b"{} "))},
        "E02": {"headers": AUTH | {"content-type": "text/plain"}},
        "E05": {"headers": JSON},
        "E06": {"path": f"{path}/nowhere"},
        "E07": {"method": "PUT"},
        "E21": {"content": dawdling()},
        "E23": {},
        **{key: {} for key in ADMIN_RAISED},
    }
    of_the_other = {"E22"} if path == "/models/load" else {"E25", "E26"}
    if name not in asks or name in of_the_other:
        return None
    return wire.send(**{"method": "POST", "path": path, **right, **asks[name]})


def ask_unknown(path: str, row: Row) -> httpx.Response:
    """A right body, for a model that is not there."""
    models = Models(FakeEngine(row.kind), FakeEngine(row.kind, name="other"))  # type: ignore[arg-type]
    return Wire(models).post(path, row.body, headers={"x-model": "nobody"})  # type: ignore[arg-type]


async def dawdling() -> AsyncIterator[bytes]:
    """A body whose end never comes."""
    yield b"{"
    await asyncio.Event().wait()


SPECIAL: dict[str, Callable[[str, Row], httpx.Response]] = {
    "E01": lambda path, row: served(row.kind).post(path, b"{"),
    "E02": lambda path, row: served(row.kind).post(
        path, json.dumps(row.body).encode(), headers={"content-type": "text/plain"}
    ),
    "E03": lambda path, row: served(row.kind).post(path, {"nothing": 1}),
    "E04": lambda path, row: served(row.kind, payload_limit=2).post(path, b"{} "),
    "E05": lambda path, row: served(row.kind, api_key="k").post(path, row.body),
    "E06": lambda path, row: served(row.kind).post(path.rstrip("/") + "/nowhere", row.body),
    "E07": lambda path, row: served(row.kind).send("PUT", path, json=row.body),
    "E22": ask_unknown,
    "E21": lambda path, row: served(row.kind, read_timeout_ms=1).send("POST", path, content=dawdling(), headers=JSON),
}
