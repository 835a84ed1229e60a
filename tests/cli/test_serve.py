"""`bei serve`: flags and variables become configs; what is wrong is one line and an exit code."""

import json
import re
import signal
import socket
from dataclasses import fields
from typing import Any

import pytest

from openbei.config import EngineConfig, ServerConfig
from openbei.errors import ModelNotFound
from openbei.server.listen import listen
from tests.cli.conftest import Bei, Seen

EVERY_ENGINE_FIELD: dict[str, Any] = {
    "model_id": "org/model",
    "revision": "v2",
    "served_model_name": "name",
    "device": "cpu",
    "dtype": "float32",
    "pooling": "last-token",
    "tokenization_workers": 3,
    "max_concurrent_requests": 4,
    "max_batch_tokens": 5,
    "max_batch_requests": 6,
    "max_input_length": 9,
    "max_queue_tokens": 7,
    "max_client_batch_size": 8,
    "auto_truncate": False,
    "default_prompt_name": "query",
    "huggingface_hub_cache": "folder",
    "hf_token": "hf_secret",
}
EVERY_SERVER_FIELD: dict[str, Any] = {
    "hostname": "127.0.0.1",
    "port": 0,
    "frontends": 0,
    "api_key": "key_secret",
    "max_model_bytes": 1_000_000,
    "payload_limit": 9,
    "cors_allow_origin": ("http://a", "http://b"),
    "compress": False,
    "read_timeout_ms": 10,
    "otlp_endpoint": "http://c:4317",
    "otlp_service_name": "name",
    "json_output": True,
    "default_route": "/embed",
    "aip_predict_route": "/p",
    "aip_health_route": "/h",
    "grpc_max_parallel_stream_requests": 13,
}
EVERY_FIELD = EVERY_ENGINE_FIELD | EVERY_SERVER_FIELD


def test_the_table_above_is_complete() -> None:
    names = {item.name for config in (EngineConfig, ServerConfig) for item in fields(config)}
    assert names - set(EVERY_FIELD) == {"default_prompt", "grpc_port", "grpc_socket", "verify"}  # excluded; need more


def test_every_field_is_a_flag(bei: Bei, seen: Seen) -> None:
    args = []
    for name, value in EVERY_FIELD.items():
        for one in value if isinstance(value, tuple) else [value]:
            args += [f"--{name.replace('_', '-')}", str(one).lower() if isinstance(one, bool) else str(one)]
    assert bei("serve", *args).exit_code == 0
    assert seen.engine.config == EngineConfig(**EVERY_ENGINE_FIELD)
    assert seen.server == ServerConfig(**EVERY_SERVER_FIELD)


def test_every_field_is_a_variable(bei: Bei, seen: Seen) -> None:
    env = {name.upper(): str(value) for name, value in EVERY_FIELD.items()}
    env |= {"AUTO_TRUNCATE": "false", "JSON_OUTPUT": "true", "CORS_ALLOW_ORIGIN": "http://a http://b"}
    assert bei("serve", env=env).exit_code == 0
    assert seen.engine.config == EngineConfig(**EVERY_ENGINE_FIELD)
    assert seen.server == ServerConfig(**EVERY_SERVER_FIELD)


def test_nothing_set_is_the_defaults(bei: Bei, seen: Seen) -> None:
    assert bei("serve").exit_code == 0
    assert (seen.engine.config, seen.server, seen.model) == (EngineConfig(), ServerConfig(), None)


def test_a_flag_wins_over_its_variable(bei: Bei, seen: Seen) -> None:
    bei("serve", "-p", "1", env={"PORT": "2"})
    assert seen.server is not None
    assert seen.server.port == 1


@pytest.mark.parametrize(
    ("env", "port"), [({"AIP_HTTP_PORT": "8080"}, 8080), ({"AIP_HTTP_PORT": "8080", "PORT": "2"}, 2)]
)
def test_the_variables_of_vertex(bei: Bei, seen: Seen, env: dict[str, str], port: int) -> None:
    env |= {"AIP_PREDICT_ROUTE": "/p", "AIP_HEALTH_ROUTE": "/h"}
    assert bei("serve", env=env).exit_code == 0
    assert seen.server is not None
    assert (seen.server.port, seen.server.aip_predict_route, seen.server.aip_health_route) == (port, "/p", "/h")


@pytest.mark.parametrize(
    ("args", "env"),
    [(["m"], {}), (["--model-id", "m"], {}), ([], {"MODEL_ID": "m"}), (["m"], {"MODEL_ID": "other"})],
)
def test_ways_to_name_the_model(bei: Bei, seen: Seen, args: list[str], env: dict[str, str]) -> None:
    assert bei("serve", *args, env=env).exit_code == 0
    assert seen.model == "m"


def test_two_models_are_one_too_many(bei: Bei) -> None:
    result = bei("serve", "m", "--model-id", "n")
    assert result.exit_code == 2
    assert "MODEL is m and --model-id is n" in result.stderr


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--auto-truncate"], True),
        (["--auto-truncate", "false"], False),
        (["--auto-truncate=false"], False),
        (["--auto-truncate", "FALSE"], False),
        (["--auto-truncate", "m"], True),
        (["--auto-truncate", "--port", "0"], True),
    ],
)
def test_forms_of_a_boolean(bei: Bei, seen: Seen, args: list[str], expected: bool) -> None:
    assert bei("serve", *args, env={"AUTO_TRUNCATE": str(not expected)}).exit_code == 0
    assert seen.engine.config.auto_truncate is expected


@pytest.mark.parametrize(("name", "expected"), [("my-container", "0.0.0.0"), ("127.0.0.1", "127.0.0.1"), ("::", "::")])
def test_the_variable_hostname_counts_only_as_an_ip(bei: Bei, seen: Seen, name: str, expected: str) -> None:
    assert bei("serve", env={"HOSTNAME": name}).exit_code == 0
    assert seen.server is not None
    assert seen.server.hostname == expected


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--prot", "1"], "Did you mean '--port'?"),
        (["--hostname", "box"], "'box' is no IP address"),
        (["--pooling", "best"], "is not one of 'cls', 'mean', 'last-token', 'splade'"),
        (["--port", "x"], "'x' is not a valid integer"),
        (["--api-key", ""], "must not be empty"),
    ],
)
def test_a_malformed_flag_exits_2(bei: Bei, seen: Seen, args: list[str], words: str) -> None:
    result = bei("serve", *args)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not seen.engines


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--port", "70000"], "port must be at most 65535, got 70000"),
        (["--max-batch-tokens", "0"], "max_batch_tokens must be at least 1, got 0"),
        (["--default-prompt", "a", "--default-prompt-name", "b"], "exclude each other"),
    ],
)
def test_a_wrong_value_exits_1_with_one_line(bei: Bei, args: list[str], words: str) -> None:
    result = bei("serve", *args)
    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_refused_model_exits_1_with_one_line(bei: Bei, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ModelNotFound("there is no folder nowhere")

    monkeypatch.setattr("openbei.engine.start.load", refuse)
    result = bei("serve", "nowhere")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "Error: there is no folder nowhere\n"


def test_tei_flags_without_meaning_are_noted(bei: Bei, seen: Seen) -> None:
    result = bei("serve", "--uds-path", "/x", "--disable-spans", "--dense-path", "d")
    assert result.exit_code == 0
    assert [line.split()[1] for line in result.stderr.splitlines()] == [
        "--uds-path", "--disable-spans", "--dense-path",
    ]  # fmt: skip


@pytest.mark.parametrize("where", ["flag", "variable"])
def test_the_old_name_of_the_hub_token(bei: Bei, seen: Seen, where: str) -> None:
    args, env = (["--hf-api-token", "t0"], {}) if where == "flag" else ([], {"HF_API_TOKEN": "t0"})
    result = bei("serve", *args, env=env)
    assert seen.engine.config.hf_token == "t0"
    assert "old name" in result.stderr
    assert "t0" not in result.stderr + result.stdout


def test_ready_text(bei: Bei) -> None:
    out = bei("serve", "--api-key", "key_secret").stdout
    for words in (
        "http://127.0.0.1:7997/docs",
        "some/model",
        "bert, 0 layers, 4 wide",
        "float32: this CPU has no native",
    ):
        assert words in out
    assert 'curl http://127.0.0.1:7997/v1/embeddings -H "Authorization: Bearer $API_KEY"' in out
    assert "key_secret" not in out


def test_ready_as_json(bei: Bei) -> None:
    done = bei("serve", "--json-output", "--uds-path", "/x")
    facts, noted = json.loads(done.stdout), json.loads(done.stderr)
    assert (facts["message"], facts["address"]) == ("ready", "http://127.0.0.1:7997")
    assert (noted["level"], noted["message"].partition(":")[0]) == ("info", "--uds-path is ignored")


@pytest.mark.parametrize("flag", ["--port", "--grpc-port"])
def test_a_taken_port_is_told_before_a_model_is_loaded(
    bei: Bei, seen: Seen, monkeypatch: pytest.MonkeyPatch, flag: str
) -> None:
    pytest.importorskip("grpc_reflection", reason="openbei[grpc] is not installed")
    monkeypatch.setattr("openbei.server.listen.listen", listen)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = bei("serve", "--hostname", "127.0.0.1", "--port", "0", flag, str(port))
    assert (done.exit_code, done.output) == (
        1,
        f"Error: cannot listen on port {port} of 127.0.0.1: Address already in use\n",
    )
    assert seen.loading is None


def test_one_port_for_both_is_told_too(bei: Bei, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("grpc_reflection", reason="openbei[grpc] is not installed")
    monkeypatch.setattr("openbei.server.listen.listen", listen)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    done = bei("serve", "--hostname", "127.0.0.1", "--port", port, "--grpc-port", port)
    assert (done.exit_code, "cannot listen on port" in done.output) == (1, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_process_1_hears_a_signal_while_it_loads(bei: Bei, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The kernel lets the first process of a container pass over any signal that it has no handler for."""

    def load(*_: object) -> None:
        handler: Any = signal.getsignal(number)
        handler(number, None)

    def leave(code: int) -> None:
        raise SystemExit(code)

    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    monkeypatch.setattr("openbei.engine.start.load", load)
    monkeypatch.setattr("os._exit", leave)
    monkeypatch.setattr("os.getpid", lambda: 1)
    assert bei("serve").exit_code == 128 + number
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.mark.parametrize(("args", "env"), [(["--grpc-port", "0"], {}), ([], {"GRPC_PORT": "0"})])
def test_a_port_for_grpc_is_chosen_before_the_start(bei: Bei, seen: Seen, args: list[str], env: dict[str, str]) -> None:
    pytest.importorskip("grpc_reflection", reason="openbei[grpc] is not installed")
    done = bei("serve", *args, env=env)
    assert done.exit_code == 0
    assert seen.server.grpc_port
    assert re.search(rf"^grpc +\S+:{seen.server.grpc_port}$", done.output, re.MULTILINE)


@pytest.mark.parametrize(("args", "env"), [(["--frontends", "2"], {}), ([], {"FRONTENDS": "2"})])
def test_frontends_leave_everything_to_other_processes(
    bei: Bei, seen: Seen, args: list[str], env: dict[str, str]
) -> None:
    result = bei("serve", "m", "--dtype", "float32", "--port", "0", *args, env=env)
    assert result.exit_code == 0
    assert seen.plan is not None
    assert seen.plan.engine == EngineConfig(model_id="m", dtype="float32")
    assert seen.plan.server == ServerConfig(port=0, frontends=2)
    assert not seen.engines
    assert seen.loading is None
    assert "1 for the model, 2 for HTTP and tokenizing" in result.stdout
    assert "bert, 0 layers, 4 wide" in result.stdout


def test_help_never_shows_a_secret(bei: Bei) -> None:
    result = bei("serve", "--help", env={"API_KEY": "key_secret", "HF_TOKEN": "hf_secret"})
    assert result.exit_code == 0
    assert "--api-key ***" in result.stdout
    assert "_secret" not in result.stdout
