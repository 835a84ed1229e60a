"""`bei serve` with several models: names, whose flags count, what contradicts, and what is loaded later."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from openbei.config import EngineConfig, ServerConfig
from openbei.errors import ConfigError
from tests.cli.conftest import Bei, Seen

BEI = """
model_name: {name}
resources: {{accelerator: H100}}
environment_variables: {variables}
trt_llm:
  build:
    base_model: encoder_bert
    checkpoint_repository: {{source: HF, repo: {repo}, revision: {revision}}}
    max_num_tokens: {tokens}
  runtime: {{webserver_default_route: {route}}}
"""
TEI = """
base_image: {{image: baseten/text-embeddings-inference-mirror:turing-1.6}}
docker_server:
  start_command: text-embeddings-router --model-id org/t {flags}
  server_port: 7997
  predict_endpoint: /embed
  readiness_endpoint: /health
  liveness_endpoint: /health
"""


def bei_file(folder: Path, name: str, **changes: Any) -> str:
    values = {"name": name, "repo": f"org/{name}", "revision": "main", "tokens": 100, "route": "/v1/embeddings"}
    return write(folder / name, BEI.format(**values | {"variables": "{}"} | changes))


def tei_file(folder: Path, name: str, flags: str) -> str:
    return write(folder / name, TEI.format(flags=flags))


def write(folder: Path, text: str) -> str:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(text)
    return str(folder)


def configs(seen: Seen) -> list[EngineConfig]:
    return [engine.config for engine in seen.engines]


def test_each_model_is_read_and_served_under_its_name(bei: Bei, seen: Seen) -> None:
    result = bei("serve", "a=./x", "b=org/y", "--dtype", "float32")
    assert result.exit_code == 0, result.stderr
    assert configs(seen) == [
        EngineConfig(model_id="./x", served_model_name="a", dtype="float32"),
        EngineConfig(model_id="org/y", served_model_name="b", dtype="float32"),
    ]
    assert (seen.models, seen.served.names, seen.served.several) == (["./x", "org/y"], ("a", "b"), True)
    assert re.findall(r"^name +(\w+)$", result.stdout, re.MULTILINE) == ["a", "b"]
    assert result.stdout.count("address") == 1


def test_ready_as_json_has_all(bei: Bei) -> None:
    facts = json.loads(bei("serve", "a=x", "b=y", "--json-output").stdout)
    assert facts["message"] == "ready"
    assert [one["name"] for one in facts["models"]] == ["a", "b"]


def test_one_model_may_have_a_name_too(bei: Bei, seen: Seen) -> None:
    result = bei("serve", "a=./x")
    assert configs(seen) == [EngineConfig(model_id="./x", served_model_name="a")]
    assert not seen.served.several
    assert "name " not in result.stdout


def test_a_folder_s_own_name_may_hold_the_sign(bei: Bei, seen: Seen, tmp_path: Path) -> None:
    folder = tmp_path / "a=b"
    folder.mkdir()
    assert bei("serve", str(folder), f"c={folder}").exit_code == 0
    assert [(one.served_model_name, one.model_id) for one in configs(seen)] == [(None, str(folder)), ("c", str(folder))]


def test_with_frontends_the_plan_has_all(bei: Bei, seen: Seen) -> None:
    assert bei("serve", "a=x", "b=y", "c=z", "--frontends", "2").exit_code == 0
    assert seen.plan is not None
    assert [one.served_model_name for one in (seen.plan.engine, *seen.plan.others)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["a=x", "a=y"], 1, "two models are named 'a'"),
        (["x", "y"], 1, "two models are named 'some/model'"),
        (["a=x", "=y"], 2, "'=y' must be NAME=MODEL"),
        (["a=x", "b="], 2, "'b=' must be NAME=MODEL"),
        (["a=x", "b=y", "--served-model-name", "n"], 1, "write NAME=MODEL for each"),
        (["a=x", "--served-model-name", "n"], 2, "a=x has a name, and --served-model-name is n"),
        (["a=x", "b=y", "--model-id", "z"], 2, "give one of them"),
        (["a=x", "b=y", "--max-model-bytes", "600"], 1, "the weights of 'b' have 540 bytes > 60"),
        (["a=x", "--max-model-bytes", "539"], 1, "the weights of 'a' have 540 bytes > 539"),
    ],
)
def test_what_cannot_be(bei: Bei, args: list[str], code: int, said: str) -> None:
    result = bei("serve", *args, "--dtype", "float32")
    assert (result.exit_code, said in result.stderr) == (code, True), result.stderr


def test_a_deployment_s_settings_are_its_model_s_alone(bei: Bei, seen: Seen, tmp_path: Path) -> None:
    first, second = bei_file(tmp_path, "one", tokens=100), bei_file(tmp_path, "two", tokens=200, route="/rerank")
    result = bei("serve", first, f"named={second}", "c=x", "--max-client-batch-size", "7")
    assert result.exit_code == 0, result.stderr
    found = [(one.model_id, one.served_model_name, one.max_input_length) for one in configs(seen)]
    assert found == [("org/one", "one", 100), ("org/two", "named", 200), ("x", "c", None)]
    assert [one.revision for one in configs(seen)] == ["main", "main", None]
    assert {one.max_client_batch_size for one in configs(seen)} == {7}
    assert seen.server == ServerConfig()  # each model's kind says its default route


def test_a_flag_wins_over_every_file(bei: Bei, seen: Seen, tmp_path: Path) -> None:
    first, second = bei_file(tmp_path, "one"), bei_file(tmp_path, "two", tokens=200)
    assert bei("serve", first, second, "--max-input-length", "50", "--revision", "v9").exit_code == 0
    assert [(one.max_input_length, one.revision) for one in configs(seen)] == [(50, "v9"), (50, "v9")]


def test_a_file_s_variables_are_its_model_s_too(bei: Bei, seen: Seen, tmp_path: Path) -> None:
    first = bei_file(tmp_path, "one", variables="{POOLING: last-token, AUTO_TRUNCATE: 'false'}")
    result = bei("serve", first, "b=x", env={"POOLING": "cls"})
    assert result.exit_code == 0, result.stderr
    assert [(one.pooling, one.auto_truncate) for one in configs(seen)] == [("last-token", False), ("cls", True)]


def test_what_files_say_of_the_server_must_agree(bei: Bei, seen: Seen, tmp_path: Path) -> None:
    first, second = (tei_file(tmp_path, name, f"--payload-limit {n}") for name, n in (("one", 5), ("two", 6)))
    refused = bei("serve", f"a={first}", f"b={second}")
    assert refused.exit_code == 1
    assert f"payload_limit is 5 in {first}/config.yaml and 6 in {second}/config.yaml" in refused.stderr
    assert bei("serve", f"a={first}", f"b={second}", "--payload-limit", "9").exit_code == 0
    assert seen.server is not None
    assert (seen.server.payload_limit, seen.server.port) == (9, 7997)
    assert bei("serve", f"a={first}", "b=x").exit_code == 0
    assert seen.server.payload_limit == 5


def test_variables_of_no_flag_must_agree_too(
    bei: Bei, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: Seen
) -> None:
    monkeypatch.setenv("SOMEBODY_S", "before")
    first, second, third = (
        bei_file(tmp_path, name, variables=f"{{SOMEBODY_S: '{value}'}}")
        for name, value in (("a", 1), ("b", 2), ("c", 1))
    )
    assert "SOMEBODY_S is '1'" in bei("serve", first, second).stderr
    assert bei("serve", first, third).exit_code == 0
    import os

    assert os.environ["SOMEBODY_S"] == "1"


@pytest.mark.parametrize("start", [["m"], ["a=m", "b=n"]])
def test_what_is_loaded_later_has_the_server_s_flags(bei: Bei, seen: Seen, tmp_path: Path, start: list[str]) -> None:
    given = ["--revision", "v1", "--dtype", "float32", "--payload-limit", "5"]
    if len(start) == 1:
        given += ["--served-model-name", "one"]
    assert bei("serve", *start, *given, env={"MAX_INPUT_LENGTH": "9"}).exit_code == 0
    configure = pickle.loads(pickle.dumps(seen.served._configure))  # as an engine process gets it
    plain = EngineConfig(model_id="later", served_model_name="n", dtype="float32", max_input_length=9)
    assert configure("later", "n", None) == plain
    assert configure("later", None, "v2").revision == "v2"
    one = configure(bei_file(tmp_path, "one", tokens=70), None, None)
    assert (one.model_id, one.served_model_name, one.max_input_length, one.revision) == ("org/one", "one", 70, "main")
    with pytest.raises(ConfigError, match="payload_limit to 6, and this server has 5"):
        configure(tei_file(tmp_path, "tei", "--payload-limit 6"), None, None)
    assert configure(tei_file(tmp_path, "same", "--payload-limit 5"), None, None).model_id == "org/t"
    with pytest.raises(ConfigError, match="sets the variable ODD"):
        configure(bei_file(tmp_path, "odd", variables="{ODD: x}"), None, None)
    with pytest.raises(ConfigError, match="No such option"):
        configure(tei_file(tmp_path, "wrong", "--prot 5"), None, None)
