"""A checkpoint of zeros and an engine that embeds by counting, so that the command line is tested alone."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Self

import numpy as np

from openbei.config import EngineConfig
from openbei.engine.request import EngineInfo, Options
from openbei.errors import TooLong
from openbei.model.spec import Embedding, HeadLayer, Linear, Model, ModelSpec, Norm, Weights
from openbei.weights.checkpoint import Checkpoint, TextSpec

WIDTH = 4
SPEC = ModelSpec("bert", 10, WIDTH, 0, 2, 2, 2, 8, 1e-12, "gelu", 16, num_segments=2)


def checkpoint() -> Checkpoint:
    """A bert of no layers: tables 10 x 4, 16 x 4, 2 x 4, a norm of 2 x 4, and one Dense of 3 x 4: 127 parameters."""
    norm = Norm(np.zeros(WIDTH, np.float32), np.zeros(WIDTH, np.float32))
    tables = Embedding(*(np.zeros((rows, WIDTH), np.float32) for rows in (10, 16, 2)), norm)
    dense = HeadLayer(Linear(np.zeros((3, WIDTH), np.float32), np.zeros(3, np.float32)), "tanh")
    model = Model(SPEC, Weights(tables, ()), "mean", (dense,), normalize=False)
    text = TextSpec(Path("tokenizer.json"), 16, {"query": "query: "})
    return Checkpoint("some/model", "abc123", Path("folder"), model, text)


class FakeEngine:
    """Embeds a text as (number of characters, 0, 1, 2); takes `window` texts before it answers the first."""

    def __init__(self, config: EngineConfig, window: int = 3) -> None:
        self.config, self.window = config, window
        self.options: Options | None = None
        self.taken = self.given = self.most_in_flight = 0
        self.metrics = SimpleNamespace(batch_tokens=SimpleNamespace(sum=0.0))
        self.info = EngineInfo(
            "some/model",
            "abc123",
            config.served_model_name or "some/model",
            "float32",
            "cpu, 2 streams",
            "mean",
            WIDTH,
            10,
            16,
            512,
            1,
            {},
        )

    def embed_stream(self, texts: Iterable[str], options: Options) -> Iterator[np.ndarray]:
        self.options = options
        waiting: list[np.ndarray] = []
        for text in texts:
            if text == "too long":
                raise TooLong("17 tokens > 16")
            self.taken += 1
            self.metrics.batch_tokens.sum += len(text)
            self.most_in_flight = max(self.most_in_flight, self.taken - self.given)
            waiting.append(np.array([len(text), 0, 1, 2][: options.dimensions], np.float32))
            if len(waiting) == self.window:
                yield self._give(waiting)
        while waiting:
            yield self._give(waiting)

    def _give(self, waiting: list[np.ndarray]) -> np.ndarray:
        self.given += 1
        return waiting.pop(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def drain(self) -> None:
        pass

    def close(self) -> None:
        pass
