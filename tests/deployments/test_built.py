"""Each deployment from its hub to two replicas without a network: built, carried, served, asked on every route.

Its model is tiny and of true shape, on a hub of the test's own; what the replicas answer is what the model answers that
is served from its own folder, and what the judge computed.
"""

import asyncio
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from openbei import cli
from openbei.engine.request import Kind
from openbei.engine.start import open_engine
from openbei.server.app import create_app
from openbei.weights.manifest import read_manifest
from tests.deployments.forms import COLLECTION, ROWS, row
from tests.deployments.settings import clean, configs  # noqa: F401 - a fixture
from tests.seeds.folder import Judge
from tests.seeds.rows import SEEDS, Seed
from tests.server.conditions import ROWS as ROUTES
from tests.weights.hub import SHA, Hub, serving

TEXTS = ["the red fox", "the fox on the red fox"]
QUERY = "the fox"
SINGLES = [[text] for text in TEXTS]
RANK = {"query": QUERY, "texts": TEXTS, "raw_scores": True}
BODIES: dict[str, Any] = {
    **{path: {"input": TEXTS, "model": "model"} for path in ("/v1/embeddings", "/embeddings")},
    **{path: {"inputs": TEXTS} for path in ("/embed", "/embed_all")},
    **{path: {"texts": TEXTS} for path in ("/v1/embed", "/v2/embed")},
    **{path: {"query": QUERY, "documents": TEXTS} for path in ("/v1/rerank", "/v2/rerank")},
    "/similarity": {"inputs": {"source_sentence": QUERY, "sentences": TEXTS}},
    "/predict": {"inputs": SINGLES, "raw_scores": True},
    "/rerank": RANK,
    "/tokenize": {"inputs": TEXTS},
}
GENERIC: dict[str, Any] = {  # by task, of "/" and the like, which do what the model is for
    "embed": {"inputs": TEXTS},
    "classify": {"inputs": SINGLES},
    "reward": {"inputs": SINGLES},
    "rerank": {"query": QUERY, "texts": TEXTS},
}
KINDS: dict[str, set[Kind]] = {  # by task, of which routes
    "embed": {"embedding"},
    "classify": {"classifier"},
    "reward": {"classifier", "reranker"},
    "rerank": {"classifier", "reranker"},
}
GATEWAY = "/environments/production/predict"
CHANGES = ("/metrics",)  # no two answers are the same
NEW = ("id", "created")  # in every answer
ADMIN = {"/models/load", "/models/unload"}  # of the server, not of a model

Ask = tuple[str, str, Any]
Answers = dict[tuple[str, str], tuple[int, Any]]


class Offline:
    """The program of offline.py."""

    def __init__(self, *, hook: bool) -> None:
        command = [sys.executable, "-m", "tests.deployments.offline", *(["hook"] if hook else [])]
        command = command if hook else ["unshare", "-rn", *command]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def do(self, **task: Any) -> Any:
        """A task -> its outcome; None if the program ended."""
        assert self.process.stdin
        assert self.process.stdout
        try:
            print(json.dumps(task), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            return None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def close(self) -> None:
        self.process.communicate()


@pytest.fixture(scope="module")
def offline() -> Iterator[Offline]:
    """In a network namespace where the kernel gives one, else with the hook; the cut is tried before it counts."""
    refused = shutil.which("unshare") is None or subprocess.run(["unshare", "-rn", "true"], check=False).returncode != 0
    program = Offline(hook=refused)
    try:
        check_cut(program, ["killed"] if refused else ["ECONNREFUSED", "ENETUNREACH", "gaierror"])
        yield program
    finally:
        program.close()


def check_cut(program: Offline, want: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()  # it is there, and whoever has a network reaches it
        assert program.do(port=port) == want


def test_the_hook_cuts_too() -> None:
    program = Offline(hook=True)
    check_cut(program, ["killed"])
    program.close()


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize("name", [row["name"] for row in ROWS])
def test_a_deployment_is_built_once_and_answers_anywhere(
    name: str, offline: Offline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    seed = seed_of(name)
    judge = Judge(seed, tmp_path / "repo")
    build(name, tmp_path, monkeypatch)
    asks = list(asked(name, seed.task))
    want = direct(name, tmp_path / "repo", asks)
    assert "no effect here:" in capfd.readouterr().err
    shutil.rmtree(tmp_path / "repo")
    carried = (tmp_path / "built").rename(tmp_path / "elsewhere")
    outcome = offline.do(args=[str(carried)], asks=asks)
    assert [code for _, code in outcome] == [0, 0], capfd.readouterr().err
    first, second = (known(asks, answers) for answers, _ in outcome)
    check_statuses(first, KINDS[seed.task] | ({"sparse", "multi_vector"} if seed.layers else set()))
    check_info(first["GET", "/info"][1], name, seed)
    assert first == second
    assert {ask: first[ask] for ask in want} == want
    check_numbers(seed, judge, lambda path: first["POST", path][1])


def seed_of(name: str) -> Seed:
    """The tiny model of a deployment."""
    return SEEDS[row(name)["model"].partition("/")[2].removeprefix("example-")]


def build(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`bei build deployments/NAME`, from a hub that is gone afterwards, and its cache too."""
    with serving(Hub({row(name)["model"]: place / "repo"})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        cache = ("--huggingface-hub-cache", str(place / "cache"))
        args = ["build", str(COLLECTION / name), "--out", str(place / "built"), *cache]
        cli.main.main(args, standalone_mode=False)
    monkeypatch.delenv("HF_ENDPOINT")
    shutil.rmtree(place / "cache")
    manifest = read_manifest(place / "built")
    assert manifest
    assert (manifest.source, manifest.revision) == (row(name)["model"], SHA)
    assert (place / "built" / "config.yaml").read_bytes() == (COLLECTION / name / "config.yaml").read_bytes()


def asked(name: str, task: str) -> Iterator[Ask]:
    """Every route once, the gateway's paths, and what the README and the file give as examples."""
    generic = {path: GENERIC[task] for path in ("/", "/invocations")}
    generic["/vertex"] = {"instances": [GENERIC[task]]}
    for path, route in ROUTES.items():
        yield "POST", path, generic.get(path) or BODIES.get(path) or route.body
    tree = yaml.safe_load((COLLECTION / name / "config.yaml").read_text())
    readme = (COLLECTION / name / "README.md").read_text()
    assert f"https://huggingface.co/{row(name)['model']}" in readme
    path, body = re.findall(r"^curl http://localhost:7997(\S+) .*\n  -d '(.*)'$", readme, re.M)[0]
    yield "POST", f"/sync{path}", json.loads(body)
    yield "POST", GATEWAY, tree["model_metadata"]["example_model_input"]
    for path in ("/", "/health", "/ping", "/info", "/v1/models", "/openapi.json", "/docs", *CHANGES):
        yield "GET", path, None


def known(asks: list[Ask], answers: list[tuple[int, str]]) -> Answers:
    """Answers by method and path, as JSON where they are, without what is new each time."""
    return {
        (method, path): (status, None if path in CHANGES else _as_json(text))
        for (method, path, _), (status, text) in zip(asks, answers, strict=True)
    }


def _as_json(text: str) -> Any:
    try:
        return _lasting(json.loads(text))
    except ValueError:
        return text


def _lasting(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _lasting(value) for name, value in tree.items() if name not in NEW}
    return [_lasting(value) for value in tree] if isinstance(tree, list) else tree


def direct(name: str, repo: Path, asks: list[Ask]) -> Answers:
    """What the same is answered by the model in its folder, by this process."""
    flags = ("--model-id", str(repo), "--dtype", "float32", "--device", "cpu")
    engine_config, server_config = configs(COLLECTION / name, *flags)
    assert server_config.port == 7997
    with open_engine(engine_config) as engine:
        return asyncio.run(_ask_all(create_app(engine, server_config), [ask for ask in asks if ask[1] != "/info"]))


async def _ask_all(app: Any, asks: list[Ask]) -> Answers:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://bei", timeout=60) as client:
        sent = [await client.request(method, path, json=body) for method, path, body in asks]
    return known(asks, [(answer.status_code, answer.text) for answer in sent])


def check_statuses(answers: Answers, kinds: set[Kind]) -> None:
    """200 of all that is this model's, 424 of what is another's; the document that it serves names no other path."""
    for (method, path), (status, answer) in answers.items():
        route = ROUTES.get(path) if method == "POST" else None
        own = route is None or route.other is None or route.kind in kinds
        assert status == (200 if own else 424), (method, path, answer)
    document = answers["GET", "/openapi.json"][1]
    posts = {path for path, methods in document["paths"].items() if "post" in methods}
    assert posts - ADMIN == {path for method, path in answers if method == "POST" and path in ROUTES}


def check_info(info: dict[str, Any], name: str, seed: Seed) -> None:
    assert (info["model_id"], info["model_sha"]) == (row(name)["model"], SHA)
    assert (info["served_model_name"], info["max_input_length"]) == (f"{name}-truss-example", seed.limit)


def check_numbers(seed: Seed, judge: Judge, got: Callable[[str], Any]) -> None:
    """What the routes answered against what the judge computes."""
    {"embed": _check_vectors, "rerank": _check_order}.get(seed.task, _check_labels)(judge, got)


def _check_vectors(judge: Judge, got: Callable[[str], Any]) -> None:
    want = np.stack([judge.vector(text) for text in TEXTS])
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    assert np.abs(np.array([one["embedding"] for one in got("/v1/embeddings")["data"]]) - want).max() <= 1e-5
    assert np.abs(np.array(got("/embed")) - want).max() <= 1e-5


def _check_order(judge: Judge, got: Callable[[str], Any]) -> None:
    want = np.array([judge.logits(QUERY, text)[0] for text in TEXTS])
    assert [one["index"] for one in got("/rerank")] == list(np.argsort(-want))
    assert np.abs(np.array([one["score"] for one in got("/rerank")]) + np.sort(-want)).max() <= 1e-4


def _check_labels(judge: Judge, got: Callable[[str], Any]) -> None:
    for answer, text in zip(got("/predict"), TEXTS, strict=True):
        assert np.abs(np.array([one["score"] for one in answer]) + np.sort(-judge.logits(text))).max() <= 1e-4
