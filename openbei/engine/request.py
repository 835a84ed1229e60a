"""A Request and its Result: one client's call with its options, and the answer. Data only.

Owns the shapes that cross between server and engine; never HTTP, JSON or tensors other than NumPy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Input = str | Sequence[int]
Direction = Literal["right", "left"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How one request wants its inputs treated.

    truncate: None takes the server's auto_truncate. truncation_direction: the end that is cut away.
    prompt_name: key of the model's prompts, None for the server's default prompt, if any.
    normalize: L2 norm 1. dimensions: keep the first N values, before normalising.
    """

    truncate: bool | None = None
    truncation_direction: Direction = "right"
    prompt_name: str | None = None
    normalize: bool = True
    dimensions: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Texts or token ids to embed. deadline_s: time.monotonic() after which inference must not begin."""

    inputs: Sequence[Input]
    options: Options = Options()
    deadline_s: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """num_tokens: computed, with specials and prompt, after truncation. num_characters: code points given."""

    num_tokens: int
    num_characters: int


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds. total_s: submit to result. The others are means over the inputs."""

    total_s: float
    tokenization_s: float
    queue_s: float
    inference_s: float


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to a Request: embeddings float32 (N, dimensions), in input order."""

    embeddings: NDArray[np.float32]
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine serves, for /info, /v1/models and the start banner.

    dtype: float32 or bfloat16, as computed. device: such as "cpu, 2 streams". prompts: the model's own list.
    """

    model_id: str
    revision: str | None
    served_model_name: str
    dtype: str
    device: str
    pooling: str
    embedding_dim: int
    vocab_size: int
    max_input_length: int
    max_batch_tokens: int
    tokenization_workers: int
    prompts: dict[str, str]
