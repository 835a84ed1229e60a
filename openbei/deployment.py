"""A Truss config.yaml -> the arguments and variables that `bei serve` runs it with, and notes on what it does not do.

Owns what the used keys come to, in both forms: trt_llm (BEI), and docker_server with a text-embeddings-router command.
A config.yaml in an artifact is of the weights beside it. Reads one file; runs nothing, fetches nothing, and never
touches models or sockets.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openbei.deployment_command import Start, read_clone, read_start, take
from openbei.deployment_file import Tree, is_artifact, parse, shown
from openbei.deployment_keys import STORES, Findings, check
from openbei.errors import ConfigError

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 512, 16384  # batches that the engine forms by itself are no larger
DEFAULT_NUM_TOKENS = {"encoder": 16384, "encoder_bert": 8192}
SCHEMES = {"hf": "", "gcs": "gs://", "gs": "gs://", "s3": "s3://", "azure": "azure://", "https": "https://"}
RESERVED = ("PORT", "HOSTNAME")
LOADERS = ("LD_", "PYTHON", "PATH")
IMAGE = "text-embeddings-inference"


@dataclass(frozen=True, slots=True)
class Source:
    """Where the weights are: a hub id, a folder or a URL; revision is the hub's."""

    model_id: str
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Deployment:
    """One config.yaml, understood.

    settings: the arguments of `bei serve` but those that name the model. environment: variables to set before they are
    read. route: the path that its clients call first, None where the model decides.
    """

    name: str
    path: Path
    source: Source
    settings: tuple[str, ...]
    environment: dict[str, str]
    notes: tuple[str, ...]
    route: str | None
    accelerator: str | None
    description: str

    @property
    def arguments(self) -> tuple[str, ...]:
        """All arguments of `bei serve`; a person's own come after, and so win."""
        revision = () if self.source.revision is None else ("--revision", self.source.revision)
        return ("--model-id", self.source.model_id, *revision, *self.settings)


@dataclass(slots=True)
class _Draft:
    """What is gathered on the way."""

    tree: Tree
    folder: Path
    on_cpu: bool
    findings: Findings
    settings: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    route: str | None = None

    def section(self, path: str) -> Tree:
        """The mapping at a dotted path; empty if it is not there."""
        part: Any = self.tree
        for name in path.split("."):
            part = part.get(name) or {}
        return part if isinstance(part, dict) else {}

    def error(self, text: str) -> None:
        """One more thing that is wrong."""
        self.findings.errors.append(text)

    def set(self, flag: str, value: Any) -> None:
        """One more argument, if there is a value."""
        if value is not None:
            self.settings += [flag, str(value)]


def read(path: Path, *, on_cpu: bool) -> Deployment:
    """A config.yaml -> a Deployment for this kind of device. Raises ConfigError with all that is wrong at once."""
    tree = parse(path)
    draft = _Draft(tree, path.parent, on_cpu, check(tree))
    source = Source("")
    if not draft.findings.errors:
        _read_environment(draft)
        source = _read_form(draft)
    if draft.findings.errors:
        raise ConfigError("\n  ".join([f"{path} cannot be served:", *draft.findings.errors]))
    if is_artifact(path.parent):
        source = Source(str(path.parent))
    return Deployment(
        name=path.resolve().parent.name,
        path=path,
        source=source,
        settings=tuple(draft.settings),
        environment=draft.environment,
        notes=tuple(_notes(draft.findings)),
        route=draft.route,
        accelerator=draft.section("resources").get("accelerator"),
        description=tree.get("description") or "",
    )


def _notes(findings: Findings) -> Iterator[str]:
    yield from findings.remarks
    if findings.idle:
        yield f"no effect here: {', '.join(findings.idle)}"


def _read_environment(draft: _Draft) -> None:
    """What both forms share."""
    for name, value in draft.section("environment_variables").items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if name in RESERVED:
            draft.findings.remarks.append(f"environment_variables.{name} is left out: Truss sets it itself")
        else:
            _set_variable(draft, f"environment_variables.{name}", str(name), text)
    runtime = draft.section("runtime")
    if runtime.get("enable_debug_logs"):
        draft.environment.setdefault("LOG_LEVEL", "debug")
    kind = draft.section("runtime.transport").get("kind", "http")
    if kind != "http":
        draft.error(f"runtime.transport.kind must be http, got {kind!r}")
    accelerator = draft.section("resources").get("accelerator")
    if accelerator and draft.on_cpu:
        draft.findings.remarks.append(f"resources.accelerator: {accelerator} is not here, the CPU does the work")
    elif accelerator and accelerator.partition(":")[2] not in ("", "1"):
        draft.findings.remarks.append(f"resources.accelerator: of {accelerator} one is used; run one replica per GPU")


def _set_variable(draft: _Draft, where: str, name: str, value: str) -> None:
    if name.startswith(LOADERS):
        draft.error(f"{where} is refused: it decides which code runs, and a file may not")
    draft.environment[name] = value


def _read_form(draft: _Draft) -> Source:
    if draft.tree.get("trt_llm"):
        if draft.tree.get("docker_server"):
            draft.findings.remarks.append("docker_server has no effect: trt_llm wins")
        return _read_bei(draft)
    if draft.tree.get("docker_server"):
        return _read_tei(draft)
    draft.error("trt_llm or docker_server must be there: they say what to serve")
    return Source("")


def _read_bei(draft: _Draft) -> Source:
    build, runtime = draft.section("trt_llm.build"), draft.section("trt_llm.runtime")
    kind = build.get("base_model", "decoder")
    if kind == "decoder":
        draft.error("trt_llm.build.base_model must be encoder or encoder_bert; unset it means decoder")
        return Source("")
    checkpoint = draft.section("trt_llm.build.checkpoint_repository")
    for name in ("source", "repo"):
        if not checkpoint.get(name):
            draft.error(f"trt_llm.build.checkpoint_repository.{name} must be there")
            return Source("")
    source = _checkpoint(checkpoint, draft.folder)
    _read_quantization(draft, build.get("quantization_type", "no_quant"))
    most = build.get("max_num_tokens", DEFAULT_NUM_TOKENS[kind])
    _set_tokens(draft, most, build.get("max_seq_len"))
    draft.set("--max-batch-requests", build.get("max_batch_size"))
    draft.set("--served-model-name", runtime.get("served_model_name") or draft.tree.get("model_name"))
    _set_route(draft, runtime.get("webserver_default_route"))
    return source


def _checkpoint(checkpoint: Tree, folder: Path) -> Source:
    kind, repo = checkpoint["source"], checkpoint["repo"]
    if kind == "LOCAL":
        return Source(str((folder / repo).resolve()))
    return Source(_address(STORES[kind], repo), checkpoint.get("revision") if kind == "HF" else None)


def _address(scheme: str, place: str) -> str:
    """A place in a store, with its scheme or without -> the address that bei build takes."""
    address = place if "://" in place else scheme + place
    if not address.startswith("azure://"):
        return address
    account, _, rest = address.removeprefix("azure://").partition("/")
    container, _, path = rest.partition("/")
    return f"abfs://{container}@{account}.dfs.core.windows.net/{path}"


def _read_quantization(draft: _Draft, kind: str) -> None:
    if kind == "no_quant":
        return
    name = "trt_llm.build.quantization_type"
    if draft.on_cpu:
        draft.findings.remarks.append(f"{name}: {kind} is for GPUs; the CPU computes in its own precision")
    elif kind == "fp8_mlp_only":
        draft.error(f"{name}: fp8_mlp_only is not offered; fp8 takes in every block, no_quant none")
    else:
        if kind == "fp8_kv":
            draft.findings.remarks.append(f"{name}: fp8_kv is served as fp8: an encoder has no such cache")
        draft.set("--dtype", "fp8")


def _set_tokens(draft: _Draft, most: int, longest: int | None) -> None:
    """The most tokens of a batch are the most of one input too; how many run together otherwise the device decides."""
    draft.set("--max-input-length", min(most, longest or most))
    if most < (CPU_BATCH_TOKENS if draft.on_cpu else GPU_BATCH_TOKENS):
        draft.set("--max-batch-tokens", most)


def _set_route(draft: _Draft, route: str | None) -> None:
    draft.route = route
    draft.set("--default-route", route)


def _read_tei(draft: _Draft) -> Source:
    docker, image = draft.section("docker_server"), draft.section("base_image").get("image") or ""
    if IMAGE not in image:
        draft.error(f"base_image.image must be a {IMAGE} image, got {image!r}")
    try:
        start = read_start(docker.get("start_command") or "")
    except ValueError as error:
        draft.error(f"docker_server.start_command {error}")
        return Source("")
    given = list(start.arguments)
    for name, value in start.environment.items():
        _set_variable(draft, f"docker_server.start_command: {name}", name, value)
    _check_port(draft, take(given, "--port", "-p"))
    source = _local_model(draft, start, given)
    if source is None:
        return Source("")
    _read_batch_tokens(draft, given)
    draft.set("--served-model-name", draft.tree.get("model_name") or None)
    _set_route(draft, docker.get("predict_endpoint"))
    draft.set("--port", docker.get("server_port"))
    draft.settings += given
    return source


def _check_port(draft: _Draft, port: str | None) -> None:
    listens = draft.section("docker_server").get("server_port")
    if listens is None:
        draft.error("docker_server.server_port must be there")
    elif port is not None and port != str(listens):
        draft.error(f"docker_server.server_port is {listens}, and start_command says --port {port}")


def _read_batch_tokens(draft: _Draft, given: list[str]) -> None:
    most = take(given, "--max-batch-tokens") or draft.environment.pop("MAX_BATCH_TOKENS", "16384")  # TEI's default
    if not most.isdecimal() or int(most) < 1:
        draft.error(f"docker_server.start_command: --max-batch-tokens must be at least 1, got {most}")
        return
    _set_tokens(draft, int(most), None)


def _local_model(draft: _Draft, start: Start, given: list[str]) -> Source | None:
    """--model-id -> that folder, if it is on this disk, else what the file says is put there, else a hub id."""
    model = take(given, "--model-id", "-m") or start.environment.get("MODEL_ID") or draft.environment.get("MODEL_ID")
    revision = take(given, "--revision")
    draft.environment.pop("MODEL_ID", None)
    if model is None:
        draft.error("docker_server.start_command must have --model-id")
        return None
    placed = dict(_placed(draft))
    if os.path.isabs(model) and not Path(model).is_dir():
        if model not in placed:
            known = ", ".join(placed) or "nothing"
            draft.error(f"docker_server.start_command: --model-id {model} is not here; the file places {known}")
        return placed.get(model)
    return Source(model, revision)


def _placed(draft: _Draft) -> Iterator[tuple[str, Source]]:
    """Each folder that the file has filled when the image is built or started, and with what."""
    for line in draft.tree.get("build_commands") or []:
        clone = read_clone(line)
        if clone is None:
            draft.findings.remarks.append(f"build_commands: {shown(line)} is not run: only git clone of the hub counts")
        else:
            yield clone.folder.rstrip("/"), Source(clone.repo, clone.revision)
    for entry in draft.tree.get("model_cache") or []:
        model_id = _address(SCHEMES[entry.get("kind", "hf")], entry.get("repo_id", ""))
        folder = f"/app/model_cache/{entry.get('volume_folder', '')}"
        yield folder, Source(model_id, entry.get("revision") or None)
    for entry in draft.tree.get("weights") or []:
        scheme, _, place = entry.get("source", "").partition("://")
        if scheme not in SCHEMES:
            draft.error(f"weights.source must begin with one of {', '.join(SCHEMES)}, got {shown(entry.get('source'))}")
            continue
        place, _, revision = place.partition("@") if scheme == "hf" else (place, "", "")
        yield entry.get("mount_location", ""), Source(_address(SCHEMES[scheme], place), revision or None)
