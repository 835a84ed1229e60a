"""openbei: the open inference server for embeddings, reranking and classification.

import openbei
with openbei.load() as engine:
    vectors = engine.embed(["red fox", "blue whale"])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openbei.engine.engine import Engine

__version__ = "0.1.0"


def load(model: str | None = None, **options: Any) -> "Engine":
    """A model's folder, hub id, or None for the embedded all-MiniLM-L6-v2 -> a running Engine.

    options: fields of config.EngineConfig, such as dtype="float32". Raises ModelError, ConfigError.
    """
    from openbei.config import EngineConfig
    from openbei.engine.start import open_engine

    return open_engine(EngineConfig(model_id=model, **options))
