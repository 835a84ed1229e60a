"""config.yaml -> arguments, variables and notes; what is wrong is refused by its dotted path, all at once."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from openbei.deployment import Deployment, Source, read
from openbei.deployment_file import file_of
from openbei.errors import ConfigError
from tests.deployments.forms import BEI, ROUTER, TEI, Tree, bei, row, tei, write

M3 = "BEI-baai-bge-m3-embedding-dense"
NOMIC = "TEI-nomic-ai-nomic-embed-text-v1.5"


def got(folder: Path, tree: Tree | str, *, on_cpu: bool = False) -> Deployment:
    return read(write(folder, tree), on_cpu=on_cpu)


def refused(folder: Path, tree: Tree | str, *, on_cpu: bool = False) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        got(folder, tree, on_cpu=on_cpu)
    return str(caught.value).split("\n  ")[1:]


def changed(tree: Tree, path: str, value: Any) -> Tree:
    """A copy with one dotted path set."""
    tree = deepcopy(tree)
    *parts, last = path.split(".")
    node = tree
    for part in parts:
        node = node.setdefault(part, {})
    node[last] = value
    return tree


@pytest.mark.parametrize("name", BEI)
def test_the_oldest_bei_form(name: str, tmp_path: Path) -> None:
    facts = row(name)
    found = got(tmp_path, bei(name))
    assert found.source == Source(facts["model"], "main")
    fp8 = ("--dtype", "fp8") if facts.get("fp8") else ()
    limit = ("--max-input-length", "16384")
    model = ("--model-id", facts["model"], "--revision", "main")
    assert found.arguments == (*model, *fp8, *limit, "--served-model-name", f"{name}-truss-example")
    assert (found.route, found.accelerator, found.environment) == (None, facts["gpu"], {})
    builders = ", trt_llm.build.num_builder_gpus" if facts.get("fp8") else ""
    resources = "resources.cpu, resources.memory, resources.use_gpu"
    assert found.notes == (f"no effect here: python_version, {resources}{builders}",)


@pytest.mark.parametrize("name", TEI)
def test_the_oldest_tei_form(name: str, tmp_path: Path) -> None:
    facts = row(name)
    found = got(tmp_path, tei(name))
    assert found.source == Source(facts["model"])
    served = ("--served-model-name", f"{name}-truss-example", "--default-route", "/v1/embeddings", "--port", "7997")
    limits = ("--max-client-batch-size", "128", "--max-concurrent-requests", "40")
    tokens = ("--max-input-length", "16384")
    assert found.arguments == ("--model-id", facts["model"], *tokens, *served, *limits)


START = 'bash -c "truss-transfer-cli && {router} --max-concurrent-requests 9 --auto-truncate"'
CACHE = {"repo_id": "a/b", "revision": "main", "use_volume": True, "volume_folder": "v", "kind": "hf"}


def test_the_newer_tei_form(tmp_path: Path) -> None:
    router = ROUTER.format(model="/app/model_cache/v")
    tree = tei(NOMIC, start_command=START.format(router=router)) | {"build_commands": [], "model_cache": [CACHE]}
    found = got(tmp_path, tree)
    assert found.source == Source("a/b", "main")
    limits = ("--max-client-batch-size", "128", "--max-concurrent-requests", "9")
    assert found.arguments[-5:] == (*limits, "--auto-truncate")


@pytest.mark.parametrize(
    ("start", "arguments", "environment"),
    [
        ("text-embeddings-router --model-id a/b --port=7997", (), {}),
        ("/usr/bin/text-embeddings-router --model-id=a/b --auto-truncate false", ("--auto-truncate", "false"), {}),
        ("sh -c 'exec text-embeddings-router -p 7997 --model-id a/b --dtype float32'", ("--dtype", "float32"), {}),
        ("A=1 B='x y' text-embeddings-router --model-id a/b", (), {"A": "1", "B": "x y"}),
        ("MODEL_ID=a/b text-embeddings-router", (), {}),
        ("bei serve --model-id a/b --frontends 2", ("--frontends", "2"), {}),
        ("/bin/sh -c 'truss-transfer-cli; text-embeddings-router --model-id a/b --max-batch-tokens 16384'", (), {}),
    ],
)
def test_start_commands(start: str, arguments: tuple[str, ...], environment: dict[str, str], tmp_path: Path) -> None:
    found = got(tmp_path, tei(NOMIC, start_command=start))
    assert (found.source, found.environment) == (Source("a/b"), environment)
    after_port = found.arguments[found.arguments.index("--port") + 2 :]
    assert after_port == arguments


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ("python server.py", "only text-embeddings-router and bei serve are understood, got 'python'"),
        ("bei embed x", "only text-embeddings-router and bei serve are understood, got 'bei'"),
        ("", "must be one text-embeddings-router command, got 0 commands"),
        ("text-embeddings-router && rm -r /", "must be one text-embeddings-router command, got 2 commands"),
        ("text-embeddings-router | tee log", "pipes, redirections and background jobs are not understood, got ['|']"),
        ("text-embeddings-router 'a", "No closing quotation"),
        ("text-embeddings-router", "must have --model-id"),
        ("LD_PRELOAD=/x text-embeddings-router --model-id a/b", "LD_PRELOAD is refused: it decides which code runs"),
        ("text-embeddings-router --model-id /nowhere/x", "/nowhere/x is not here; the file places /data/local-model"),
        ("text-embeddings-router --model-id a/b --port 80", "server_port is 7997, and start_command says --port 80"),
        ("text-embeddings-router --model-id a/b --max-batch-tokens x", "--max-batch-tokens must be at least 1, got x"),
    ],
)
def test_start_commands_that_are_refused(start: str, says: str, tmp_path: Path) -> None:
    assert any(says in line for line in refused(tmp_path, tei(NOMIC, start_command=start)))


def test_a_folder_that_is_on_this_disk_is_the_model(tmp_path: Path) -> None:
    found = got(tmp_path, tei(NOMIC, start_command=f"text-embeddings-router --model-id {tmp_path}"))
    assert found.source == Source(str(tmp_path))


@pytest.mark.parametrize(
    ("line", "source"),
    [
        ("git clone https://huggingface.co/a/b /data/local-model", Source("a/b")),
        ("git clone --depth 1 -b v2 https://huggingface.co/a/b.git /data/local-model/ # x", Source("a/b", "v2")),
        ("git clone --branch=v2 --depth=1 https://huggingface.co/a/b /data/local-model", Source("a/b", "v2")),
    ],
)
def test_clones(line: str, source: Source, tmp_path: Path) -> None:
    assert got(tmp_path, tei(NOMIC) | {"build_commands": [line]}).source == source


def test_other_build_commands_are_named_and_never_run(tmp_path: Path) -> None:
    tree = tei(NOMIC)
    tree["build_commands"].append(f"touch {tmp_path}/ran")
    assert any("is not run" in note and "touch" in note for note in got(tmp_path, tree).notes)
    assert not (tmp_path / "ran").exists()


def test_weights_place_models_too(tmp_path: Path) -> None:
    tree = tei(NOMIC) | {"build_commands": []}
    for source, want in {
        "hf://a/b@v3": Source("a/b", "v3"),
        "s3://bucket/key": Source("s3://bucket/key"),
        "azure://a/c/y": Source("abfs://c@a.dfs.core.windows.net/y"),
    }.items():
        tree["weights"] = [{"source": source, "mount_location": "/data/local-model"}]
        assert got(tmp_path, tree).source == want
    tree["weights"][0]["source"] = "ftp://x"
    assert any("weights.source must begin with one of hf" in line for line in refused(tmp_path, tree))


def test_the_cache_of_a_store_is_named_with_its_scheme_or_without(tmp_path: Path) -> None:
    for repo in ("bucket/key", "gs://bucket/key"):
        cached = {**CACHE, "kind": "gcs", "repo_id": repo, "volume_folder": "v"}
        tree = tei(NOMIC, start_command=ROUTER.format(model="/app/model_cache/v")) | {"model_cache": [cached]}
        assert got(tmp_path, tree).source == Source("gs://bucket/key", "main")


@pytest.mark.parametrize(
    ("path", "value", "arguments"),
    [
        ("trt_llm.build.max_num_tokens", 65, ("--max-input-length", "65", "--max-batch-tokens", "65")),
        ("trt_llm.build.max_num_tokens", 1048576, ("--max-input-length", "1000001")),
        ("trt_llm.build.max_seq_len", 1, ("--max-input-length", "1")),
        ("trt_llm.build.max_batch_size", 1, ("--max-batch-requests", "1")),
        ("trt_llm.build.max_batch_size", 2048, ("--max-batch-requests", "2048")),
        ("trt_llm.build.quantization_type", "no_quant", ()),
        ("trt_llm.build.quantization_type", "fp8_kv", ("--dtype", "fp8")),
        ("trt_llm.runtime.served_model_name", "x", ("--served-model-name", "x")),
        ("trt_llm.runtime.webserver_default_route", "/predict", ("--default-route", "/predict")),
    ],
)
def test_what_a_key_comes_to(path: str, value: Any, arguments: tuple[str, ...], tmp_path: Path) -> None:
    found = got(tmp_path, changed(bei(M3), path, value)).arguments
    for position in range(0, len(arguments), 2):
        place = found.index(arguments[position])
        assert found[place : place + 2] == arguments[position : position + 2]
    assert ("--dtype" in found) is ("--dtype" in arguments)
    assert ("--max-batch-tokens" in found) is ("--max-batch-tokens" in arguments)


def test_what_is_not_set_has_baseten_s_default(tmp_path: Path) -> None:
    for kind, tokens in (("encoder", "16384"), ("encoder_bert", "8192")):
        tree = bei(M3, base_model=kind)
        del tree["trt_llm"]["build"]["max_num_tokens"]
        found = got(tmp_path, tree).arguments
        assert found[found.index("--max-input-length") + 1] == tokens


@pytest.mark.parametrize(
    ("kind", "repo", "model"),
    [
        ("GCS", "bucket/x", "gs://bucket/x"),
        ("S3", "s3://bucket/x", "s3://bucket/x"),
        ("AZURE", "account/container/x/y", "abfs://container@account.dfs.core.windows.net/x/y"),
        ("AZURE", "azure://account/container/x", "abfs://container@account.dfs.core.windows.net/x"),
        ("AZURE", "az://container/x", "az://container/x"),
        ("REMOTE_URL", "https://a/x.tar.gz", "https://a/x.tar.gz"),
    ],
)
def test_sources(kind: str, repo: str, model: str, tmp_path: Path) -> None:
    tree = changed(bei(M3), "trt_llm.build.checkpoint_repository", {"source": kind, "repo": repo, "revision": "x"})
    assert got(tmp_path, tree).source == Source(model)


def test_a_local_source_is_relative_to_the_file(tmp_path: Path) -> None:
    tree = changed(bei(M3), "trt_llm.build.checkpoint_repository", {"source": "LOCAL", "repo": "model"})
    assert got(tmp_path, tree).source == Source(str(tmp_path.resolve() / "model"))


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("trt_llm.build.max_num_tokens", 64, "must be a whole number from 65 to 1048576, without quotes, got 64"),
        ("trt_llm.build.max_num_tokens", 1048577, "got 1048577"),
        ("trt_llm.build.max_num_tokens", "16384", "got '16384'"),
        ("trt_llm.build.max_num_tokens", 16384.0, "got 16384.0"),
        ("trt_llm.build.max_num_tokens", True, "got True"),
        ("trt_llm.build.max_batch_size", 2049, "must be a whole number from 1 to 2048, without quotes, got 2049"),
        ("trt_llm.build.base_model", "decoder", "must be encoder or encoder_bert, got 'decoder'"),
        ("trt_llm.build.base_model", "whisper", "must be encoder or encoder_bert, got 'whisper'"),
        ("trt_llm.build.base_model", None, "must be encoder or encoder_bert; unset it means decoder"),
        ("trt_llm.build.quantization_type", "fp4", "must be no_quant, fp8, fp8_kv or fp8_mlp_only, got 'fp4'"),
        ("trt_llm.build.quantization_type", "weights_int8", "got 'weights_int8'"),
        ("trt_llm.build.quantization_type", "fp8_mlp_only", "fp8_mlp_only is not offered"),
        ("trt_llm.build.max_beam_width", 2, "2 is refused: only 1 is possible"),
        ("trt_llm.build.lora_adapters", {"a": {}}, "is refused: it is for text generation"),
        ("trt_llm.build.max_num_token", 65, "is unknown: did you mean trt_llm.build.max_num_tokens?"),
        ("trt_llm.build.lora_cache_gpu_memory_fraction", 1, "is unknown"),
        ("trt_llm.build.checkpoint_repository.source", "hf", "got 'hf'"),
        ("trt_llm.build.checkpoint_repository.source", "BASETEN_TRAINING", "got 'BASETEN_TRAINING'"),
        ("trt_llm.build.checkpoint_repository.repo", "", "must be there"),
        ("trt_llm.build.checkpoint_repository.revision", 7, "must be text (in quotes, if it reads as a number), got 7"),
        ("trt_llm.runtime.webserver_default_route", "/v1/systemone", "got '/v1/systemone'"),
        ("trt_llm.inference_stack", "v2", "must be v1, got 'v2'"),
        ("resources.cpu", 4, "must be text (in quotes, if it reads as a number), got 4"),
        ("resources.node_count", 2, "2 is refused: a model is served on one machine"),
        ("runtime.transport", {"kind": "grpc"}, "runtime.transport.kind must be http, got 'grpc'"),
        ("runtime.num_workers", 2, "2 is refused"),
        ("environment_variables.LD_PRELOAD", "/x.so", "is refused: it decides which code runs"),
        ("environment_variables.PYTHONPATH", "/x", "is refused: it decides which code runs"),
        ("secrets", {"hf_access_token": "hf_abc"}, "values never belong in the file, got a value"),
        ("resorces", {}, "resorces is unknown: did you mean resources?"),
        ("qqq", 1, "qqq is unknown: Truss has no such key"),
        ("hf_cache", [{"repo_id": "a/b"}], "it is the old name of model_cache"),
        ("trt_llm", [1], "trt_llm must be a mapping, got [1]"),
    ],
)
def test_what_is_refused(path: str, value: Any, says: str, tmp_path: Path) -> None:
    lines = refused(tmp_path, changed(bei(M3), path, value))
    assert len(lines) == 1
    assert lines[0].startswith(path)
    assert says in lines[0]
    assert "hf_abc" not in lines[0]


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    tree = changed(changed(bei(M3), "qqq", 1), "trt_llm.build.max_num_tokens", 0)
    assert [line.split()[0] for line in refused(tmp_path, tree)] == ["qqq", "trt_llm.build.max_num_tokens"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\na: 2\n", "'a' is given twice in the mapping of line 1"),
        ("a:\n  b: 1\n  b: 2\n", "'b' is given twice in the mapping of line 2"),
        ("a: [", "is not YAML"),
        ("- 1\n", "must be a mapping, got [1]"),
        ("", "must be a mapping, got None"),
        ("model_name: x\n", "trt_llm or docker_server must be there"),
        ("!!python/object/apply:os.system ['true']", "is not YAML"),
    ],
)
def test_files_that_are_no_config(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml") as caught:
        got(tmp_path, text)
    assert says in str(caught.value)


def test_config_yml_is_refused_with_a_hint(tmp_path: Path) -> None:
    path = write(tmp_path, bei(M3)).rename(tmp_path / "config.yml")
    assert file_of(str(path)) == path
    with pytest.raises(ConfigError, match="rename it"):
        read(path, on_cpu=True)


def test_what_a_cpu_does_otherwise(tmp_path: Path) -> None:
    found = got(tmp_path, bei("BEI-salesforce-sfr-embedding-mistral"), on_cpu=True)
    assert "--dtype" not in found.arguments
    assert found.notes[:2] == (
        "resources.accelerator: H100_40GB is not here, the CPU does the work",
        "trt_llm.build.quantization_type: fp8 is for GPUs; the CPU computes in its own precision",
    )


def test_notes(tmp_path: Path) -> None:
    tree = changed(bei(M3), "trt_llm.build.tensor_parallel_count", 2)
    tree = changed(tree, "resources.accelerator", "H100:2") | {"docker_server": tei(NOMIC)["docker_server"]}
    tree["environment_variables"] = {"PORT": 1, "A": True, "B": 2}
    found = got(tmp_path, tree)
    assert found.environment == {"A": "true", "B": "2"}
    assert found.notes[:4] == (
        "trt_llm.build.tensor_parallel_count: 2 has no effect: every GPU holds a whole model: run one replica per GPU",
        "environment_variables.PORT is left out: Truss sets it itself",
        "resources.accelerator: of H100:2 one is used; run one replica per GPU",
        "docker_server has no effect: trt_llm wins",
    )


def test_an_image_of_something_else_is_refused(tmp_path: Path) -> None:
    tree = tei(NOMIC) | {"base_image": {"image": "python:3.12"}}
    assert refused(tmp_path, tree) == ["base_image.image must be a text-embeddings-inference image, got 'python:3.12'"]
    wrong = tei(NOMIC, predict_endpoint="/x", readiness_endpoint="/y")
    assert len(refused(tmp_path, wrong)) == 2
