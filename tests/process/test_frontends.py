"""Level 9 with frontends: what dies is noticed, answered and mended; what is told to stop finishes its work.

On a fake model whose batches take until a test lets them go; test_process.py has the real command and model.
"""

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.engine.fakes import words
from tests.web import LIMIT_S, get, post, wait_until

NUM_FRONTENDS = 2
NUM_CLIENTS = 16  # each with a connection of its own: the kernel gives all of them to one frontend once in 32,768 times


class Served:
    """The program on a fake model, its children by name, and clients that post one text each at the same time."""

    def __init__(self, folder: Path, *names: str, patience_s: float = 60) -> None:
        self.folder = folder
        args = [str(folder), str(NUM_FRONTENDS), str(patience_s), *names]
        command = [sys.executable, "-m", "tests.process.program", *args]
        env = os.environ | {"TMPDIR": str(folder)}  # where a program that is killed leaves its folder
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()
        self.url = line.split()[0]
        self.pool = ThreadPoolExecutor(NUM_CLIENTS + 1)
        self.first = self.children()

    def children(self) -> dict[str, int]:
        """Name -> process id of the children that are alive."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                command, stat = (path / "cmdline").read_text().split("\0"), (path / "stat").read_text()
            except OSError:
                continue
            if "openbei.server.child" in command and int(stat.rpartition(")")[2].split()[1]) == self.process.pid:
                found[command[command.index("openbei.server.child") + 1]] = int(path.name)
        return found

    def kill_all(self) -> None:
        """The children too: where a test failed, they may have outlived the program."""
        left = {*self.first.values(), *self.children().values()}
        self.process.kill()
        for pid in left:
            with contextlib.suppress(OSError):
                if "openbei.server.child" in Path(f"/proc/{pid}/cmdline").read_text():
                    os.kill(pid, signal.SIGKILL)

    def kill(self, name: str) -> None:
        """Returns when it is dead, which on a busy machine is not at once."""
        pid = self.children()[name]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: self.children().get(name) != pid)

    def post(self, text: str) -> int | type[Exception]:
        """The status of one request on a connection of its own, or the error that the connection met."""
        try:
            answer = post(f"{self.url}/embed", json={"inputs": text, "normalize": False})
        except httpx.TransportError as error:
            return type(error)
        if answer.status_code == 200:
            first, count = text.split(maxsplit=1)[0], len(text.split())
            assert answer.json() == [[int(first[1:]), count, 0, 0]]
        return answer.status_code

    def post_all(self) -> list["Future[int | type[Exception]]"]:
        """One request a client -> their futures, once all of them are in the engine."""
        before = self.counted()
        posted = [self.pool.submit(self.post, words(1 + number % 9, number)) for number in range(NUM_CLIENTS)]
        wait_until(lambda: self.counted() == before + NUM_CLIENTS)
        wait_until(lambda: self.metric("te_queue_size") > 0 or self.is_open)
        return posted

    @property
    def is_open(self) -> bool:
        return (self.folder / "go").exists()

    def open(self) -> None:
        (self.folder / "go").touch()

    def num_begun(self) -> int:
        return len([*self.folder.glob("begun-*")])

    def metric(self, name: str) -> float:
        found = re.search(rf"^{name}(?:{{method=\"single\"}})? (\S+)$", get(f"{self.url}/metrics").text, re.MULTILINE)
        assert found
        return float(found[1])

    def counted(self) -> float:
        return self.metric("te_request_count")

    def health(self) -> int:
        return get(f"{self.url}/health").status_code

    def max_input_length(self) -> int:
        return int(get(f"{self.url}/info").json()["max_input_length"])

    def wait_until_whole(self) -> None:
        """Every process is there, and all frontends say that they are ready."""
        wait_until(lambda: len(self.children()) == 1 + NUM_FRONTENDS)
        wait_until(lambda: [self.health() for _ in range(NUM_CLIENTS)] == [200] * NUM_CLIENTS)

    def stop(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, log


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(tmp_path)
    yield served
    served.open()
    served.kill_all()
    served.process.communicate()
    served.pool.shutdown()


def test_an_engine_killed_amid_requests_is_told_at_once_and_mended(served: Served) -> None:
    posted = served.post_all()
    served.kill("engine")
    assert {future.result(LIMIT_S) for future in posted} == {503}
    assert served.counted() == NUM_CLIENTS
    served.wait_until_whole()
    served.open()
    assert served.post(words(3)) == 200
    assert (served.counted(), served.metric("te_request_success")) == (NUM_CLIENTS + 1, 1)
    code, log = served.stop()
    assert code == 0
    assert "the engine process ended with -9; starting another after 0.0 s" in log


def test_a_frontend_killed_amid_requests_takes_none_of_the_others_along(served: Served) -> None:
    posted = served.post_all()
    served.kill("frontend-1")
    wait_until(lambda: any(future.done() for future in posted))
    served.wait_until_whole()
    served.open()
    seen = Counter(future.result(LIMIT_S) for future in posted)
    assert set(seen) - {httpx.ReadError, httpx.RemoteProtocolError} == {200}
    assert 0 < seen[200] < NUM_CLIENTS
    assert (served.counted(), served.metric("te_request_success")) == (NUM_CLIENTS, seen[200])
    assert {served.post(words(2)) for _ in range(8)} == {200}
    code, log = served.stop()
    assert code == 0
    assert "the frontend-1 process ended with -9; starting another after 0.0 s" in log


def test_a_text_that_kills_the_engine_time_and_again_leaves_a_server(served: Served) -> None:
    served.open()
    for _ in range(2):
        assert served.post("w49") == 503
        served.wait_until_whole()
    assert served.post(words(2)) == 200
    (folder,) = served.folder.glob("openbei-*")
    assert len([*folder.glob("engine-*")]) == 1  # the sockets of those that have ended went with them
    lock = os.open(folder, os.O_RDONLY)
    with pytest.raises(BlockingIOError):  # who clears /tmp keeps off
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(lock)


def test_frontends_are_replaced_when_another_engine_serves_another_model(served: Served) -> None:
    served.open()
    (served.folder / "max_length").write_text("5")
    served.kill("engine")
    wait_until(lambda: [served.max_input_length() for _ in range(NUM_CLIENTS)] == [5] * NUM_CLIENTS)
    served.wait_until_whole()
    assert post(f"{served.url}/embed", json={"inputs": words(9), "normalize": False}).json() == [[1, 5, 0, 0]]


def test_sigterm_answers_what_is_in_flight_and_refuses_the_rest(served: Served) -> None:
    posted = served.post_all()
    with httpx.Client(base_url=served.url, timeout=LIMIT_S) as kept:
        kept.get("/health")
        stopping = threading.Thread(target=served.process.send_signal, args=[signal.SIGTERM])
        stopping.start()
        wait_until(lambda: kept.get("/health").status_code == 503)
        served.open()
        assert {future.result(LIMIT_S) for future in posted} == {200}
    stopping.join()
    _, log = served.process.communicate(timeout=LIMIT_S)
    assert served.process.returncode == 0
    assert all("/health" in line for line in log.splitlines()), log
    assert served.children() == {}


def test_a_second_sigterm_does_not_wait(served: Served) -> None:
    posted = served.post_all()
    with httpx.Client(base_url=served.url, timeout=LIMIT_S) as kept:
        kept.get("/health")
        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: kept.get("/health").status_code == 503)
    children = served.children()
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(LIMIT_S) == 0
    assert 200 not in {future.result(LIMIT_S) for future in posted}
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children.values()))


def test_no_process_outlives_the_supervisor(served: Served) -> None:
    served.post_all()
    children = served.children()
    assert len(children) == 1 + NUM_FRONTENDS
    served.process.kill()
    wait_until(lambda: not any(alive(pid) for pid in children.values()))


@pytest.mark.parametrize(
    ("imported", "not_imported"),
    [
        ("openbei.server.serve, openbei.engine.engine, openbei.engine.remote", "openvino, openbei.weights.load"),
        ("openbei.engine.start, openbei.engine.host", "uvicorn, starlette"),
        ("openbei.server.supervisor", "openvino, openbei.weights.load, uvicorn, starlette, tokenizers"),
    ],
    ids=["frontend", "engine", "supervisor"],
)
def test_a_process_imports_only_what_it_needs(imported: str, not_imported: str) -> None:
    code = f"import sys, {imported}; print([name for name in {not_imported.split(', ')} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def alive(pid: int) -> bool:
    """False also for a zombie whose new parent has not looked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
