"""docs/api.md: the routes from the app's own table, and every error condition beside TEI's answer.

TEI's side and the ways to bring a condition about are the data of tests/server/conditions.py; openbei's answers are
asked of the app, in this process, with the tests' engine.
"""

import json
import logging
from collections.abc import Sequence
from typing import Any

from openbei.server.app import DEFAULT_ROUTES
from tests.server.conditions import ADMIN, CONDITIONS, ROWS, ask, tei_answer
from tests.server.fakes import FakeEngine
from tests.server.wire import Wire

HEAD = """# The HTTP API

*Made by `make docs` from the code; do not edit.*

Bodies are JSON both ways, unless the client asks for another form (below); `/docs` on a running server shows every
field, `/openapi.json` is the same for programs.
Unknown fields are ignored, and null means the default. A request succeeds whole or fails whole.

## Routes

"Key": asks for the API key where one is set. "Models": which kinds answer; others are refused with 424. A classifier of
one label, such as a reward model, answers where rerankers do; an embedding model with layers for it (bge-m3) on
`/embed_sparse` and `/v1/multi-vector`; a sparse one (SPLADE) on `/embed` too, with `normalize` false.

{routes}

`/vertex` also answers at `AIP_PREDICT_ROUTE`, `/health` at `AIP_HEALTH_ROUTE`, where these are set.

## Several models

With `bei serve A B`, a request is answered by the model that it names: in the header `x-model`, else in the body's
`model` (of `/vertex` each instance's), and of a GET also in `?model=`. A name that no model has is 404; OpenAI's
clients get the code `model_not_found`. Without a name it is the first model whose own task it is, else the first that
can do it, else the first; at `/`, `/tokenize`, `/decode`, `/info` and `/vertex` the first, but of an instance with
`query` and `texts` the first that reranks. A gateway's `DEFAULT` (below) is that of the model in `x-model`, else of the
first. `/health` is 503 if one of them is not ready, and says which; in `/metrics` each series has the label `model`.
One model alone answers to any name.

`POST /models/load {{"model": MODEL, "name": NAME}}` and `POST /models/unload {{"model": NAME}}` exist where a key is
set, and ask for it. MODEL is what `bei serve` takes; it is read by the server, with the rights and the hub token of its
process, and with the flags it was started with. So whoever has the key can have any folder of the server that is a
model served, any model of the hub fetched to its disk, and learns whether a path is there; no file's content is
answered, and no code of a model is run but its chat template, in a sandbox. Loading is answered when the model answers,
unloading when its last request is answered and its memory is free; a client that hangs up stops neither. Nothing is
unloaded by itself, and the last model stays. A model whose weights do not fit is refused before it is loaded:
`--max-model-bytes` limits them all together, each parameter in the precision that is computed in; where that is not
set, a model is refused that the free memory cannot hold.

## Paths of BEI's gateway

Every route also answers behind a prefix, once, so that a client of BEI changes nothing but the host:

| asked | served |
|---|---|
{gateway}

`ENV` and `ID` are one part of a path. `DEFAULT` is `--default-route`; if that is not set, by the kind of model:
{defaults}.

## Forms of an answer

- `Accept: application/msgpack`: the same structure in MessagePack, vectors as float32. With the same weight as JSON it
  goes first. For all routes whose headers tell what the answer cost.
- `Accept: application/octet-stream`, for `/embed`, `/similarity`, `/v1/embeddings` with floats, and `/`: the numbers
  alone, little-endian float32, row by row. `x-shape: 2,384` and `x-dtype: float32` say how to read them.
- `Accept-Encoding: zstd` or `gzip`: compressed from 16 KiB on, where a sample shrinks to two thirds or less; never with
  `--compress false`.

Other routes, other types and all errors are JSON. A body may come as `Content-Encoding: zstd` or `gzip`, in one piece;
the payload limit counts what is inside, too.

## Order and time

- `x-priority: bulk` (or `batch`, `low`, or a number above 0), else `x-baseten-priority`, else `"priority": 1` in the
  body: the request waits for those that do not say so. It has a turn each second, and three quarters of the queue.
- `request-timeout-ms: N`, `request-deadline-ms: EPOCH_MS`: not computed when that has passed, but answered 504.
- `traceparent`: the span above the request's own, where `--otlp-endpoint` is set.

A client that hangs up drops what of its request is not computed yet. A request whose head or body takes longer than
`--read-timeout-ms` to come in is answered 408.

## Errors

Each dialect has one form of body. Of the same error (a batch that is too large):

{bodies}

The `type` words stand in the table below. 429 and 503 carry `Retry-After` and `retry-after-ms`, 401
`WWW-Authenticate`, 405 `Allow`, and all the request's ids. A path that is not served is answered in TEI's form.

| | condition | TEI 1.9.3 | openbei | why it differs |
|---|---|---|---|---|
{conditions}

## Errors by route

What openbei answered, when it was asked, under each condition; "·" where a route cannot meet it. **Bold**: TEI has the
route, and answers otherwise: as the table above says, or with the status in brackets, because it ignores the field that
is wrong. Routes in *italics* are not TEI's.

{matrix}

TEI serves `/vertex` only where it was built for it, and `/invocations` as `/`.

## Where answers differ from TEI's

| what | TEI 1.9.3 | openbei | why |
|---|---|---|---|
{differences}
"""

# Beside errors. Each row is held by a test of tests/server or tests/engine.
DIFFERENCES: tuple[tuple[str, str, str, str], ...] = (
    ("`null` for an optional field", "422 for about half of the fields", "the default, always",
     "clients send it for what their caller did not set"),
    ("Token ids as input", "decoded and encoded again", "used as they are", "a second encoding may give other ids"),
    ("Token ids beyond the vocabulary", "dropped", "422", "another tokenizer's ids would give wrong vectors"),
    ("A vector of zeros, normalised", "null values", "zeros", "null is no number"),
    ("Several labels that do not exclude each other", "softmax", "sigmoid of each", "as the model's config says"),
    ("Logits far apart", "may overflow: 424", "exact scores", "softmax below its largest logit cannot overflow"),
    ("A default prompt and a pair", "422", "the pair is read without it", "no request asked for it"),
    ("`POST /` with a source sentence", "422 unless TASK says so", "as `/similarity`",
     "huggingface_hub's sentence_similarity posts there"),
    ("`/health`", "200, empty", '200, `{"status":"ok"}`', "BEI's client reads every answer as JSON"),
    ("`Authorization: Api-Key`", "401", "as Bearer", "BEI's own examples send it"),
    ("Options on `/v1/embeddings`", "ignored", "truncate, prompt_name and so on, as on `/embed`",
     "the OpenAI client can send them as extra fields"),
    ("`dimensions` on `/similarity`", "ignored", "compares the first N values", "as on `/embed`"),
    ("`x-compute-type`", "always gpu+optimized", "cpu+optimized on a CPU", "it is read as a fact"),
)  # fmt: skip

# What openbei.server.app.served_path does; tests/server/test_platform.py has a row for each.
GATEWAY = (
    ("`/sync/P`", "`/P`"),
    ("`/environments/ENV/sync/P`", "`/P`"),
    ("`/production/sync/P`, `/development/sync/P`", "`/P`"),
    ("`/deployment/ID/sync/P`", "`/P`"),
    (
        "`/environments/ENV/predict`, `/production/predict`, `/development/predict`, `/deployment/ID/predict`",
        "`DEFAULT`",
    ),
)

KINDS = ("embedding", "sparse", "multi_vector", "classifier", "reranker", "token_classifier")
DIALECTS = {"tei": "/embed", "openai": "/v1/embeddings", "cohere": "/v2/embed"}
NAMES = {"tei": "TEI, BEI", "openai": "OpenAI", "cohere": "Cohere, Jina"}


def api_page() -> str:
    """The app and the tests' data -> docs/api.md."""
    logger = logging.getLogger("openbei.server")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # the bug that is asked for is no news
    try:
        return HEAD.format(
            routes=_routes(),
            gateway="\n".join(f"| {asked} | {served} |" for asked, served in GATEWAY),
            defaults=", ".join(f"{kind.replace('_', ' ')} `{route}`" for kind, route in DEFAULT_ROUTES.items()),
            bodies="\n".join(_body(dialect) for dialect in DIALECTS),
            conditions="\n".join(_condition(name) for name in CONDITIONS),
            matrix=_matrix(),
            differences="\n".join(_row(row) for row in DIFFERENCES),
        )
    finally:
        logger.setLevel(level)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _routes() -> str:
    document = Wire(FakeEngine()).get("/openapi.json").json()
    rows = [
        _route(method, path, entry) for path, entries in document["paths"].items() for method, entry in entries.items()
    ]
    return "\n".join(["| route | what | key | models |", "|---|---|---|---|", *rows])


def _route(method: str, path: str, entry: dict[str, Any]) -> str:
    kinds = [kind for kind in KINDS if path in ROWS and _answers(path, kind)]
    models = "all" if len(kinds) in {0, len(KINDS)} else ", ".join(kind.replace("_", " ") for kind in kinds)
    return _row([f"`{method.upper()} {path}`", entry["summary"], "yes" if "security" in entry else "no", models])


def _answers(path: str, kind: Any) -> bool:
    return bool(Wire(FakeEngine(kind)).post(path, ROWS[path].body).status_code != 424)


def _body(dialect: str) -> str:
    response = ask(DIALECTS[dialect], "E09")
    assert response is not None
    body = response.json()
    if "id" in body:
        body["id"] = "..."
    return f"- {NAMES[dialect]}: `{json.dumps(body)}`"


def _condition(name: str) -> str:
    condition = CONDITIONS[name]
    answers = [response for path in (*ROWS, *ADMIN) if (response := ask(path, name)) is not None]
    statuses = {response.status_code for response in answers}
    kinds = {body["error_type"] for response in answers if "error_type" in (body := response.json())}
    assert len(statuses) == len(kinds) == 1, f"{name} has more than one answer"
    return _row([name, condition.what, condition.tei, f"{statuses.pop()}, {kinds.pop()}", condition.why])


def _matrix() -> str:
    lines = [_row(["route", *CONDITIONS]), "|" + "---|" * (len(CONDITIONS) + 1)]
    for path in (*ROWS, *ADMIN):
        name = f"`{path}`" if path in ROWS and ROWS[path].in_tei else f"*`{path}`*"
        lines.append(_row([name, *(_cell(path, condition) for condition in CONDITIONS)]))
    return "\n".join(lines)


def _cell(path: str, name: str) -> str:
    response = ask(path, name)
    if response is None:
        return "·"
    tei = tei_answer(path, name)
    if tei is None:
        return str(response.status_code)
    return f"**{response.status_code}**" + ("" if tei == CONDITIONS[name].tei else f" ({tei})")
