"""The field types that more than one dialect shares: input forms, token ids, and the common options.

Owns what JSON may hold in these fields, and the one reading of the five input forms; never touches HTTP,
engines or models. The types are at once the validation and the OpenAPI schema.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from openbei.errors import InvalidInput

Message = Annotated[
    dict[str, Any],
    Meta(
        title="Message",
        description="A message of a chat. What it holds beside role and content reaches the model's chat template.",
        extra_json_schema={
            "properties": {"role": {"type": "string"}, "content": {"type": "string"}},
            "required": ["role", "content"],
        },
    ),
]
TokenId = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Count = Annotated[int, Meta(ge=0)]
Direction = Literal["Right", "right", "Left", "left"]

ModelName = Annotated[
    str | None,
    Meta(
        description="Name of the model that shall answer, where several are served; one alone takes any name. "
        "The header x-model goes first. Default: the first model that is for this."
    ),
]

Inputs = Annotated[
    str | list[str | TokenId | list[TokenId]],
    Meta(
        description="One text, one list of token ids, or a batch: a list of texts, of lists of token ids, or of both.",
        examples=["red fox", ["red fox", "blue whale"]],
    ),
]


class Queued(msgspec.Struct, frozen=True, kw_only=True):
    """What may wait; null means the default in every field."""

    priority: Annotated[
        int | None,
        Meta(description="Above 0: the request may wait for others, as bulk does. The header x-priority goes first."),
    ] = None


class CutOptions(Queued, frozen=True, kw_only=True):
    """And what happens to inputs that are too long."""

    truncate: Annotated[
        bool | None, Meta(description="Cut inputs that are too long, or refuse them. Default: the server's choice.")
    ] = None
    truncation_direction: Annotated[Direction | None, Meta(description="The end that is cut away. Default: Right.")] = (
        None
    )


class PromptOptions(CutOptions, frozen=True, kw_only=True):
    """And what is put before them."""

    prompt_name: Annotated[
        str | None,
        Meta(description="Name of a prompt of the model, put before every input. Default: the server's, if any."),
    ] = None


class EmbedOptions(PromptOptions, frozen=True, kw_only=True):
    """And what is done to the vectors."""

    normalize: Annotated[bool | None, Meta(description="Scale every vector to length 1. Default: true.")] = None
    dimensions: Annotated[
        Count | None, Meta(description="Keep only the first N values, before normalising. Default: all.")
    ] = None


class ScoreOptions(CutOptions, frozen=True, kw_only=True):
    """And how the model's labels are told."""

    raw_scores: Annotated[bool | None, Meta(description="Logits, instead of scores from 0 to 1. Default: false.")] = (
        None
    )


def as_batch(inputs: str | Sequence[str | int | list[int]]) -> list[str | list[int]]:
    """The five input forms -> a list with one entry an input; a bare list of ids is one input.

    An empty list stays empty. Raises InvalidInput where ids stand beside texts without a list of their own.
    """
    if isinstance(inputs, str):
        return [inputs]
    kinds = set(map(type, inputs))
    if kinds == {int}:
        return [list(inputs)]  # type: ignore[arg-type]
    if int in kinds:
        raise InvalidInput("a list of inputs holds texts and lists of token ids; it also holds a bare number")
    return list(inputs)  # type: ignore[arg-type]


def as_id_lists(ids: Sequence[int | list[int]]) -> list[list[int]]:
    """The two forms of /decode -> id lists; a bare list is one. Raises InvalidInput for a mixture."""
    kinds = set(map(type, ids))
    if len(kinds) > 1:
        raise InvalidInput("ids must be a list of token ids, or a list of such lists - at `$.ids`")
    return [list(ids)] if kinds == {int} else list(ids)  # type: ignore[arg-type]


def as_classified(
    inputs: str | Sequence[str | Message | Sequence[str | Message]],
) -> tuple[list[Sequence[str] | Sequence[Message]], bool]:
    """The forms of /predict -> an input's one or two texts or its messages, and whether it is a batch of inputs.

    A flat list is one input: a text, a pair, or a chat. Raises InvalidInput for another number of texts or a mixture.
    """
    if isinstance(inputs, str):
        return [[inputs]], False
    is_batch = bool(inputs) and all(isinstance(one, list) for one in inputs)
    batch: list[Any] = list(inputs) if is_batch else [inputs]
    for one in batch:
        kinds = set(map(type, one))
        if kinds != {dict} and not (kinds == {str} and len(one) <= 2):
            raise InvalidInput(
                "inputs must be a text, a list of one or two texts, a list of messages, or a list of such lists"
                " - at `$.inputs`"
            )
    return batch, is_batch


def as_texts(inputs: str | Sequence[str | list[str]]) -> list[str]:
    """The forms of /predict_tokens -> texts: one, a list, or lists end to end. Raises InvalidInput for a mixture."""
    if isinstance(inputs, str):
        return [inputs]
    if len(set(map(type, inputs))) > 1:
        raise InvalidInput("inputs must be a text, a list of texts, or a list of lists of texts - at `$.inputs`")
    return [text for one in inputs for text in ([one] if isinstance(one, str) else one)]
