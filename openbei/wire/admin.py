"""The bodies of the routes that load and unload models. Their names are those of llama.cpp's router.

Owns the public shapes, which are at once the validation and the OpenAPI schema; never touches HTTP or engines.
"""

from dataclasses import dataclass
from typing import Annotated

import msgspec
from msgspec import Meta

Name = Annotated[str, Meta(min_length=1, max_length=512)]


class LoadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A model to serve too. It is loaded with the flags that the server was started with."""

    model: Annotated[
        str, Meta(min_length=1, description="A folder, an artifact or a deployment on the server's disk, or a hub id.")
    ]
    name: Annotated[Name | None, Meta(description="Name to serve it under. Default: as `bei serve` names it.")] = None
    revision: Annotated[Name | None, Meta(description="Branch, tag or commit on the hub. Default: main.")] = None


class UnloadRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A model to serve no longer, by its served name."""

    model: Name


@dataclass(frozen=True, slots=True)
class Unloaded:
    """The model is gone, and its memory is free. served: the names that are left."""

    model: str
    served: list[str]
