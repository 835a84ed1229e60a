"""`bei info`, `bei --version`, and what importing the command line costs."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

from openbei.errors import UnsupportedModel
from tests.cli.conftest import Bei, Seen

EXPECTED = {
    "model": "some/model",
    "revision": "abc123",
    "folder": "folder",
    "family": "bert",
    "parameters": 10 * 4 + 16 * 4 + 2 * 4 + 2 * 4 + 3 * 4 + 3,
    "layers": 0,
    "width": 4,
    "heads": 2,
    "key_heads": 2,
    "head_width": 2,
    "ffn_width": 8,
    "vocab_size": 10,
    "activation": "gelu",
    "gated": False,
    "positions": 16,
    "position_kind": "learned",
    "attention": "to both sides",
    "pooling": "mean",
    "dense": ["4 -> 3, tanh"],
    "normalize": False,
    "embedding_dim": 3,
    "task": "embed",
    "labels": [],
    "scores": None,
    "max_input_length": 16,
    "lower_case": False,
    "prompts": {"query": "query: "},
    "precision": "float32",
    "precision_reason": "asked for with --dtype",
}


def test_json(bei: Bei, seen: Seen) -> None:
    result = bei("info", "some/model", "--pooling", "cls", "--revision", "r", "--dtype", "float32", "--json")
    assert json.loads(result.stdout) == EXPECTED
    assert seen.loading is not None
    assert (seen.model, seen.loading.pooling, seen.loading.revision) == ("some/model", "cls", "r")


def test_text_is_aligned(bei: Bei) -> None:
    rows = bei("info", "--dtype", "float32").stdout.splitlines()
    assert len(rows) == len(EXPECTED)
    assert {row[17] for row in rows} == {" "}
    assert {row[18] != " " for row in rows} == {True}
    assert "normalize         no" in rows
    assert "prompts           query = 'query: '" in rows


def test_a_refused_model_says_why(bei: Bei, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UnsupportedModel("hidden_act is swish2; openbei does gelu and relu")

    monkeypatch.setattr("openbei.engine.start.load", refuse)
    result = bei("info", "m")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: hidden_act is swish2; openbei does gelu and relu\n"


def test_version(bei: Bei) -> None:
    assert bei("--version").stdout == f"bei {version('openbei')}\n"


def test_the_command_line_imports_nothing_heavy() -> None:
    heavy = ["numpy", "openvino", "starlette", "uvicorn", "tokenizers", "tqdm", "huggingface_hub", "asyncio"]
    code = f"import sys, openbei.cli; print(*(set({heavy}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
