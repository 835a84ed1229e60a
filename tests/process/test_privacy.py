"""What `bei serve` does of itself, without being asked: no message to anybody, no file in the user's home.

Needs the embedded model's package.
"""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.process.test_process import ENV, Server

# Notes, in every process that Python starts or forks, who is looked up or connected to, other than on this machine.
WATCH = """
import os, sys
def watch(event, args):
    remote = event == "socket.connect" and isinstance(args[1], tuple) and not str(args[1][0]).startswith("127.")
    if event in ("os.fork", "os.forkpty") or remote or event == "socket.getaddrinfo" and args[0] != "127.0.0.1":
        with open(os.environ["NOTES"], "a") as notes:
            print(os.getpid(), event, args, file=notes)
sys.addaudithook(watch)
"""


@pytest.mark.parametrize("layout", [(), ("--frontends", "1")], ids=["one process", "frontends"])
def test_a_server_sends_nothing_and_leaves_nothing(
    layout: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WATCH)
    (tmp_path / "home").mkdir()
    notes = tmp_path / "notes"
    added = {"PYTHONPATH": f"{tmp_path}:{os.getcwd()}", "HOME": str(tmp_path / "home"), "NOTES": str(notes)}
    for name, value in added.items():
        monkeypatch.setitem(ENV, name, value)
    for name in ("CI", "TF_BUILD", "JENKINS_URL"):  # OpenVINO's converter keeps silent where these are set
        monkeypatch.delitem(ENV, name, raising=False)
    assert Server(*layout).stop() == (0, "")
    assert not notes.exists(), notes.read_text()
    assert not list((tmp_path / "home").iterdir())


def test_openvinos_tools_are_not_hidden_from_others() -> None:
    import openbei.model.ops.runtime  # noqa: F401

    assert find_spec("openvino.tools.ovc") is not None
