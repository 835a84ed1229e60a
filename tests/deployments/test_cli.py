"""`bei deployments`, `bei serve DEPLOYMENT` where it goes wrong, and text-embeddings-router."""

import json
from pathlib import Path

import pytest

from openbei import router
from openbei.deployment_file import file_of
from openbei.errors import ModelNotFound
from tests.cli.conftest import Bei, Seen, bei, seen  # noqa: F401 - fixtures
from tests.deployments.forms import COLLECTION, ROWS, TEI, tei, write

MINILM = "TEI-sentence-transformers-all-minilm-l6-v2-embedding"


def test_list_has_the_24(bei: Bei) -> None:  # noqa: F811
    rows = [json.loads(line) for line in bei("deployments", "list", "--json").output.splitlines()]
    assert [row["name"] for row in rows] == sorted(row["name"] for row in ROWS)
    assert len(rows) == 24
    assert {row["name"]: row["model"] for row in rows} == {row["name"]: row["model"] for row in ROWS}
    assert all(row["gpu"] and row["route"] for row in rows)
    assert bei("deployments", "list").output.count("\n") == 24


@pytest.mark.parametrize(
    ("words", "count"), [(["reward"], 2), (["BGE", "rerank"], 2), (["h100", "/v1/embeddings"], 4), (["nomic"], 1)]
)
def test_search(words: list[str], count: int, bei: Bei) -> None:  # noqa: F811
    result = bei("deployments", "search", *words)
    assert result.exit_code == 0
    assert len(result.output.splitlines()) == count


def test_search_that_finds_nothing(bei: Bei) -> None:  # noqa: F811
    result = bei("deployments", "search", "nobody", "has")
    assert result.exit_code == 1
    assert "has nobody and has" in result.output


def test_show(bei: Bei, tmp_path: Path) -> None:  # noqa: F811
    shown = bei("deployments", "show", MINILM, "--json")
    facts = json.loads(shown.output)
    assert facts["model_id"] == "sentence-transformers/all-MiniLM-L6-v2"
    assert (facts["max_input_length"], facts["max_client_batch_size"]) == (16384, 128)
    assert any(note.startswith("no effect here:") for note in facts["notes"])
    by_path = bei("deployments", "show", str(COLLECTION / MINILM / "config.yaml"))
    assert by_path.exit_code == 0
    assert "max_input_length         16,384" in by_path.output
    assert "no deployment" in bei("deployments", "show", "nobody").output
    assert bei("deployments", "--folder", str(tmp_path), "list").exit_code == 1


def test_serve_says_what_has_no_effect_and_serves(bei: Bei, seen: Seen) -> None:  # noqa: F811
    result = bei("serve", str(COLLECTION / MINILM), "--port", "0")
    assert result.exit_code == 0, result.output
    assert "config.yaml: no effect here: " in result.output
    assert seen.model == "sentence-transformers/all-MiniLM-L6-v2"
    assert seen.server is not None
    assert (seen.server.port, seen.server.default_route) == (0, "/v1/embeddings")


def test_a_name_of_the_collection_is_a_deployment(bei: Bei, seen: Seen) -> None:  # noqa: F811
    assert bei("serve", MINILM, "--port", "0").exit_code == 0
    assert seen.model == "sentence-transformers/all-MiniLM-L6-v2"
    assert bei("serve", "nobody", "--port", "0").exit_code == 0
    assert seen.model == "nobody"  # which the hub may know


@pytest.mark.parametrize(
    ("command", "model", "question"),
    [
        ("serve", "BEI-baai-bge-m3-dense", "; did you mean BEI-baai-bge-m3-embedding-dense?"),
        ("serve", "deployments/bei-baai-bge-m3-embeding-dense", "; did you mean BEI-baai-bge-m3-embedding-dense?"),
        ("serve", "name=./BEI-baai-bge-m3-dense/", "; did you mean BEI-baai-bge-m3-embedding-dense?"),
        ("info", "BEI-baai-bge-m3-dense", "; did you mean BEI-baai-bge-m3-embedding-dense?"),
        ("build", "./BEI-baai-bge-m3-dense", "; did you mean BEI-baai-bge-m3-embedding-dense?"),
        ("deployments show", "BEI-baai-bge-m3-dense", "; did you mean BEI-baai-bge-m3-embedding-dense?"),
        ("serve", "nope", ""),
        ("serve", "baai/bge-reranker-large", ""),
        ("serve", "models/BEI-baai-bge-m3-dense", ""),
    ],
)
def test_a_misspelled_deployment(
    command: str,
    model: str,
    question: str,
    bei: Bei,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(model: str, _: object) -> None:
        raise ModelNotFound(f"there is no folder {model}")

    monkeypatch.setattr("openbei.engine.start.load", load)
    result = bei(*command.split(), model)
    assert result.exit_code == 1
    assert result.output.splitlines()[-1].endswith(question or f"no folder {model}")


def test_what_is_a_deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "a", tei(TEI[0]))
    assert file_of("a") == Path("a/config.yaml")
    assert file_of(str(tmp_path / "a")) == file_of(str(file)) == file
    (tmp_path / "a" / "config.json").write_text("{}")
    assert file_of("a") is None  # a model that happens to have such a file
    assert file_of(str(file)) == file
    (tmp_path / "a" / "manifest.json").write_text("{}")
    assert file_of(str(tmp_path / "a")) == file  # an artifact
    assert file_of(MINILM) == COLLECTION / MINILM / "config.yaml"
    assert file_of(f"./{MINILM}") is file_of(f"owner/{MINILM}") is file_of("") is file_of(None) is None
    (tmp_path / MINILM).mkdir()
    assert file_of(MINILM) is None  # what lies here comes first


def test_a_flag_that_is_no_flag_is_refused_with_the_nearest(bei: Bei, tmp_path: Path) -> None:  # noqa: F811
    start = "text-embeddings-router --model-id a/b --max-client-batch 3"
    result = bei("serve", str(write(tmp_path, tei(TEI[0], start_command=start))))
    assert result.exit_code == 1
    assert "config.yaml: No such option" in result.output
    assert "--max-client-batch-size" in result.output


def test_a_file_that_is_wrong_is_refused(bei: Bei, tmp_path: Path) -> None:  # noqa: F811
    result = bei("serve", str(write(tmp_path, "qqq: 1\nresorces: {}\n")))
    assert result.exit_code == 1
    assert "cannot be served:\n  qqq is unknown" in result.output
    assert "resorces is unknown: did you mean resources?" in result.output


# text-embeddings-router


def routed(*args: str) -> int:
    with pytest.raises(SystemExit) as left:
        router.main(list(args))
    return int(left.value.code or 0)


@pytest.fixture
def tei_port(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> Seen:  # noqa: F811
    for name in ("PORT", "MODEL_ID", "HOSTNAME", "MAX_CLIENT_BATCH_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return seen


def test_the_router_listens_on_tei_s_port(tei_port: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    assert routed("--model-id", "a/b", "--max-batch-tokens=9", "--auto-truncate", "--uds-path", "/x") == 0
    assert tei_port.server is not None
    assert (tei_port.server.port, tei_port.model, tei_port.engine.config.max_batch_tokens) == (3000, "a/b", 9)
    monkeypatch.setenv("PORT", "80")  # as TEI's image does
    monkeypatch.setenv("MODEL_ID", "c/d")
    monkeypatch.setenv("MAX_CLIENT_BATCH_SIZE", "4")
    assert routed() == 0
    assert (tei_port.server.port, tei_port.model, tei_port.engine.config.max_client_batch_size) == (80, "c/d", 4)
    assert routed("serve", "-p", "81") == 0  # as its usage texts have it
    assert (tei_port.server.port, tei_port.model) == (81, "c/d")


def test_the_router_needs_a_model(tei_port: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    assert routed("--port", "1") == 2
    assert "needs --model-id or MODEL_ID" in capsys.readouterr().err
    assert tei_port.server is None


@pytest.mark.usefixtures("tei_port")
def test_the_router_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert routed("-V") == routed("--version") == 0
    assert capsys.readouterr().out.count("bei 0.") == 2
