"""The posts of several models, without a process: when they may come and go."""

from pathlib import Path
from typing import Any

from openbei.config import EngineConfig, ServerConfig
from openbei.errors import Unhealthy
from openbei.server.messages import Answer, AskLoad, AskUnload
from openbei.server.model_posts import ModelPosts
from openbei.server.processes import Plan


class Frontend:
    """As much of a child as is told things."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def tell(self, message: Any) -> None:
        self.told.append(message)


def test_models_come_and_go_only_between_start_and_end(tmp_path: Path) -> None:
    """A load that fails while the server starts would end it: what cannot start then is raised."""
    plan = Plan(EngineConfig(model_id="first"), ServerConfig(frontends=1), lambda: None, lambda *_: {})
    frontend: Any = Frontend()
    posts = ModelPosts(plan, tmp_path, lambda: [frontend])
    posts.asked(frontend, AskLoad(1, "second", None, None))
    posts.asked(frontend, AskUnload(2, "first"))
    posts.closed = None
    posts.asked(frontend, AskLoad(3, "second", None, None))
    assert [post.name for post in posts.posts] == ["engine", "engine-second"]
    posts.drain()
    posts.asked(frontend, AskLoad(4, "third", None, None))
    refused = [(1, "starting"), (2, "starting"), (3, "draining"), (4, "draining")]
    assert frontend.told == [Answer(number, error=(Unhealthy, f"unhealthy: {reason}")) for number, reason in refused]
