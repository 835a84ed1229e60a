"""What can be set: EngineConfig and ServerConfig, frozen, with TEI's names.

One field is one flag (`--max-batch-tokens`) and one environment variable (`MAX_BATCH_TOKENS`); the flag wins,
then the variable, then the default here. The command line and docs/cli.md are made from these fields.
Owns names, defaults and ranges; never touches models or sockets.
"""

import re
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin

from openbei.errors import ConfigError

DType = Literal["auto", "float32", "bfloat16", "float16", "bf16", "fp16", "fp8"]
DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")
DefaultRoute = Literal[
    "/v1/embeddings", "/embed", "/embed_sparse", "/v1/multi-vector", "/predict", "/rerank", "/predict_tokens"
]
PoolingFlag = Literal["cls", "mean", "last-token", "splade"]


def _flag(default: Any, text: str, *, minimum: int | None = None, secret: bool = False) -> Any:
    return field(default=default, metadata={"help": text, "minimum": minimum, "secret": secret})


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Which model, and how requests are batched."""

    model_id: str | None = _flag(None, "Folder or hub id; none: the embedded all-MiniLM-L6-v2")
    revision: str | None = _flag(None, "Branch, tag or commit on the hub")
    served_model_name: str | None = _flag(None, "Name shown to clients; the model id if not set")
    device: str = _flag("auto", "cpu, cuda or cuda:N; auto takes the first GPU, if there is one that PyTorch can use")
    dtype: DType = _flag(
        "auto",
        "Precision: auto takes bfloat16 where the device has it; fp8 is for GPUs; a CPU computes float16 in float32",
    )
    pooling: PoolingFlag | None = _flag(None, "cls, mean, last-token or splade; the model's own files if not set")
    tokenization_workers: int | None = _flag(None, "Tokenizer threads; one a core if not set", minimum=1)
    max_concurrent_requests: int = _flag(8192, "Inputs admitted at once; more is answered 429", minimum=1)
    max_batch_tokens: int | None = _flag(
        None, "Most tokens in one forward; a device that fewer keep busy takes fewer", minimum=1
    )
    max_batch_requests: int | None = _flag(None, "Inputs in one forward; no limit if not set", minimum=1)
    max_input_length: int | None = _flag(None, "Tokens of one input, where the model takes more", minimum=1)
    max_queue_tokens: int = _flag(4_194_304, "Tokens waiting at once; more is answered 429", minimum=1)
    max_client_batch_size: int = _flag(2048, "Inputs in one request", minimum=1)
    auto_truncate: bool = _flag(True, "Cut texts that are too long, where the request does not say")
    default_prompt_name: str | None = _flag(None, "Prompt of the model's own list put before every text")
    default_prompt: str | None = _flag(None, "Text put before every text; excludes --default-prompt-name")
    huggingface_hub_cache: str | None = _flag(None, "Folder for fetched models; HF_HOME's if not set")
    hf_token: str | None = _flag(None, "Token for private models on the hub", secret=True)
    verify: bool = _flag(False, "Of an artifact, hash the weights too before serving it, and try all of its outputs")

    def __post_init__(self) -> None:
        _check(self)
        if not DEVICE.fullmatch(self.device):
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {self.device!r}")
        if self.default_prompt is not None and self.default_prompt_name is not None:
            raise ConfigError("default_prompt and default_prompt_name exclude each other; both are set")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where the server listens and whom it answers."""

    hostname: str = _flag("0.0.0.0", "Address to listen on")
    port: int = _flag(7997, "Port to listen on; 0 takes a free one", minimum=0)
    frontends: int = _flag(0, "Processes for HTTP and tokenizing beside one for the model; 0: all in one", minimum=0)
    api_key: str | None = _flag(None, "Key asked of every client (Authorization: Bearer KEY)", secret=True)
    max_model_bytes: int | None = _flag(
        None, "Bytes of all models' weights, in the precision computed in; what is free if not set", minimum=1
    )
    payload_limit: int = _flag(32_000_000, "Bytes in one request body", minimum=1)
    cors_allow_origin: tuple[str, ...] = _flag((), "Origin allowed by CORS, repeatable; any if not set")
    compress: bool = _flag(True, "Compress long answers with zstd or gzip, for clients that take them")
    read_timeout_ms: int = _flag(60_000, "Time for a request's head to come in, and for its body", minimum=1)
    otlp_endpoint: str | None = _flag(
        None, "Where traces are sent by OTLP, such as http://localhost:4317; none: nowhere"
    )
    otlp_service_name: str = _flag("openbei", "Name of this service in its traces")
    json_output: bool = _flag(False, "Write the log as JSON lines")
    default_route: DefaultRoute | None = _flag(None, "What BEI's /environments/ENV/predict means; by model if not set")
    aip_predict_route: str | None = _flag(None, "Path of Vertex AI's predictions, beside /vertex")
    aip_health_route: str | None = _flag(None, "Path of Vertex AI's health checks, beside /health")
    grpc_port: int | None = _flag(None, "Port for gRPC (tei.v1), which needs openbei[grpc]; off if not set", minimum=0)
    grpc_socket: str | None = _flag(None, "Unix socket for gRPC, for its owner alone; beside a port, or instead of one")
    grpc_max_parallel_stream_requests: int = _flag(1024, "Messages of one gRPC stream in work at once", minimum=1)

    def __post_init__(self) -> None:
        _check(self)
        for name, port in (("port", self.port), ("grpc_port", self.grpc_port or 0)):
            if port > 65535:
                raise ConfigError(f"{name} must be at most 65535, got {port}")
        for name in ("aip_predict_route", "aip_health_route"):
            path = getattr(self, name)
            if path is not None and not path.startswith("/"):
                raise ConfigError(f"{name} must begin with /, got {path}")
        if self.grpc_socket is not None and self.frontends:
            raise ConfigError(
                f"grpc_socket cannot be shared by several processes, and frontends is {self.frontends}; use grpc_port"
            )

    @property
    def has_grpc(self) -> bool:
        """True if gRPC is served."""
        return self.grpc_port is not None or self.grpc_socket is not None


def _check(config: EngineConfig | ServerConfig) -> None:
    for item in fields(config):
        value, minimum = getattr(config, item.name), item.metadata["minimum"]
        if minimum is not None and value is not None and value < minimum:
            raise ConfigError(f"{item.name} must be at least {minimum}, got {value}")
        words = [get_args(kind) for kind in (item.type, *get_args(item.type)) if get_origin(kind) is Literal]
        if words and value is not None and value not in words[0]:
            raise ConfigError(f"{item.name} must be one of {', '.join(words[0])}, got {value!r}")
