"""A frontend's side of the engine processes, where one of them is a socket that a test holds."""

import asyncio
import os
import signal
import socket
import sys
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace

import pytest

from openbei.engine.link import Told, frame
from openbei.engine.remote import RemoteCore
from openbei.server import remote_models
from openbei.server.processes import obeyed
from openbei.server.remote_models import RemoteModels


@pytest.mark.skipif(sys.platform != "linux", reason="frontends need Linux")
def test_an_engine_that_says_nothing_keeps_no_frontend_from_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_models, "JOIN_S", 0.01)
    at = SimpleNamespace(name="m", path=tmp_path / "engine")
    models, core = RemoteModels(lambda _: None, 0), RemoteCore(1)
    models._cores["m"] = core

    async def join() -> None:
        async with asyncio.timeout(10):
            await models.join(at)  # type: ignore[arg-type]
        assert core.admission.status == "failed"
        with hung.accept()[0] as engine:
            engine.sendall(frame(Told("ready")))
            async with asyncio.timeout(10):
                await core._told.wait()
        assert core.admission.status == "ready"

    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(at.path))
        hung.listen()
        asyncio.run(join())


@pytest.mark.parametrize("error", [None, KeyError("m")])
def test_a_frontend_that_cannot_do_what_it_is_told_leaves(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    killed, done = [], Future[None]()
    monkeypatch.setattr(os, "kill", lambda *args: killed.append(args))
    done.set_result(None) if error is None else done.set_exception(error)
    obeyed(done)
    assert killed == ([] if error is None else [(os.getpid(), signal.SIGTERM)])
