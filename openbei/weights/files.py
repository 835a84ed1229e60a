"""JSON files of a model's folder -> Python, with errors that name the file. Knows no file's meaning."""

import json
from pathlib import Path
from typing import Any

from openbei.errors import ModelError, ModelNotFound


def read_json(path: Path) -> Any:
    """A JSON file -> its value. Raises ModelNotFound without the file, ModelError if it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelNotFound(f"{path.parent} has no {path.name}") from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error


def read_object(path: Path, *, optional: bool = False) -> dict[str, Any]:
    """A JSON file that holds an object -> a dict; if optional, {} where there is no such file."""
    if optional and not path.exists():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold a JSON object, got {type(value).__name__}")
    return value
