"""Cohere's dialect, with Jina's /v1/rerank: the bodies of its rerank and embed routes, and of their errors.

Owns the public shapes, which are at once the validation and the OpenAPI schema; never touches HTTP or engines.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from openbei.errors import InvalidInput, MalformedBody
from openbei.wire.inputs import Count, ModelName, Queued
from openbei.wire.openai import Usage

EmbeddingType = Literal["float", "int8", "uint8", "binary", "ubinary", "base64"]
Positive = Annotated[int, Meta(ge=1)]
Document = str | dict[str, msgspec.Raw]  # raw, so that an answer repeats what was sent, digit for digit


class RerankRequest(Queued, frozen=True, kw_only=True):
    """A query and the documents that may answer it. Documents that are too long are cut."""

    model: ModelName = None
    query: str
    documents: Annotated[
        list[Document], Meta(description="Texts, or objects that hold one under `text`, or under the `rank_fields`.")
    ]
    top_n: Annotated[Positive | None, Meta(description="Answer with the best N only. Default: all.")] = None
    rank_fields: Annotated[
        list[str] | None, Meta(description="The keys of an object that are ranked, a line each. Default: text.")
    ] = None


class RerankV1Request(RerankRequest, frozen=True, kw_only=True):
    """As Jina and version 1 of Cohere have it."""

    return_documents: Annotated[bool | None, Meta(description="Repeat the documents. Default: true.")] = None


class RerankV2Request(RerankRequest, frozen=True, kw_only=True):
    """As version 2 of Cohere has it."""

    return_documents: Annotated[bool | None, Meta(description="Repeat the documents. Default: false.")] = None
    max_tokens_per_doc: Annotated[
        Positive | None, Meta(description="Cut every document to N tokens. Default: only what is too long is cut.")
    ] = None


class TextPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an input. Images are not read."""

    type: Literal["text"]
    text: str


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """An input in parts, which are joined by line ends."""

    content: list[TextPart]


class EmbedRequest(Queued, frozen=True, kw_only=True):
    """Texts to embed, in `texts` or in `inputs`."""

    model: ModelName = None
    texts: list[str] | None = None
    inputs: list[Content] | None = None
    images: Annotated[list[Any], Meta(max_length=0, description="Not read: must be empty.")] | None = None
    input_type: Annotated[
        Literal["search_document", "search_query", "classification", "clustering"] | None,
        Meta(description="Picks the model's prompt for this use, if it has one."),
    ] = None
    embedding_types: (
        Annotated[list[EmbeddingType], Meta(min_length=1, description="The forms of the vectors. Default: float.")]
        | None
    ) = None
    truncate: Annotated[
        Literal["NONE", "START", "END"] | None,
        Meta(description="The end that is cut away of inputs that are too long; NONE refuses them. Default: END."),
    ] = None


class EmbedV1Request(EmbedRequest, frozen=True, kw_only=True):
    """As version 1 of Cohere has it."""


class EmbedV2Request(EmbedRequest, frozen=True, kw_only=True):
    """As version 2 of Cohere has it."""

    output_dimension: Annotated[
        Count | None, Meta(description="Keep only the first N values, before normalising. Default: all.")
    ] = None
    max_tokens: Annotated[Positive | None, Meta(description="A limit to an input's length below the model's own.")] = (
        None
    )


@dataclass(frozen=True, slots=True)
class ApiVersion:
    """The version of Cohere's API that was spoken."""

    version: Literal["1", "2"]


@dataclass(frozen=True, slots=True)
class AnswerMeta:
    """What an answer says of itself."""

    api_version: ApiVersion
    billed_units: Annotated[
        dict[Literal["search_units", "input_tokens"], int],
        Meta(description="What Cohere would bill: one search for a rerank, the tokens computed for vectors."),
    ]


@dataclass(frozen=True, slots=True)
class Ranked:
    """A document by its place in the request, and how well it answers the query; `document` where it is asked for."""

    index: int
    relevance_score: float


@dataclass(frozen=True, slots=True)
class RankedDocument(Ranked):
    """And the document itself; a text as an object with `text`."""

    document: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reranked:
    """The best documents, best first. model: the served name."""

    id: str
    model: str
    object: Literal["list"] = "list"
    results: Sequence[Ranked]
    usage: Usage
    meta: AnswerMeta


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """The vectors of all texts: by type, or of version 1 where no type was asked for a bare list of them."""

    id: str
    response_type: Literal["embeddings_by_type", "embeddings_floats"] = "embeddings_by_type"
    embeddings: Annotated[
        Any,
        Meta(
            description="For each type that was asked for the vectors; base64 holds little-endian float32 bytes.",
            extra_json_schema={"anyOf": [{"type": "object"}, {"type": "array"}]},
        ),
    ]
    texts: list[str]
    meta: AnswerMeta


@dataclass(frozen=True, slots=True)
class CohereError:
    """What went wrong: `message` is where Cohere's clients look for it, `detail` where Jina's do."""

    id: str
    message: str
    detail: str


def as_documents(documents: Sequence[Document], rank_fields: Sequence[str] | None) -> list[str]:
    """Documents -> their texts; of an object the values of rank_fields, or of `text` if none is named, a line each.

    Raises InvalidInput where an object lacks one of them as text, MalformedBody where that text is no Unicode.
    """
    keys = rank_fields or ["text"]
    return [
        one if isinstance(one, str) else "\n".join(text_under(key, one, index) for key in keys)
        for index, one in enumerate(documents)
    ]


def text_under(key: str, document: Mapping[str, msgspec.Raw], index: int) -> str:
    """One value of an object. Raises InvalidInput, MalformedBody."""
    try:
        return msgspec.json.decode(document[key], type=str)
    except (KeyError, msgspec.ValidationError):
        raise InvalidInput(
            f"a document that is no text must hold one under every rank field - at `$.documents[{index}]`"
        ) from None
    except msgspec.DecodeError as error:
        raise MalformedBody(f"the body is not JSON: {error}") from None


def as_inputs(request: EmbedRequest) -> list[str]:
    """The two ways to give texts -> texts. Raises InvalidInput unless exactly one is used."""
    if (request.texts is None) == (request.inputs is None):
        raise InvalidInput("either texts or inputs must be given, and not both - at `$.texts`")
    if request.texts is not None:
        return request.texts
    return ["\n".join(part.text for part in one.content) for one in request.inputs or ()]
