"""A frontend that lives and does nothing, as one does whose event loop is stuck, is replaced."""

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
    served = Served(tmp_path, patience_s=1.5)
    yield served
    served.kill_all()
    served.process.communicate()
    served.pool.shutdown()


def test_a_frontend_that_hangs_is_replaced_and_the_others_go_on(served: Served) -> None:
    served.open()
    first = served.children()
    os.kill(first["frontend-1"], signal.SIGSTOP)
    wait_until(lambda: served.children().get("frontend-1") not in {None, first["frontend-1"]})
    assert served.children()["engine"] == first["engine"]
    wait_until(lambda: {served.post(words(3, number)) for number in range(8)} == {200})
    code, log = served.stop()
    assert code == 0
    assert "the frontend-1 process has said nothing for 1.5 s: it hangs" in log
