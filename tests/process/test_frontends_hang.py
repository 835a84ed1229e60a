"""A process that lives and does nothing, as one does whose event loop is stuck, is replaced, also before it is ready.

python -m tests.process.test_frontends_hang FOLDER      the program under test: as program.py, with less patience

Where FOLDER holds a file `stuck`, the next engine process hangs on its model's files.
"""

import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from openbei import logs
from openbei.config import EngineConfig, ServerConfig
from openbei.server.processes import Plan
from openbei.server.supervisor import supervise
from tests.engine.fakes import words
from tests.process import test_frontends
from tests.process.fakes import describe, open_or_hang
from tests.process.test_process import wait_until

PATIENCE_S = 3.0


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[test_frontends.Served]:
    start = test_frontends.subprocess.Popen
    program = [sys.executable, "-m", "tests.process.test_frontends_hang", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(test_frontends.subprocess, "Popen", lambda _, **options: start(program, **options))
        served = test_frontends.Served(tmp_path)
    yield served
    served.kill_all()
    served.process.communicate()
    served.pool.shutdown()


def test_what_hangs_is_replaced_and_the_others_go_on(served: test_frontends.Served) -> None:
    served.open()
    first = served.children()
    (served.folder / "stuck").touch()
    served.kill("engine")
    os.kill(first["frontend-1"], signal.SIGSTOP)
    wait_until(lambda: served.children().get("frontend-1") not in {None, first["frontend-1"]})
    assert served.children()["frontend-2"] == first["frontend-2"]
    wait_until(lambda: {served.post(words(3, number)) for number in range(8)} == {200}, limit_s=20)
    assert not (served.folder / "stuck").exists()
    served.process.send_signal(signal.SIGTERM)
    _, log = served.process.communicate(timeout=20)
    assert served.process.returncode == 0
    assert "the frontend-1 process has done nothing for 3 s: it hangs" in log
    assert "the engine process has done nothing for 3 s: it hangs" in log


if __name__ == "__main__":
    server = ServerConfig(hostname="127.0.0.1", port=0, frontends=2)
    set_up = partial(logs.start, json_output=False)
    set_up()
    hanging = partial(open_or_hang, Path(sys.argv[1]))
    patience = {"patience_s": PATIENCE_S, "engine_patience_s": PATIENCE_S}
    plan = Plan(EngineConfig(), server, set_up, describe, hanging, **patience)  # type: ignore[arg-type]
    supervise(plan, lambda url, *_: print(url, flush=True))
