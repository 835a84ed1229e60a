"""What hosting platforms ask for: BEI's prefixes and default route, Vertex AI's and SageMaker's routes."""

import asyncio
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from openbei import errors
from openbei.config import ServerConfig
from openbei.engine.admission import Admission
from openbei.engine.request import Kind, Options, Request, Result
from openbei.errors import ConfigError
from openbei.server.app import served_path
from tests.server.conditions import ROWS
from tests.server.fakes import FakeEngine, vector
from tests.server.wire import JSON, Wire, error

E03, E08, E12 = (422, "Validation"), (400, "Empty"), (422, "Validation")
PREFIXES = (
    *("/sync", "/environments/production/sync", "/environments/a b/sync"),
    *("/development/sync", "/production/sync", "/deployment/w123/sync"),
)
GETS = ("/v1/models", "/v1/models/org/tiny", "/info", "/health", "/ping", "/", "/metrics", "/docs", "/openapi.json")


def comparable(response: Any) -> Any:
    """An answer without what differs from call to call."""
    if response.headers["content-type"] != "application/json":
        return response.status_code, response.headers["content-type"]
    body = response.json()
    if isinstance(body, dict):
        body.pop("id", None)
    return response.status_code, body


@pytest.mark.parametrize("path", ROWS)
def test_posts_answer_the_same_under_every_prefix(path: str) -> None:
    wire = Wire(FakeEngine(ROWS[path].kind))
    want = comparable(wire.post(path, ROWS[path].body))
    assert want[0] == 200
    for prefix in PREFIXES:
        assert comparable(wire.post(prefix + path, ROWS[path].body)) == want


@pytest.mark.parametrize("path", GETS)
def test_gets_answer_the_same_under_every_prefix(wire: Wire, path: str) -> None:
    want = comparable(wire.get(path))
    assert want[0] == 200
    for prefix in PREFIXES:
        assert comparable(wire.get(prefix + path)) == want


@pytest.mark.parametrize(
    "path",
    [
        *("/sync", "/sync/sync/embed", "/Sync/embed", "/environments/production", "/environments/production/embed"),
        *(
            "/environments/sync/embed",
            "/environments//sync/embed",
            "/environments/a/b/sync/embed",
            "/deployment/sync/x",
        ),
        *("/environments/production/async/embed", "/environments/production/async_predict", "/x/sync/embed"),
        *(
            "/environments/production/sync/embed/",
            "/environments/production/predict/",
            "/sync/environments/p/sync/embed",
        ),
        *("/development/sync/sync/embed", "/environments/production/syncembed", "/staging/predict"),
    ],
)
def test_what_is_no_prefix_is_not_found(wire: Wire, path: str) -> None:
    assert error(wire.post(path, {"inputs": "a"})) == (404, "NotFound")


def test_a_prefix_asks_for_the_key_too() -> None:
    wire = Wire(FakeEngine(), api_key="k")
    assert error(wire.post("/sync/embed", {"inputs": "a"})) == (401, "Unauthorized")
    assert wire.get("/environments/production/sync/health").status_code == 200


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("embedding", "/v1/embeddings"),
        ("classifier", "/predict"),
        ("reranker", "/rerank"),
        ("token_classifier", "/predict_tokens"),
    ],
)
@pytest.mark.parametrize(
    "asked",
    ["/environments/production/predict", "/development/predict", "/production/predict", "/deployment/x/predict"],
)
def test_the_default_route_is_what_the_model_is_for(kind: Kind, path: str, asked: str) -> None:
    wire, body = Wire(FakeEngine(kind)), ROWS[path].body
    assert wire.post(asked, body).content == wire.post(path, body).content
    assert error(wire.get(asked)) == (405, "MethodNotAllowed")


def test_the_default_route_can_be_set() -> None:
    wire = Wire(FakeEngine(), default_route="/embed")
    asked = "/environments/production/predict"
    assert wire.post(asked, {"inputs": "a"}).content == wire.post("/embed", {"inputs": "a"}).content
    assert error(Wire(FakeEngine()).post(asked.replace("predict", "sync/predict"), {"inputs": "a"}))[0] == 424


def test_other_paths_are_themselves() -> None:
    for path in ("/", "/embed", "/syncembed", "/sync", "/v1/models/sync/x", "/v1/models/environments/a/sync/b"):
        assert served_path(path, "/embed") == path


# POST /


@pytest.mark.parametrize("path", ["/", "/invocations"])
def test_an_embedding_model_s_root_compares_where_inputs_is_an_object(wire: Wire, path: str) -> None:
    body = {"inputs": {"source_sentence": "a", "sentences": ["b", "a"]}, "parameters": {}}
    assert wire.post(path, body).content == wire.post("/similarity", body).content
    assert (
        wire.post(path, {"inputs": "a", "parameters": {"x": 1}}).json() == wire.post("/embed", {"inputs": "a"}).json()
    )
    for wrong in ({"inputs": {"sentences": ["a"]}}, {"inputs": {}}, {"inputs": None}, {}, []):
        assert error(wire.post(path, wrong)) == E03
    assert error(Wire(FakeEngine("classifier")).post(path, body)) == E03


def test_the_root_tells_what_it_cost(wire: Wire) -> None:
    assert wire.post("/", {"inputs": "a"}).headers["x-compute-tokens"] == "3"


# /similarity


def cosine(first: str, second: str, dimensions: int | None = None) -> float:
    a, b = (vector(text)[:dimensions].astype(np.float64) for text in (first, second))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_similarity(wire: Wire) -> None:
    body = {"inputs": {"source_sentence": "fox", "sentences": ["vixen", "tax", "fox"]}}
    response = wire.post("/similarity", body)
    assert response.json() == pytest.approx([cosine("fox", "vixen"), cosine("fox", "tax"), 1], abs=1e-6)
    assert response.headers["x-compute-tokens"] == "12"
    assert wire.engine.requests[0].inputs == ["fox", "vixen", "tax", "fox"]
    cut = wire.post("/similarity", {**body, "parameters": {"dimensions": 3}}).json()
    assert cut == pytest.approx([cosine("fox", "vixen", 3), cosine("fox", "tax", 3), 1], abs=1e-6)


@pytest.mark.parametrize(
    ("parameters", "options"),
    [
        (None, Options(normalize=False)),
        ({}, Options(normalize=False)),
        ({"normalize": True, "function": "x"}, Options(normalize=False)),
        (
            {"truncate": False, "truncation_direction": "left", "prompt_name": "query", "dimensions": 4},
            Options(truncate=False, truncation_direction="left", prompt_name="query", dimensions=4, normalize=False),
        ),
    ],
)
def test_similarity_options(wire: Wire, parameters: Any, options: Options) -> None:
    body = {"inputs": {"source_sentence": "a", "sentences": ["b"]}, "parameters": parameters}
    assert wire.post("/similarity", body).status_code == 200
    assert wire.engine.requests[0].options == options


def test_a_vector_of_zeros_is_like_nothing(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tests.server.fakes.vector", lambda text: np.full(8, 1e-20 if text == "tiny" else 0.0, np.float32)
    )
    for source in ("zero", "tiny"):
        body = {"inputs": {"source_sentence": source, "sentences": ["zero", "tiny"]}}
        tiny = 1.0 if source == "tiny" else 0.0
        assert wire.post("/similarity", body).json() == pytest.approx([0.0, tiny], abs=1e-6)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ("a", E03),
        ({"source_sentence": "a"}, E03),
        ({"sentences": ["a"]}, E03),
        ({"source_sentence": "a", "sentences": "b"}, E03),
        ({"source_sentence": [5], "sentences": ["b"]}, E03),
        ({"source_sentence": "a", "sentences": []}, E08),
        ({"source_sentence": "", "sentences": ["a"]}, E08),
        ({"source_sentence": "a", "sentences": ["b", ""]}, E08),
        ({"source_sentence": "a", "sentences": ["b"] * 4}, E03),
    ],
)
def test_wrong_similarity_inputs(wire: Wire, inputs: Any, expected: tuple[int, str]) -> None:
    assert error(wire.post("/similarity", {"inputs": inputs})) == expected


def test_similarity_counts_the_source(wire: Wire) -> None:
    assert wire.post("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"] * 3}}).status_code == 200


# Vertex AI


@pytest.mark.parametrize(
    ("kind", "bodies"),
    [
        ("embedding", [("/embed", {"inputs": "a"}), ("/embed", {"inputs": ["b", [5]], "dimensions": 2})]),
        ("classifier", [("/predict", {"inputs": "a"}), ("/predict", {"inputs": [["b"], ["c", "d"]]})]),
        ("reranker", [("/rerank", {"query": "q", "texts": ["a", "b"]}), ("/predict", {"inputs": ["q", "a"]})]),
        ("token_classifier", [("/predict_tokens", {"inputs": "a b"})]),
        ("embedding", []),
    ],
)
def test_vertex(kind: Kind, bodies: list[tuple[str, Any]]) -> None:
    wire = Wire(FakeEngine(kind), aip_predict_route="/v1/endpoints/1:predict")
    want = [wire.post(path, body).json() for path, body in bodies]
    for path in ("/vertex", "/v1/endpoints/1:predict"):
        response = wire.post(path, {"instances": [body for _, body in bodies], "parameters": None})
        assert response.json() == {"predictions": want}
        assert not [name for name in response.headers if name.startswith(("x-compute", "x-total"))]


@pytest.mark.parametrize(
    ("kind", "instances", "expected"),
    [
        ("embedding", None, E03),
        ("embedding", {}, E03),
        ("embedding", ["a"], E03),
        ("embedding", [{"inputs": "a"}, {"nothing": 1}], E03),
        ("embedding", [{"inputs": "a"}, {"inputs": ""}], E08),
        ("embedding", [{"inputs": "a"}, {"inputs": "b", "dimensions": 9}], E12),
        ("embedding", [{"inputs": "a", "truncation_direction": "up"}], E03),
        ("embedding", [{"query": "q", "texts": ["a"]}], (424, "Backend")),
        ("classifier", [{"query": "q"}], E03),
        ("embedding", [{"inputs": "a"}] * 5, E03),
    ],
)
def test_wrong_vertex_requests(kind: Kind, instances: Any, expected: tuple[int, str]) -> None:
    assert error(Wire(FakeEngine(kind)).post("/vertex", {"instances": instances})) == expected


def test_vertex_names_the_instance_that_is_wrong(wire: Wire) -> None:
    body = {"instances": [{"inputs": "a"}, {"inputs": "a", "truncation_direction": "up"}]}
    message = wire.post("/vertex", body).json()["error"]
    assert message == "instance 1: Expected one of 'Right', 'right', 'Left', 'left' - at `$.truncation_direction`"
    assert wire.engine.requests == []


def test_one_instance_that_fails_cancels_the_others(wire: Wire) -> None:
    wire.engine.hold = True

    async def call() -> Any:
        body = {"instances": [{"inputs": "a"}, {"inputs": "b"}]}
        waiting = asyncio.ensure_future(wire.send_async("POST", "/vertex", json=body, headers=JSON))
        while len(wire.engine.held) < 2:
            await asyncio.sleep(0)
        wire.engine.held[1].set_exception(errors.InferenceFailed("inference failed"))
        response = await waiting
        for _ in range(100):  # before the loop ends, which would cancel it too
            await asyncio.sleep(0)
        assert wire.engine.held[0].cancelled()
        return response

    assert error(asyncio.run(call())) == (424, "Backend")


class Narrow(FakeEngine):
    """Answers what it holds when it is told to, and admits four inputs until then."""

    def __init__(self) -> None:
        super().__init__(max_client_batch_size=5)
        self.hold, self.admission, self.waves = True, Admission(4), list[int]()

    def submit(self, request: Request, wait: bool = False) -> Future[Result]:
        num_permits = self.admission.take(len(request.inputs))
        future = super().submit(request, wait)
        future.add_done_callback(lambda _: self.admission.give_back(num_permits))
        return future

    async def answer(self) -> None:
        """All that is held, and whatever comes for it."""
        while True:
            self.waves += [len(self.held)] if self.held else []
            self.release()
            self.hold = True
            for _ in range(20):  # all that an answer sets off
                await asyncio.sleep(0)


@pytest.mark.parametrize(("sizes", "waves"), [([4, 4], [1, 1]), ([1, 3, 2, 4, 1], [2, 2, 1]), ([1] * 4, [4])])
def test_instances_that_do_not_fit_together_wait_for_each_other(sizes: list[int], waves: list[int]) -> None:
    instances = [{"inputs": [f"{i} {j}" for j in range(size)]} for i, size in enumerate(sizes)]
    want = [Wire(FakeEngine()).post("/embed", one).json() for one in instances]
    wire = Wire(Narrow())

    async def call() -> Any:
        answering = asyncio.ensure_future(wire.engine.answer())
        response = await wire.send_async("POST", "/vertex", json={"instances": instances}, headers=JSON)
        answering.cancel()
        return response.json()

    assert asyncio.run(call()) == {"predictions": want}
    assert wire.engine.waves == waves


def test_instances_that_find_no_room_at_all_are_answered_429() -> None:
    wire = Wire(Narrow())
    wire.engine.admission.take(1)
    body = {"instances": [{"inputs": ["a"] * 4}, {"inputs": ["b"] * 4}]}
    assert error(wire.post("/vertex", body)) == (429, "Overloaded")


def test_the_paths_that_vertex_names() -> None:
    wire = Wire(FakeEngine("classifier"), aip_predict_route="/predict", aip_health_route="/alive", api_key="k")
    assert wire.get("/alive").json() == {"status": "ok"}
    assert wire.get("/health").status_code == 200
    headers = {"authorization": "Bearer k"}
    body = {"instances": [{"inputs": "a"}]}
    assert list(wire.post("/predict", body, headers=headers).json()) == ["predictions"]
    assert wire.get("/openapi.json").json()["paths"]["/predict"]["post"]["summary"] == "Same as /vertex"


@pytest.mark.parametrize("name", ["aip_predict_route", "aip_health_route"])
def test_a_path_begins_with_a_slash(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must begin with /, got predict"):
        ServerConfig(**{name: "predict"})
