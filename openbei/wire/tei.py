"""TEI's dialect, with BEI's /predict_tokens: the bodies of its routes, and of their errors.

Owns the public shapes, which are at once the validation and the OpenAPI schema; never touches HTTP or engines.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from openbei.wire.inputs import Count, EmbedOptions, Inputs, Message, ModelName, PromptOptions, ScoreOptions, TokenId


class EmbedRequest(EmbedOptions, frozen=True, kw_only=True):
    """Texts or token ids to embed. The answer is a list with one vector an input, also for a single one."""

    model: ModelName = None
    inputs: Inputs


class EmbedAllRequest(PromptOptions, frozen=True, kw_only=True):
    """Texts or token ids; the answer holds, of every input, the last hidden state of every token."""

    model: ModelName = None
    inputs: Inputs


class PredictRequest(ScoreOptions, frozen=True, kw_only=True):
    """A text, a pair or a chat to classify, or a batch of them. A batch is answered with a list of lists.

    A chat is for models with a chat template, such as reward models; a text that such a template made is a text.
    """

    model: ModelName = None
    inputs: Annotated[
        str | list[str | Message | list[str | Message]],
        Meta(
            description="One text; a list of one text, or of two that are a pair, or of the messages of a chat; "
            "or a batch: a list of such lists.",
            examples=[
                "good soup",
                ["question", "answer"],
                [["good soup"], ["question", "answer"]],
                [{"role": "user", "content": "two plus two?"}, {"role": "assistant", "content": "four"}],
            ],
        ),
    ]


class RerankRequest(ScoreOptions, frozen=True, kw_only=True):
    """A query and the texts that may answer it."""

    model: ModelName = None
    query: str
    texts: list[str]
    return_text: Annotated[bool | None, Meta(description="Repeat the texts in the answer. Default: false.")] = None


class Sentences(msgspec.Struct, frozen=True, kw_only=True):
    """One text, and those that it is compared with."""

    source_sentence: str
    sentences: list[str]


class SimilarityOptions(PromptOptions, frozen=True, kw_only=True):
    """How the texts are embedded. `dimensions` is openbei's addition."""

    dimensions: Annotated[Count | None, Meta(description="Compare only the first N values. Default: all.")] = None


class SimilarityRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Texts to compare by the cosine of their vectors. The answer is a list of one number a sentence."""

    model: ModelName = None
    inputs: Sentences
    parameters: SimilarityOptions | None = None


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Texts to cut into tokens. Nothing is truncated. The answer is a list with one list of tokens a text."""

    model: ModelName = None
    inputs: str | list[str]
    add_special_tokens: Annotated[
        bool | None, Meta(description="With the tokens that the model needs around a text. Default: true.")
    ] = None
    prompt_name: Annotated[
        str | None,
        Meta(description="Name of a prompt of the model, put before every text. Default: the server's, if any."),
    ] = None


class DecodeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Token ids to turn into texts. The answer is a list with one text an id list."""

    model: ModelName = None
    ids: Annotated[list[TokenId | list[TokenId]], Meta(description="One list of token ids, or a list of such lists.")]
    skip_special_tokens: Annotated[bool | None, Meta(description="Leave out the special tokens. Default: true.")] = None


class VertexRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Bodies of other routes: of /rerank where one holds `query` and `texts`, else of what the model is for."""

    instances: list[dict[str, Any]]


class PredictTokensRequest(ScoreOptions, frozen=True, kw_only=True):
    """Texts to label token by token. raw_scores is for the strategy none only: every label with its logit."""

    model: ModelName = None
    inputs: Annotated[
        str | list[str | list[str]],
        Meta(description="One text, a list of texts, or lists of texts, which are put end to end."),
    ]
    aggregation_strategy: Annotated[
        Literal["none", "simple", "first", "average", "max"] | None,
        Meta(
            description="none answers every token. The others join neighbours of one label; of a word's tokens, first "
            "takes the first one's label, average the mean, max the surest one's. Default: none."
        ),
    ] = None


Vectors = list[list[float]]
TokenVectors = list[list[list[float]]]


@dataclass(frozen=True, slots=True)
class Prediction:
    """A label and its score."""

    score: float
    label: str


@dataclass(frozen=True, slots=True)
class Rank:
    """A text by its place in the request, and how well it answers the query; with return_text also the text."""

    index: int
    score: float


@dataclass(frozen=True, slots=True)
class TextRank(Rank):
    """And the text itself."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenPrediction:
    """A token, or with an aggregation strategy an entity, and its labels with their scores, the best first.

    start, end: code points of the text. token_id: 0 for an entity.
    """

    token: str
    token_id: int
    start: int
    end: int
    results: dict[str, float]


@dataclass(frozen=True, slots=True)
class SimpleToken:
    """A token, and the UTF-8 bytes of the text, from start to stop, that it is; a special one is none of it."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


@dataclass(frozen=True, slots=True)
class VertexPredictions:
    """One answer an instance, each as its route gives it."""

    predictions: list[Any]


Predictions = list[Prediction | list[Prediction]]
TokenPredictions = list[list[TokenPrediction]]

ModelType = Annotated[
    dict[Literal["embedding", "classifier", "reranker", "token_classifier"], dict[str, Any]],
    Meta(description="What the model is for: one key, with the pooling or with id2label and label2id."),
]


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
