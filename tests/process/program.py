"""`bei serve --frontends N` on a fake model, whose batches take until a test lets them go: for tests of what dies.

    python -m tests.process.program FOLDER N PATIENCE_S [NAME...]

Prints its URL when it is ready. A process that does nothing for PATIENCE_S seconds hangs. Every batch leaves a file in
FOLDER when it begins, and is answered when there is a file FOLDER/go. A text's vector is (its first token, its length,
0, 0); the token w49 stands for a crash of the process.
With names there is a model for each, with the folder FOLDER/NAME, and the key k; others may be loaded, whose folder is
FOLDER/MODEL: where that holds a file `broken` or `deadly` it fails, and with a file `slow` waits for one called `read`;
with a file `far` not even its config can be read. Where there is a file `stuck`, it is removed, and the process hangs.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from openbei import logs
from openbei.config import EngineConfig, ServerConfig
from openbei.server.messages import EngineAt
from openbei.server.processes import Plan
from openbei.server.supervisor import supervise
from tests.process.fakes import configure, describe, open_model

MAX_MODEL_BYTES = 60  # of a fake model there are 16


def say(url: str, *engines_at: EngineAt) -> None:
    print(url, engines_at[0].facts["model"], flush=True)


if __name__ == "__main__":
    folder, frontends, patience_s, names = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]
    logs.start(json_output=False)
    server = ServerConfig(hostname="127.0.0.1", port=0, frontends=frontends)
    plan = Plan(
        EngineConfig(),
        server,
        partial(logs.start, False),
        describe,
        partial(open_model, folder),
        configure=partial(configure, folder),
        patience_s=patience_s,
        engine_patience_s=patience_s,
    )
    if names:
        engine, *others = (configure(folder, name, None, None) for name in names)
        server = replace(server, api_key="k", max_model_bytes=MAX_MODEL_BYTES)
        plan = replace(plan, engine=engine, others=tuple(others), server=server)
    supervise(plan, say)
