"""Each deployment as `bei serve` runs it: its file, read by the command; its model, tiny and of true shape, fetched
from a hub on loopback; a client's call of its route; the judge's numbers.
"""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import yaml

from openbei.cli import main
from openbei.config import EngineConfig, ServerConfig
from openbei.engine.start import open_engine
from openbei.flags import pick
from openbei.server.app import create_app
from tests.deployments.forms import BEI, COLLECTION, ROWS, TEI, bei, row, tei, write
from tests.seeds.folder import Judge
from tests.seeds.rows import SEEDS
from tests.server.live import running
from tests.server.wire import Wire
from tests.weights.hub import Hub, serving

TEXTS = ["the red fox", "the fox on the red fox"]
QUERY = "the fox"
FIELDS = (*EngineConfig.__dataclass_fields__, *ServerConfig.__dataclass_fields__)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the caller counts, and none that a file sets outlives its test."""
    for name in (*FIELDS, "hf_api_token", "hf_hub_offline"):
        monkeypatch.setenv(name.upper(), "x")
        monkeypatch.delenv(name.upper())


def configs(path: Path, *args: str) -> tuple[EngineConfig, ServerConfig]:
    """`bei serve PATH ARGS` -> what it would serve by."""
    serve = main.commands["serve"]
    with serve.make_context("serve", [str(path), *args], parent=click.Context(main)) as context:
        values = context.params
    return EngineConfig(**pick(EngineConfig, values)), ServerConfig(**pick(ServerConfig, values))


def served(name: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Judge, Hub]:
    """Serve the file at `path` from an empty cache, call its route, compare with the judge."""
    seed = SEEDS[row(name)["model"].partition("/")[2].removeprefix("example-")]
    repo = tmp_path / "repo"
    judge = Judge(seed, repo)
    with serving(Hub({row(name)["model"]: repo})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        cache = ("--huggingface-hub-cache", str(tmp_path / "cache"))
        engine_config, server_config = configs(path, "--dtype", "float32", "--device", "cpu", *cache)
        assert engine_config.model_id == row(name)["model"]
        assert server_config.port == 7997
        with open_engine(engine_config) as engine:
            assert engine.info.served_model_name == f"{name}-truss-example"
            assert engine.info.max_input_length == seed.limit
            wire = Wire(engine)  # type: ignore[arg-type]
            wire.app = create_app(engine, server_config)
            {"embed": _embeds, "rerank": _reranks}.get(seed.task, _predicts)(wire, judge)
            _answers_the_readme(wire, name, engine_config.model_id or "")
    return judge, hub


def _answers_the_readme(wire: Wire, name: str, model: str) -> None:
    """The curl command of the README, and the example that feeds the playground."""
    readme = (COLLECTION / name / "README.md").read_text()
    path, body = re.findall(r"^curl http://localhost:7997(\S+) .*\n  -d '(.*)'$", readme, re.M)[0]
    assert f"https://huggingface.co/{model}" in readme
    tree = yaml.safe_load((COLLECTION / name / "config.yaml").read_text())
    for sent in (json.loads(body), tree["model_metadata"]["example_model_input"]):
        answer = wire.post(path, sent)
        assert answer.status_code == 200, answer.text


def _embeds(wire: Wire, judge: Judge) -> None:
    body = wire.post("/v1/embeddings", {"input": TEXTS, "model": "model"}).json()
    want = np.stack([judge.vector(text) for text in TEXTS])
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    assert np.abs(np.array([one["embedding"] for one in body["data"]]) - want).max() <= 1e-5


def _reranks(wire: Wire, judge: Judge) -> None:
    want = np.array([judge.logits(QUERY, text)[0] for text in TEXTS])
    body = wire.post("/rerank", {"query": QUERY, "texts": TEXTS, "raw_scores": True}).json()
    assert [one["index"] for one in body] == list(np.argsort(-want))
    assert np.abs(np.array([one["score"] for one in body]) + np.sort(-want)).max() <= 1e-4


def _predicts(wire: Wire, judge: Judge) -> None:
    body = wire.post("/predict", {"inputs": [[text] for text in TEXTS], "raw_scores": True}).json()
    for answer, text in zip(body, TEXTS, strict=True):
        assert np.abs(np.array([one["score"] for one in answer]) + np.sort(-judge.logits(text))).max() <= 1e-4


@pytest.mark.parametrize("name", [row["name"] for row in ROWS])
def test_every_deployment_answers_as_its_model_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served(name, COLLECTION / name, tmp_path, monkeypatch)
    assert "no effect here:" in capsys.readouterr().err


PYTHON = {  # a deployment of each task, and what its README's two programs print
    "TEI-sentence-transformers-all-minilm-l6-v2-embedding": r"2 vectors of 48 numbers\n2 vectors\n",
    "BEI-ncbi-medcpt-cross-encoder-reranker": r"(\S+ (Grass|Baseten) .*\n){2}\[\(\d, \S+\), \(\d, \S+\)\]\n",
    "BEI-samlowe-roberta-base-go_emotions-classification": r"([a-z]+ \S+\n){2}\['[a-z]+', '[a-z]+'\]\n",
    "BEI-skywork-skywork-reward-llama-3.1-8b-v0.2-reward-model": r"LABEL_0 \S+\n.*LABEL_0.*\n",
}


@pytest.mark.parametrize("name", PYTHON)
def test_the_python_of_the_readmes_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Judge(SEEDS[row(name)["model"].partition("/")[2]], tmp_path)
    engine_config, _ = configs(COLLECTION / name, "--model-id", str(tmp_path), "--device", "cpu")
    engine = open_engine(replace(engine_config, revision=None))
    monkeypatch.setattr(engine, "release", lambda: None, raising=False)  # which `running` calls at the end
    readme = (COLLECTION / name / "README.md").read_text()
    programs = re.findall(r"^```python\n(.*?)^```$", readme, re.M | re.S)
    assert len(programs) == 2
    capsys.readouterr()
    with running(engine) as (url, _server):  # type: ignore[arg-type]
        for program in programs:
            code = program.replace("http://localhost:7997", url)
            assert code.count(url) == 1
            exec(compile(code, name, "exec"), {})
    printed = capsys.readouterr().out
    assert re.fullmatch(PYTHON[name], printed), printed


@pytest.mark.parametrize("name", ["BEI-baai-bge-reranker-large", "TEI-nomic-ai-nomic-embed-text-v1.5"])
def test_the_oldest_forms_run_unmodified(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bei(name) if name in BEI else tei(name)
    served(name, write(tmp_path, made), tmp_path, monkeypatch)


def test_a_person_s_flag_wins_over_the_file_and_the_file_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree: dict[str, Any] = tei(TEI[0]) | {"environment_variables": {"POOLING": "mean", "MAX_CLIENT_BATCH_SIZE": 7}}
    path = write(tmp_path, tree)
    for name, value in {"POOLING": "cls", "PAYLOAD_LIMIT": "5", "MAX_CONCURRENT_REQUESTS": "6", "PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    engine, server = configs(path, "--max-concurrent-requests", "3", "--model-id", "own/model")
    assert (engine.pooling, engine.max_client_batch_size) == ("mean", 128)
    assert (engine.max_concurrent_requests, engine.model_id) == (3, "own/model")
    assert (server.port, server.payload_limit) == (7997, 5)
