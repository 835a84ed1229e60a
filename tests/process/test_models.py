"""The real command with two real models: chosen by official clients, loaded and unloaded, in both layouts.

Needs the embedded model's package; the reranker and the second embedder are tiny and random, with transformers as
their judge elsewhere (tests/server/test_real_tasks.py): here it counts which one answers.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cohere
import httpx
import numpy as np
import openai
import pytest
import transformers

from openbei.weights.repo import locate
from tests.families import network, save
from tests.process.test_process import HELLO_WORLD, LAYOUTS, Server
from tests.web import get, post, wait_until

KEY = {"authorization": "Bearer k"}
WIDTH = 48  # of the tiny embedder's vectors


def save_reranker(folder: Path) -> Path:
    body = network("bert")
    body.config.num_labels = 1
    model = transformers.BertForSequenceClassification(body.config).eval()
    model.base_model.load_state_dict(body.state_dict(), strict=False)
    save(folder, "bert", model)
    (folder / "modules.json").unlink()
    return folder


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reranker(tmp_path_factory.mktemp("reranker"))


@pytest.fixture(scope="module", params=LAYOUTS)
def server(request: pytest.FixtureRequest, reranker: Path) -> Iterator[Server]:
    words = (f"mini={locate(None).folder}", f"rank={reranker}", "--dtype", "float32", "--api-key", "k")
    running = Server(*words, *LAYOUTS[request.param])
    yield running
    code, log = running.stop()
    assert (code, "ERROR" in log, "Traceback" in log) == (0, False, False), log


def ask(server: Server, path: str, body: dict[str, Any]) -> httpx.Response:
    return post(server.url + path, json=body, headers=KEY)


def test_the_banner_has_both(server: Server) -> None:
    assert "\nname       mini\n" in server.banner
    assert "\nname       rank\n" in server.banner


def test_clients_reach_both_without_a_word_about_models(server: Server) -> None:
    vector = ask(server, "/embed", {"inputs": "hello world"}).json()[0]
    np.testing.assert_allclose(vector[:5], HELLO_WORLD, atol=1e-5)
    assert len(ask(server, "/rerank", {"query": "the", "texts": ["fox", "red"]}).json()) == 2


def test_official_clients_choose(server: Server, tiny_folder: Callable[[str], Path]) -> None:
    loaded = ask(server, "/models/load", {"model": str(tiny_folder("bert")), "name": "tiny"})
    assert (loaded.status_code, loaded.json()["served_model_name"]) == (200, "tiny"), loaded.text
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
        assert [one.id for one in client.models.list()] == ["mini", "rank", "tiny"]
        for name, width in (("mini", 384), ("tiny", WIDTH)):
            answer = client.embeddings.create(input="hello world", model=name)
            assert (answer.model, len(answer.data[0].embedding)) == (name, width)
        with pytest.raises(openai.NotFoundError) as caught:
            client.embeddings.create(input="hello world", model="nobody")
        assert caught.value.code == "model_not_found"
    with cohere.ClientV2(base_url=server.url, api_key="k") as client:
        assert len(client.rerank(model="rank", query="the", documents=["fox", "red"]).results) == 2
    assert 'te_request_success{model="tiny",method="single"} 1' in get(f"{server.url}/metrics").text
    assert ask(server, "/models/unload", {"model": "tiny"}).json() == {"model": "tiny", "served": ["mini", "rank"]}
    assert ask(server, "/embed", {"inputs": "a", "model": "tiny"}).status_code == 404


def test_a_model_that_cannot_be_read_is_refused_in_the_command_line_s_words(server: Server, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    refused = ask(server, "/models/load", {"model": str(tmp_path)})
    assert (refused.status_code, refused.json()["error_type"]) == (422, "Model")
    assert str(tmp_path) in refused.json()["error"]
    assert get(f"{server.url}/health").status_code == 200


def test_an_unloaded_model_gives_its_memory_back(reranker: Path) -> None:
    """One process: what MiniLM takes in float32 is over 100 MB; some of it may stay with the allocator."""
    server = Server(f"rank={reranker}", "--dtype", "float32", "--api-key", "k")
    before = resident_mb(server)
    for _ in range(2):
        assert ask(server, "/models/load", {"model": str(locate(None).folder), "name": "mini"}).status_code == 200
        texts = ["hello world " * 20] * 8
        assert ask(server, "/embed", {"inputs": texts, "model": "mini"}).status_code == 200
        assert resident_mb(server) - before > 100
        assert ask(server, "/models/unload", {"model": "mini"}).status_code == 200
        # A compilation that is still under way holds the weights until it is through.
        wait_until(lambda: resident_mb(server) - before < 50)
    server.stop()


def resident_mb(server: Server) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024
