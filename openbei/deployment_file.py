"""Which file a deployment is, and what stands in it: YAML, read strictly.

Owns where deployments lie and the form of the file; what its keys mean is deployment_keys.py's and deployment.py's.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openbei.errors import ConfigError

Tree = Mapping[str, Any]

FILE = "config.yaml"


def collection() -> Path:
    """The folder of ready deployments: beside the package in a checkout, within it where it is installed."""
    package = Path(__file__).parent
    beside = package.parent / "deployments"
    return beside if (package.parent / "pyproject.toml").is_file() else package / "deployments"


def file_of(model: str | None) -> Path | None:
    """MODEL, as a person gives it -> its config.yaml: that file, a folder that holds one, or a name of the collection.

    A folder with a config.json is a model, whatever else it holds, unless it is an artifact.
    """
    if not model:
        return None
    path = Path(model).expanduser()
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return path
    folder = path if path.exists() or "/" in model else collection() / path
    is_model = (folder / "config.json").is_file() and not is_artifact(folder)
    return folder / FILE if (folder / FILE).is_file() and not is_model else None


def meant(model: str) -> str:
    """What is no deployment -> a question to put behind the error: the name of the collection most like it, or ""."""
    import difflib

    path = Path(model)
    if path.parent.name not in ("", collection().name):
        return ""  # a hub id, or a folder of another kind
    names = {file.parent.name.lower(): file.parent.name for file in collection().glob(f"*/{FILE}")}
    found = difflib.get_close_matches(path.name.lower(), names, n=1)
    return f"; did you mean {names[found[0]]}?" if found else ""


def is_artifact(folder: Path) -> bool:
    """True of what bei build made."""
    return (folder / "manifest.json").is_file()


def parse(path: Path) -> Tree:
    """A config.yaml -> its keys, without those whose value is null. Raises ConfigError."""
    import yaml  # takes 20 ms to import

    if path.suffix == ".yml":
        raise ConfigError(f"{path}: Truss reads only config.yaml; rename it")

    text = path.read_bytes()
    try:
        _refuse_twice(yaml.compose(text, yaml.SafeLoader), path)
        tree = _without_nulls(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must be a mapping, got {shown(tree)}")
    return tree


def shown(value: Any) -> str:
    """A value as a message may show it: short, on one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _without_nulls(value: Any) -> Any:
    """A key whose value is null is a key that is not there."""
    if isinstance(value, dict):
        return {name: _without_nulls(child) for name, child in value.items() if child is not None}
    return [_without_nulls(child) for child in value] if isinstance(value, list) else value


def _refuse_twice(node: Any, path: Path) -> None:
    """Raise ConfigError for a key that a mapping gives twice: YAML would quietly take the last."""
    pairs = node.value if isinstance(getattr(node, "value", None), list) else []
    names = [pair[0].value for pair in pairs if isinstance(pair, tuple)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{path}: {name!r} is given twice in the mapping of line {node.start_mark.line + 1}")
    for pair in pairs:
        _refuse_twice(pair[1] if isinstance(pair, tuple) else pair, path)
