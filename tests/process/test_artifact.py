"""`bei build` and `bei serve` of its artifact as programs: no network, the same vectors, and refusals.

Needs the embedded model's package.
"""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.process.test_process import BEI, ENV, HELLO_WORLD, Server
from tests.web import LIMIT_S, post

# A process in which whoever looks a name up, or connects to an address, is shot; sockets of the file system are fine.
NO_NETWORK = """
import os, signal, sys
def shoot(event, args):
    name = event == "socket.getaddrinfo" and args[0] != "127.0.0.1"
    address = event == "socket.connect" and isinstance(args[1], tuple)
    if name or address:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(shoot)
"""


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    monkeypatch.setitem(ENV, "PYTHONPATH", f"{tmp_path}:{os.getcwd()}")
    monkeypatch.setitem(ENV, "HF_ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("artifact")
    command = [*BEI, "build", "--out", str(root / "out"), "--dtype", "float32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{root / 'out'}\n"), done.stderr
    return root / "out"


@pytest.mark.usefixtures("no_network")
def test_without_a_network_there_is_none() -> None:
    done = subprocess.run([*BEI, "info", "owner/name"], capture_output=True, check=False, env=ENV)
    assert done.returncode == -9


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("layout", [(), ("--frontends", "1")], ids=["one process", "frontends"])
def test_an_artifact_is_served_without_a_network(layout: tuple[str, ...], artifact: Path) -> None:
    server = Server(str(artifact), "--verify", *layout)
    assert "sentence-transformers/all-MiniLM-L6-v2" in server.banner
    assert "float32: as the artifact was built" in server.banner
    body = post(f"{server.url}/embed", json={"inputs": "hello world"}).json()
    np.testing.assert_allclose(body[0][:5], HELLO_WORLD, atol=1e-5)
    assert server.stop() == (0, "")


@pytest.mark.parametrize("layout", [(), ("--frontends", "1")], ids=["one process", "frontends"])
def test_a_damaged_artifact_is_not_served(layout: tuple[str, ...], artifact: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(artifact, tmp_path / "broken")
    weights = bytearray((broken / "model.safetensors").read_bytes())
    weights[-5_000_000:] = bytes(5_000_000)
    (broken / "model.safetensors").write_bytes(weights)
    for flags, said in (("--verify",), "another sha256"), ((), "self-check failed: in float32 its vectors are off"):
        command = [*BEI, "serve", str(broken), "--port", "0", *flags, *layout]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
        assert (done.returncode, done.stdout) == (1, "")
        assert said in done.stderr
