"""Every key that a Truss config.yaml may hold, what its value may be, and what openbei does with it.

Owns the table and the check of a file against it; what the used keys come to is deployment.py's.
Source: truss 0.18 (github.com/basetenlabs/truss, truss/base/truss_config.py and trt_llm_config.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from openbei.deployment_file import Tree, shown

Effect = Literal["used", "idle", "warned", "refused"]

ROUTES = ("/v1/embeddings", "/rerank", "/predict", "/predict_tokens")
BASE_MODELS = ("encoder", "encoder_bert")
QUANTIZATIONS = ("no_quant", "fp8", "fp8_kv", "fp8_mlp_only")
STORES = {"HF": "", "LOCAL": "", "GCS": "gs://", "S3": "s3://", "AZURE": "azure://", "REMOTE_URL": ""}


@dataclass(frozen=True, slots=True)
class Rule:
    """What a value may be: in words, and as a test."""

    allowed: str
    test: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Key:
    """One key. reason: why it has no effect or is refused. quiet: values of which nothing is said."""

    rule: Rule
    effect: Effect = "used"
    reason: str = ""
    quiet: tuple[Any, ...] = ()


@dataclass(slots=True)
class Findings:
    """What a check found: errors, remarks one a line, and the keys that have no effect."""

    errors: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)


def whole(low: int, high: int | None = None) -> Rule:
    """A YAML integer within limits; a quoted or a fractional one is refused, as truss does."""
    limits = f"from {low} to {high}" if high else f"of at least {low}"
    return Rule(
        f"a whole number {limits}, without quotes",
        lambda value: type(value) is int and value >= low and (high is None or value <= high),
    )


def one_of(*names: str) -> Rule:
    """One of a few words."""
    return Rule(" or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names), lambda value: value in names)


TEXT = Rule("text (in quotes, if it reads as a number)", lambda value: isinstance(value, str))
FLAG = Rule("true or false", lambda value: isinstance(value, bool))
LIST = Rule("a list", lambda value: isinstance(value, list))
TEXTS = Rule("a list of texts", lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value))
MAP = Rule("a mapping", lambda value: isinstance(value, dict))
NAMES = Rule(
    "a mapping of names to null: values never belong in the file",
    lambda value: isinstance(value, dict) and not any(value.values()),
)
ANY = Rule("anything", lambda _: True)
SECTION = Rule("a mapping", lambda value: isinstance(value, dict))
SECTIONS = Rule(
    "a list of mappings", lambda value: isinstance(value, list) and all(isinstance(item, dict) for item in value)
)
TOKENS = whole(1, 1048576)


def _idle(*names: str, rule: Rule = ANY) -> dict[str, Key]:
    return {name: Key(rule, "idle") for name in names}


def _refused(reason: str, *names: str, quiet: tuple[Any, ...] = ()) -> dict[str, Key]:
    return {name: Key(ANY, "refused", reason, quiet) for name in names}


def _warned(reason: str, *names: str, quiet: tuple[Any, ...] = ()) -> dict[str, Key]:
    return {name: Key(ANY, "warned", reason, quiet) for name in names}


_WEIGHT_FILES = {
    **_idle("allow_patterns", "ignore_patterns", rule=TEXTS),
}

TOP: dict[str, Key] = {
    **{name: Key(SECTION) for name in ("trt_llm", "docker_server", "base_image", "resources", "runtime")},
    **{name: Key(TEXT) for name in ("model_name", "description")},
    **{name: Key(MAP) for name in ("environment_variables", "model_metadata")},
    **{name: Key(SECTIONS) for name in ("model_cache", "weights")},
    "secrets": Key(NAMES),
    "build_commands": Key(TEXTS),
    **_idle("python_version", "examples_filename", "requirements_file", "data_dir", rule=TEXT),
    **_idle("requirements", "system_packages", "external_package_dirs", rule=TEXTS),
    **_idle("external_data", rule=LIST),
    **_idle("build", rule=MAP),
    **_idle("live_reload", "apply_library_patches", "use_local_src", "cache_internal"),
    **_idle("model_class_name", "model_class_filename", "model_module_dir", "bundled_packages_dir"),
    **_idle("model_framework", "model_type", "input_type", "spec_version"),
    **_refused("openbei serves embedders, rerankers and classifiers", "bis_llm", "training_checkpoints", "bdn"),
    **_refused("it is the old name of model_cache: rename it", "hf_cache"),
}
TRT_LLM: dict[str, Key] = {
    "inference_stack": Key(one_of("v1")),
    "build": Key(SECTION),
    "runtime": Key(SECTION),
    **_idle("version_overrides", rule=MAP),
}
BUILD: dict[str, Key] = {
    "base_model": Key(one_of(*BASE_MODELS)),
    "checkpoint_repository": Key(SECTION),
    "max_num_tokens": Key(whole(65, 1048576)),
    "max_seq_len": Key(TOKENS),
    "max_batch_size": Key(whole(1, 2048)),
    "quantization_type": Key(one_of(*QUANTIZATIONS)),
    "max_beam_width": Key(one_of(), "refused", "only 1 is possible", (1,)),
    **_idle("quantization_config", "plugin_configuration", rule=MAP),
    **_idle("num_builder_gpus", rule=whole(1)),
    **_idle("moe_expert_parallel_option", "max_prompt_embedding_table_size", "skip_build_result"),
    **_idle("strongly_typed", "gather_all_token_logits", rule=FLAG),
    **_warned("every GPU holds a whole model: run one replica per GPU", "tensor_parallel_count", quiet=(1,)),
    **_warned("every GPU holds a whole model", "pipeline_parallel_count", "sequence_parallel_count", quiet=(1,)),
    **_refused("it is for text generation", "speculator", "lora_adapters", "lora_configuration"),
}
CHECKPOINT: dict[str, Key] = {
    "source": Key(one_of(*STORES)),
    "repo": Key(TEXT),
    "revision": Key(TEXT),
    "runtime_secret_name": Key(TEXT, "idle"),
}
BEI_RUNTIME: dict[str, Key] = {
    "webserver_default_route": Key(one_of(*ROUTES)),
    "served_model_name": Key(TEXT),
    **_idle("kv_cache_free_gpu_mem_fraction", "kv_cache_host_memory_bytes", "enable_chunked_context"),
    **_idle("batch_scheduler_policy", "request_default_max_tokens", "total_token_limit"),
    **_idle("lora_cache_max_adapter_size", "lora_cache_optimal_adapter_size"),
    **_idle("lora_cache_host_memory_bytes", "lora_cache_gpu_memory_fraction"),
}
DOCKER: dict[str, Key] = {
    "start_command": Key(TEXT),
    "server_port": Key(whole(1, 65535)),
    "predict_endpoint": Key(one_of(*ROUTES, "/embed")),
    **{name: Key(one_of("/health", "/ping", "/")) for name in ("readiness_endpoint", "liveness_endpoint")},
    **_idle("run_as_user_id", "no_build"),
}
IMAGE: dict[str, Key] = {"image": Key(TEXT), **_idle("python_executable_path", "docker_auth")}
CACHE: dict[str, Key] = {
    "repo_id": Key(TEXT),
    "revision": Key(TEXT),
    "use_volume": Key(FLAG),
    "volume_folder": Key(TEXT),
    "kind": Key(one_of("hf", "gcs", "s3", "azure")),
    "runtime_secret_name": Key(TEXT, "idle"),
    **_WEIGHT_FILES,
}
WEIGHTS: dict[str, Key] = {
    "source": Key(TEXT),
    "mount_location": Key(TEXT),
    "auth": Key(MAP, "refused", "give the keys of the store in the environment"),
    "auth_secret_name": Key(TEXT, "idle"),
    **_WEIGHT_FILES,
}
RESOURCES: dict[str, Key] = {
    "accelerator": Key(TEXT),
    **_idle("use_gpu", rule=FLAG),
    **_idle("cpu", "memory", "instance_type", rule=TEXT),
    **_idle("fabric"),
    **_refused("a model is served on one machine", "node_count", quiet=(1,)),
}
RUNTIME: dict[str, Key] = {
    "enable_debug_logs": Key(FLAG),
    "transport": Key(MAP),
    **_idle("predict_concurrency", "streaming_read_timeout", "enable_tracing_data", "health_checks"),
    **_idle("oidc", "remote_ssh", "egress_restrictions", "truss_server_version_override"),
    **_refused("openbei speaks HTTP", "is_websocket_endpoint"),
    **_refused("one process owns the model", "num_workers", quiet=(1,)),
}
KEYS: dict[str, dict[str, Key]] = {
    "": TOP,
    "trt_llm": TRT_LLM,
    "trt_llm.build": BUILD,
    "trt_llm.build.checkpoint_repository": CHECKPOINT,
    "trt_llm.runtime": BEI_RUNTIME,
    "docker_server": DOCKER,
    "base_image": IMAGE,
    "model_cache": CACHE,
    "weights": WEIGHTS,
    "resources": RESOURCES,
    "runtime": RUNTIME,
}


def check(tree: Tree) -> Findings:
    """A config.yaml, read -> all that is wrong with its keys and values, and what has no effect."""
    findings = Findings()
    for path, name, value in _entries(tree, ""):
        _check_entry(path, name, value, findings)
    return findings


def _entries(tree: Tree, path: str) -> Iterator[tuple[str, str, Any]]:
    """Each section's path, key and value, deeper ones after; a section of the wrong type is not entered."""
    for name, value in tree.items():
        yield path, str(name), value
        key = KEYS[path].get(str(name))
        if key is not None and key.rule in (SECTION, SECTIONS) and key.rule.test(value):
            for part in value if isinstance(value, list) else [value]:
                yield from _entries(part, _join(path, str(name)))


def _check_entry(path: str, name: str, value: Any, findings: Findings) -> None:
    key, full = KEYS[path].get(name), _join(path, name)
    if key is None:
        close = get_close_matches(name, KEYS[path], 1)
        advice = f"did you mean {_join(path, close[0])}?" if close else "Truss has no such key"
        findings.errors.append(f"{full} is unknown: {advice}")
    elif key.effect != "used" and (value is False or value in ("", [], {}, *key.quiet)):
        pass  # nothing is asked for
    elif key.effect == "refused":
        findings.errors.append(f"{full}: {shown(value)} is refused: {key.reason}")
    elif not key.rule.test(value):
        given = "a value" if key.rule is NAMES else shown(value)
        findings.errors.append(f"{full} must be {key.rule.allowed}, got {given}")
    elif key.effect == "warned":
        findings.remarks.append(f"{full}: {shown(value)} has no effect: {key.reason}")
    elif key.effect == "idle":
        findings.idle.append(full)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
