"""`bei serve --frontends N` on a fake model, whose batches take until a test lets them go: for tests of what dies.

    python -m tests.process.program FOLDER N

Prints its URL when it is ready. Every batch leaves a file in FOLDER when it begins, and is answered when there is a
file FOLDER/go. A text's vector is (its first token, its length, 0, 0); the token w49 stands for a crash of the process.
"""

import sys
from functools import partial
from pathlib import Path

from openbei import logs
from openbei.config import EngineConfig, ServerConfig
from openbei.server.processes import EngineAt, Plan
from openbei.server.supervisor import supervise
from tests.process.fakes import describe, open_model


def say(url: str, at: EngineAt) -> None:
    print(url, at.facts["model"], flush=True)


if __name__ == "__main__":
    folder, frontends = Path(sys.argv[1]), int(sys.argv[2])
    logs.start(json_output=False)
    server = ServerConfig(hostname="127.0.0.1", port=0, frontends=frontends)
    plan = Plan(EngineConfig(), server, partial(logs.start, False), describe, partial(open_model, folder))
    supervise(plan, say)
