"""OpenAI's dialect: the bodies of /v1/embeddings and /v1/models, and of their errors.

Owns the public shapes, which are at once the validation and the OpenAPI schema; never touches HTTP or engines.
Requests are msgspec structs because they are checked as they are read; answers are dataclasses because the
JSON encoder writes those, with the arrays in them, as they are.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from openbei.wire.inputs import EmbedOptions, Inputs, ModelName

Vector = Annotated[
    Any,
    Meta(
        description="The values, or with base64 their little-endian float32 bytes.",
        extra_json_schema={"anyOf": [{"type": "array", "items": {"type": "number"}}, {"type": "string"}]},
    ),
]


class EmbeddingsRequest(EmbedOptions, frozen=True, kw_only=True):
    """Texts or token ids to embed. The options from `truncate` to `normalize` are openbei's addition."""

    model: ModelName = None
    input: Inputs
    encoding_format: Annotated[
        Literal["float", "base64"] | None, Meta(description="How the vectors are written. Default: float.")
    ] = None
    user: Annotated[str | None, Meta(description="Ignored.")] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedding:
    """One vector. index: position of its input."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens computed, with special tokens and prompts, after truncation; both numbers are the same."""

    prompt_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """The vectors, in input order. model: the served name."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that is served. created: when this server started, Unix seconds."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["openbei"] = "openbei"


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """The models that are served, in the order in which they were given or loaded."""

    object: Literal["list"] = "list"
    data: list[Model]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAIError:
    """What went wrong, without an outer `error` object. code: the HTTP status, or model_not_found."""

    message: str
    code: int | Literal["model_not_found"]
    type: str
