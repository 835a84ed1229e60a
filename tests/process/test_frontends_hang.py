"""A process that lives and does nothing, as one whose event loop is stuck, is replaced, also before it is ready."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.fakes import words
from tests.process.test_frontends import Served
from tests.web import wait_until


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path, patience_s=3)
    yield served
    served.kill_all()
    served.process.communicate()
    served.pool.shutdown()


def test_what_hangs_is_replaced_and_the_others_go_on(served: Served) -> None:
    served.open()
    first = served.children()
    (served.folder / "stuck").touch()
    served.kill("engine")
    os.kill(first["frontend-1"], signal.SIGSTOP)
    wait_until(lambda: served.children().get("frontend-1") not in {None, first["frontend-1"]})
    assert served.children()["frontend-2"] == first["frontend-2"]
    wait_until(lambda: {served.post(words(3, number)) for number in range(8)} == {200})
    assert not (served.folder / "stuck").exists()
    code, log = served.stop()
    assert code == 0
    assert "the frontend-1 process has done nothing for 3 s: it hangs" in log
    assert "the engine process has done nothing for 3 s: it hangs" in log
