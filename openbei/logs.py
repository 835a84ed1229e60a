"""Where log lines go and how they look: stderr, as text or as JSON lines.

Owns the root logger's one handler; never logs anything itself. LOG_LEVEL is the least level shown, info if not set.
"""

import logging
import os

import orjson

from openbei.errors import ConfigError

TEXT_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


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
    level = os.environ.get("LOG_LEVEL") or "info"
    if level.upper() not in logging.getLevelNamesMapping():
        raise ConfigError(f"LOG_LEVEL must be debug, info, warning or error, got {level!r}")
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if json_output else logging.Formatter(TEXT_FORMAT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
