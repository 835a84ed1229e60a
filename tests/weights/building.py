"""What the tests of builds share: a quick self-check, no pauses, and a program that is killed where a test says.

    python -m tests.weights.building MODEL OUT DTYPE PHASE

builds MODEL into OUT and kills itself when that phase begins.
"""

import os
import signal
import sys
from pathlib import Path

from openbei.weights.build import Built, Examined, Phase, Watch, build
from openbei.weights.checkpoint import Checkpoint
from openbei.weights.manifest import Probe
from openbei.weights.pin import Wanted
from openbei.weights.remote import Patience

AT_ONCE = Patience((0, 0))
SHORT_S = 1.0  # without a byte, where a server hangs: longer than any machine is busy, one hopes
PHASES: tuple[Phase, ...] = ("pin", "fetch", "copy", "try", "write", "name")


def examine(checkpoint: Checkpoint) -> Examined:
    """No network is run: a probe that only has a form."""
    return Examined(
        {"family": checkpoint.model.spec.family}, (Probe(("a",), (1, 2), (0, 0), {"vectors": ((1.0, 0.5),)}),)
    )


def make(model: Path | str, out: Path | None, watch: Watch | None = None, **more: object) -> Built:
    """Build with no pauses between attempts."""
    return build(Wanted(model=str(model), out=out, **{"patience": AT_ONCE, **more}), examine, watch)  # type: ignore[arg-type]


def rewrite(path: Path, data: bytes) -> None:
    """Another file of that name: whoever has mapped the one before keeps it; a shortened one would be SIGBUS."""
    path.unlink()
    path.write_bytes(data)


def kill_at(wanted: str) -> Watch:
    """Kill this process when a phase begins."""

    def on_phase(phase: Phase, _: str) -> None:
        if phase == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    return Watch(on_phase)


if __name__ == "__main__":
    make(sys.argv[1], Path(sys.argv[2]), kill_at(sys.argv[4]), dtype=sys.argv[3])
