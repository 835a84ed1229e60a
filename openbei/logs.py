"""Where log lines go and how they look: stderr, as text or as JSON lines.

Owns the root logger's one handler; never logs anything itself. LOG_LEVEL is the least level shown, info if not set; of
a list as TEI takes it (`info,hyper=off`), the word that names no part of the program.
A thread of its own writes, so that a reader of stderr that stalls never stalls the server; past MAX_WAITING lines that
could not be written, lines are lost.
"""

import atexit
import contextlib
import logging
import os
import queue
import threading
from logging.handlers import QueueHandler

import orjson

from openbei.errors import ConfigError

TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

STDERR = 2
MAX_WAITING = 10_000
LAST_WORDS_S = 2.0
TEI_LEVELS = {"TRACE": "DEBUG", "OFF": "CRITICAL"}  # the two of its words that Python has not; nothing here is critical

Records = queue.Queue[logging.LogRecord | None]


class Mailbox(QueueHandler):
    """Hands records to the writing thread as they are; a full mailbox loses them."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """The record itself: the writing thread formats it."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Put a record, or drop it."""
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(record)


class JsonFormatter(logging.Formatter):
    """A log record -> one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Record -> {"time", "level", "logger", "message"}, and "exception" where there is one."""
        line = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def start(json_output: bool) -> None:
    """Send every log line to stderr. Raises ConfigError if LOG_LEVEL names no level."""
    level = _level(os.environ.get("LOG_LEVEL", ""))
    formatter = JsonFormatter() if json_output else logging.Formatter(TEXT_FORMAT)
    records: Records = queue.Queue(MAX_WAITING)
    thread = threading.Thread(target=_write, args=(records, formatter), name="log", daemon=True)
    thread.start()
    atexit.register(_finish, records, thread)
    logging.basicConfig(level=level, handlers=[Mailbox(records)], force=True)


def as_json(message: str) -> str:
    """What is to be told before start() -> a line as the log's own in JSON."""
    record = {"name": "openbei", "levelname": "INFO", "msg": message}
    return JsonFormatter().format(logging.makeLogRecord(record))


def _level(said: str) -> str:
    words = [word.strip().upper() for word in said.split(",") if "=" not in word]
    level = next(filter(None, words), "INFO")
    level = TEI_LEVELS.get(level, level)
    if level not in logging.getLevelNamesMapping():
        raise ConfigError(f"LOG_LEVEL must be trace, debug, info, warning, error or off, got {said!r}")
    return level


def _write(records: Records, formatter: logging.Formatter) -> None:
    """Past Python's own stream: a write that stalls there would hold a lock that the interpreter's end waits for."""
    while (record := records.get()) is not None:
        with contextlib.suppress(OSError):
            os.write(STDERR, f"{formatter.format(record)}\n".encode(errors="backslashreplace"))


def _finish(records: Records, thread: threading.Thread) -> None:
    """Write what is left, unless nobody reads."""
    with contextlib.suppress(queue.Full):
        records.put_nowait(None)
        thread.join(LAST_WORDS_S)
