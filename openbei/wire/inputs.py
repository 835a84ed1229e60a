"""The field types that more than one dialect shares: input forms, token ids, and the common options.

Owns what JSON may hold in these fields, and the one reading of the five input forms; never touches HTTP,
engines or models. The types are at once the validation and the OpenAPI schema.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from openbei.errors import InvalidInput

TokenId = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Count = Annotated[int, Meta(ge=0)]
Direction = Literal["Right", "right", "Left", "left"]

Inputs = Annotated[
    str | list[str | TokenId | list[TokenId]],
    Meta(
        description="One text, one list of token ids, or a batch: a list of texts, of lists of token ids, or of both.",
        examples=["red fox", ["red fox", "blue whale"]],
    ),
]


class EmbedOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How the inputs are treated; null means the default in every field."""

    truncate: Annotated[
        bool | None, Meta(description="Cut inputs that are too long, or refuse them. Default: the server's choice.")
    ] = None
    truncation_direction: Annotated[Direction | None, Meta(description="The end that is cut away. Default: Right.")] = (
        None
    )
    prompt_name: Annotated[
        str | None,
        Meta(description="Name of a prompt of the model, put before every input. Default: the server's, if any."),
    ] = None
    normalize: Annotated[bool | None, Meta(description="Scale every vector to length 1. Default: true.")] = None
    dimensions: Annotated[
        Count | None, Meta(description="Keep only the first N values, before normalising. Default: all.")
    ] = None


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
