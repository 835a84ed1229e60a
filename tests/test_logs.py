"""What a log line looks like, in a process of its own: the root logger is everybody's."""

import json
import subprocess
import sys
from unittest.mock import Mock

import pytest

PROGRAM = """
import logging
from openbei import logs
logs.start({json_output})
logger = logging.getLogger("some.room")
logger.debug("not shown")
logger.warning("seen %d", 7)
try:
    1 / 0
except ZeroDivisionError:
    logger.exception("failed")
"""


def log_of(json_output: bool) -> list[str]:
    program = PROGRAM.format(json_output=json_output)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_text_lines_name_time_level_and_logger_once() -> None:
    first, second, *trace = log_of(json_output=False)
    assert first.split(" ", 2)[2] == "WARNING some.room: seen 7"
    assert second.split(" ", 2)[2] == "ERROR some.room: failed"
    assert trace[-1] == "ZeroDivisionError: division by zero"


def test_json_lines_hold_the_same_as_fields() -> None:
    first, second = map(json.loads, log_of(json_output=True))
    assert (first["level"], first["logger"], first["message"]) == ("warning", "some.room", "seen 7")
    assert second["exception"].endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize(
    ("said", "level"),
    [("", "INFO"), ("warn", "WARN"), ("Trace", "DEBUG"), ("off", "CRITICAL"), ("hyper=off, debug", "DEBUG")],
)
def test_levels_are_said_as_in_tei(monkeypatch: pytest.MonkeyPatch, said: str, level: str) -> None:
    from openbei import logs

    monkeypatch.setenv("LOG_LEVEL", said)
    monkeypatch.setattr(logs.threading, "Thread", Mock())
    monkeypatch.setattr(logs.atexit, "register", Mock())
    told = Mock()
    monkeypatch.setattr(logs.logging, "basicConfig", told)
    logs.start(json_output=False)
    assert told.call_args.kwargs["level"] == level


def test_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from openbei import logs
    from openbei.errors import ConfigError

    monkeypatch.setenv("LOG_LEVEL", "loud")
    with pytest.raises(ConfigError, match="got 'loud'"):
        logs.start(json_output=False)
