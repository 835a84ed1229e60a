"""The bodies of /embed_sparse (TEI) and of /v1/multi-vector (Jina).

Owns the public shapes, which are at once the validation and the OpenAPI schema; never touches HTTP or engines.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from openbei.wire.inputs import EmbedOptions, Inputs, ModelName, PromptOptions
from openbei.wire.openai import Usage

InputType = Annotated[Literal["query", "document"] | None, Meta(description="What the inputs are. Default: document.")]


class EmbedSparseRequest(PromptOptions, frozen=True, kw_only=True):
    """Texts or token ids; the answer holds, of every input, the entries of its sparse vector.

    input_type is openbei's addition: some models look queries up instead of computing them. As for multi-vectors, it
    names a prompt too, where the model has one of that name; prompt_name wins.
    """

    model: ModelName = None
    inputs: Inputs
    input_type: InputType = None


@dataclass(frozen=True, slots=True)
class SparseValue:
    """An entry that is not 0. index: id of a token of the vocabulary."""

    index: int
    value: float


SparseVectors = list[list[SparseValue]]


class MultiVectorRequest(EmbedOptions, frozen=True, kw_only=True):
    """Texts or token ids to embed token by token. The options from `truncate` to `normalize` are openbei's addition.

    prompt_name wins over input_type, which names a prompt too, where the model has one of that name.
    """

    model: ModelName = None
    input: Inputs
    input_type: InputType = None
    embedding_type: Annotated[
        Literal["float"] | None, Meta(description="How the vectors are written. Default: float.")
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiVector:
    """The vectors of one input, one a token. index: position of the input."""

    object: Literal["embeddings"] = "embeddings"
    index: int
    embeddings: list[list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiVectors:
    """The vectors, in input order. model: the served name."""

    object: Literal["list"] = "list"
    data: list[MultiVector]
    model: str
    usage: Usage
