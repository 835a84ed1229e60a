"""Deployments as `bei serve` runs them where nothing was built: the oldest forms, what wins over what, and the READMEs'
Python.
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openbei import cli
from openbei.engine.start import open_engine
from openbei.weights.store import list_store, note_use
from tests.deployments.forms import BEI, COLLECTION, TEI, bei, row, tei, write
from tests.deployments.settings import clean, configs  # noqa: F401 - a fixture
from tests.deployments.test_built import BODIES, check_numbers, seed_of
from tests.seeds.folder import Judge
from tests.seeds.rows import SEEDS
from tests.server.live import running
from tests.server.wire import Wire
from tests.weights.hub import SHA, Hub, serving

pytestmark = pytest.mark.usefixtures("clean")

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
    """From an empty cache and a hub."""
    path = write(tmp_path, bei(name) if name in BEI else tei(name))
    seed = seed_of(name)
    judge = Judge(seed, tmp_path / "repo")
    with serving(Hub({row(name)["model"]: tmp_path / "repo"})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        cache = ("--huggingface-hub-cache", str(tmp_path / "cache"))
        config, _ = configs(path, "--dtype", "float32", "--device", "cpu", *cache)
        with open_engine(config) as engine:
            wire = Wire(engine)  # type: ignore[arg-type]
            check_numbers(seed, judge, lambda path: wire.post(path, BODIES[path]).json())


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


def test_what_was_built_of_a_file_is_what_the_file_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The store's, last built, of these very bytes; unless a person names another model."""
    name = "BEI-baai-bge-large-en-v1.5-embedding"
    Judge(seed_of(name), tmp_path / "repo")
    path, changed = write(tmp_path / "a", bei(name)), write(tmp_path / "b", bei(name, max_num_tokens=99))
    assert configs(path)[0].model_id == row(name)["model"]
    cache = ("--huggingface-hub-cache", str(tmp_path / "cache"))
    with serving(Hub({row(name)["model"]: tmp_path / "repo"})) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        for flags in ((), ("--dtype", "float32"), ("--revision", "v1", "--pooling", "mean")):
            cli.main.main(["build", str(path.parent), *flags, *cache], standalone_mode=False)
    last = Path(capsys.readouterr().out.splitlines()[-1])
    entry = next(entry for entry in list_store() if entry.folder == last)
    assert (entry.manifest.revision, entry.manifest.pooling, len(list_store())) == (SHA, "mean", 3)
    for folder in {entry.folder for entry in list_store()} - {last}:
        os.utime(folder, ns=(1, 1))  # as if they were built before the tick of this file system's clock
        note_use(folder)
    config, _ = configs(path)
    assert (config.model_id, config.revision, config.max_input_length) == (str(last), None, 16384)
    assert f"the weights are those of {last}, built of this file at {SHA}" in capsys.readouterr().err
    cli.main.main(["info", str(path), "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["folder"] == str(last)
    assert configs(path, "--model-id", "own/model")[0].model_id == "own/model"
    assert configs(path, "--revision", "v2")[0].model_id == row(name)["model"]
    assert configs(changed)[0].model_id == row(name)["model"]
