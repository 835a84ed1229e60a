"""TEI's dialect: the bodies of /embed, /info and /health, and of their errors.

Owns the public shapes, which are at once the validation and the OpenAPI schema; never touches HTTP or engines.
"""

from dataclasses import dataclass
from typing import Literal

from openbei.wire.inputs import EmbedOptions, Inputs


class EmbedRequest(EmbedOptions, frozen=True, kw_only=True):
    """Texts or token ids to embed. The answer is a list with one vector an input, also for a single one."""

    inputs: Inputs


Vectors = list[list[float]]


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """How token vectors become one vector: cls, mean or last_token."""

    pooling: str


@dataclass(frozen=True, slots=True)
class ModelType:
    """What the model is for."""

    embedding: EmbeddingModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """What is served, and within which limits. model_sha: the revision asked for."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: ModelType
    max_concurrent_requests: int
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None = None
    docker_label: str | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """The model answers. Anything else is answered 503."""

    status: Literal["ok"] = "ok"


@dataclass(frozen=True, slots=True)
class TEIError:
    """What went wrong, and its kind in one word."""

    error: str
    error_type: str
