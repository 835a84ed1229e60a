"""Every error openbei raises, as one tree, and the one table of what each answers on the wire.

    OpenBeiError
    ├── ModelError              start-up: the model cannot be served
    │   ├── ModelNotFound       no such folder, hub id or file
    │   ├── UnsupportedModel    understood, but it asks for something openbei does not do exactly
    │   └── WeightsError        tensors missing, left over, or of another shape
    ├── ConfigError             start-up: a flag, variable or file has a wrong value
    └── RequestError            one request: it has a row in ANSWERS
        ├── MalformedBody       E01   ├── UnsupportedMediaType E02
        ├── InvalidInput        E03, E12; kinds of it: BatchTooLarge E09, TooLong E10 E11, UnknownPrompt E13
        ├── PayloadTooLarge     E04   ├── Unauthorized         E05
        ├── NotFound            E06   ├── MethodNotAllowed     E07
        ├── EmptyInput          E08   ├── TokenizerFailed      E14
        ├── WrongTask           E15   ├── InferenceFailed      E16
        ├── Overloaded          E17   ├── Unhealthy            E18
        ├── DeadlineExceeded    E19   ├── InternalError        E20
        ├── TooSlow             the request did not come in within read_timeout_ms
        ├── UnknownModel        a model is asked for by a name that none has
        └── of loading models while others are served: Forbidden, Conflict, LoadFailed, OutOfMemory

Owns nothing but names, messages and statuses; it never touches HTTP or gRPC objects.
A message says what was wrong, the limit and the given value; it never echoes a user's text.
"""

from dataclasses import dataclass
from typing import Literal


class OpenBeiError(Exception):
    """The root of every error that openbei raises on purpose."""


class ModelError(OpenBeiError):
    """The model cannot be served; raised at start-up only."""


class ModelNotFound(ModelError):
    """There is no such folder, hub id or file."""


class UnsupportedModel(ModelError):
    """The model asks for something that openbei would only do approximately."""


class WeightsError(ModelError):
    """Tensors are missing, left over, or of another shape than the config says."""


class ConfigError(OpenBeiError):
    """A flag, an environment variable or a deployment file has a wrong value."""


class RequestError(OpenBeiError):
    """One request cannot be answered; its class has a row in ANSWERS."""


class MalformedBody(RequestError):
    """The body is not JSON or not UTF-8 (E01)."""


class UnsupportedMediaType(RequestError):
    """The Content-Type or Content-Encoding is not one that is read here (E02)."""


class InvalidInput(RequestError):
    """Right JSON with a wrong field: its type, its range, dimensions (E03, E12)."""


class BatchTooLarge(InvalidInput):
    """More inputs in one request than max_client_batch_size (E09)."""


class TooLong(InvalidInput):
    """More tokens or characters than the model takes, and truncation is off (E10, E11)."""


class UnknownPrompt(InvalidInput):
    """prompt_name is none of the model's prompts (E13)."""


class PayloadTooLarge(RequestError):
    """The body has more bytes than payload_limit (E04)."""


class Unauthorized(RequestError):
    """An API key is set and the request carries none, or another (E05)."""


class NotFound(RequestError):
    """No such path or model (E06)."""


class UnknownModel(RequestError):
    """Several models are served, and none has the name that was asked for."""


class MethodNotAllowed(RequestError):
    """The path exists, the method does not (E07)."""

    def __init__(self, message: str, allow: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allow = allow


class EmptyInput(RequestError):
    """An empty list, string or id list (E08)."""


class TokenizerFailed(RequestError):
    """The tokenizer library raised (E14)."""


class WrongTask(RequestError):
    """The model does not do what this route asks (E15)."""


class InferenceFailed(RequestError):
    """The executor raised, or the answer holds NaN or infinity (E16)."""


class Overloaded(RequestError):
    """The waiting room is full (E17)."""

    def __init__(self, message: str = "Model is overloaded", retry_after_s: float = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unhealthy(RequestError):
    """Starting, draining, or the executor is down (E18)."""

    def __init__(self, message: str = "unhealthy", retry_after_s: float = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(RequestError):
    """The client's deadline passed before inference began (E19)."""


class TooSlow(RequestError):
    """The request's head or body did not come in within read_timeout_ms."""


class Forbidden(RequestError):
    """Models are only loaded and unloaded where the server was started with an API key."""


class Conflict(RequestError):
    """Another model has that name or is being loaded under it, or the model is the last one."""


class LoadFailed(RequestError):
    """The model that was to be loaded cannot be served."""


class OutOfMemory(RequestError):
    """The weights would take more memory than max_model_bytes leaves, or than is free."""


class InternalError(RequestError):
    """A bug in openbei (E20)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """How one error looks on the wire.

    status: HTTP status. type: the `error_type` / `type` word of the bodies. grpc: gRPC status name.
    metric: the `err` label of te_request_failure, None where TEI counts nothing. code: what OpenAI's clients read as
    `code`, None for the status.
    """

    status: int
    type: str
    grpc: str
    metric: str | None = None
    code: Literal["model_not_found"] | None = None


ANSWERS: dict[type[RequestError], Answer] = {
    MalformedBody: Answer(400, "Validation", "INVALID_ARGUMENT"),
    UnsupportedMediaType: Answer(415, "Validation", "INVALID_ARGUMENT"),
    InvalidInput: Answer(422, "Validation", "INVALID_ARGUMENT", "validation"),
    BatchTooLarge: Answer(422, "Validation", "INVALID_ARGUMENT", "batch_size"),
    TooLong: Answer(422, "Validation", "INVALID_ARGUMENT", "tokenization"),
    UnknownPrompt: Answer(422, "Validation", "INVALID_ARGUMENT", "tokenization"),
    PayloadTooLarge: Answer(413, "Validation", "RESOURCE_EXHAUSTED"),
    Unauthorized: Answer(401, "Unauthorized", "UNAUTHENTICATED"),
    NotFound: Answer(404, "NotFound", "UNIMPLEMENTED"),
    UnknownModel: Answer(404, "NotFound", "NOT_FOUND", code="model_not_found"),
    MethodNotAllowed: Answer(405, "MethodNotAllowed", "UNIMPLEMENTED"),
    EmptyInput: Answer(400, "Empty", "INVALID_ARGUMENT", "validation"),
    TokenizerFailed: Answer(422, "Tokenizer", "FAILED_PRECONDITION", "tokenization"),
    WrongTask: Answer(424, "Backend", "FAILED_PRECONDITION", "model_type"),
    InferenceFailed: Answer(424, "Backend", "FAILED_PRECONDITION", "inference"),
    Overloaded: Answer(429, "Overloaded", "RESOURCE_EXHAUSTED", "overloaded"),
    Unhealthy: Answer(503, "Unhealthy", "UNAVAILABLE"),
    DeadlineExceeded: Answer(504, "Timeout", "DEADLINE_EXCEEDED"),
    TooSlow: Answer(408, "Timeout", "DEADLINE_EXCEEDED"),
    Forbidden: Answer(403, "Forbidden", "PERMISSION_DENIED"),
    Conflict: Answer(409, "Conflict", "ALREADY_EXISTS"),
    LoadFailed: Answer(422, "Model", "FAILED_PRECONDITION"),
    OutOfMemory: Answer(507, "OutOfMemory", "RESOURCE_EXHAUSTED"),
    InternalError: Answer(500, "Backend", "INTERNAL"),
}


def answer(error: BaseException) -> Answer:
    """Error -> its row of ANSWERS; anything that is no RequestError answers as InternalError."""
    return ANSWERS.get(type(error), ANSWERS[InternalError])  # type: ignore[arg-type]
