"""What a checkpoint says of its text side, and the Checkpoint itself. Data only.

Owns the two records that pass from weights to engine; never reads a file itself.
"""

from dataclasses import dataclass, field
from pathlib import Path

from openbei.model.spec import Model


@dataclass(frozen=True, slots=True)
class TextSpec:
    """How text becomes tokens: tokenizer.json, the most tokens with specials, prompts by name, lower-casing."""

    tokenizer_file: Path
    max_length: int
    prompts: dict[str, str] = field(default_factory=dict)
    lower_case: bool = False


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model read from files: its network, its text side, and where it came from."""

    model_id: str
    revision: str | None
    folder: Path
    model: Model
    text: TextSpec
