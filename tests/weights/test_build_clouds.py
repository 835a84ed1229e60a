"""Buckets behind servers that speak their protocols: moto's S3, gcp-storage-emulator's GCS, Azurite's Azure.

Clients and servers weigh 480 MB, so each cloud is skipped where it is not installed:

    pip install s3fs 'moto[s3]' flask flask-cors gcsfs gcp-storage-emulator adlfs
    npm install azurite                                                             # azurite-blob on the PATH
"""

import json
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from openbei.errors import ModelNotFound
from openbei.weights.build import Phase, Watch
from openbei.weights.manifest import check_files
from tests.weights.building import make

# Azurite's own account and key, which its documentation publishes.
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
BUCKET = "models"

pytestmark = pytest.mark.filterwarnings("ignore")  # of the clients, about themselves


@dataclass
class Cloud:
    """A bucket. root: the address of its folder. system: fsspec's view of it. deny: from now on nobody is let in."""

    root: str
    system: Any
    deny: Callable[[], object]

    def put(self, folder: Path, place: str) -> str:
        """Copy a folder into the bucket -> its address."""
        for path in (path for path in folder.rglob("*") if path.is_file()):
            self.system.pipe(f"{BUCKET}/{place}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"{self.root}/{place}"


class _Forbidding(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(403)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture(params=["s3", "gs", "az"])
def cloud(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    monkeypatch.setenv("OPENBEI_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("fsspec.spec.AbstractFileSystem.cachable", False)  # a client of the test's own
    yield from {"s3": _s3, "gs": _gs, "az": _az}[request.param](monkeypatch)


def _s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server", exc_type=ImportError)
    for name, value in {"ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)

    _post(f"{url}/moto-api/reset")  # it keeps its buckets in a global
    system = fsspec.filesystem("s3")
    system.mkdir(BUCKET)
    try:
        yield Cloud(f"s3://{BUCKET}", system, lambda: _post(f"{url}/moto-api/reset-auth", b"0"))
    finally:
        server.stop()


def _post(url: str, data: bytes = b"") -> None:
    urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "text/plain"})).close()


def _gs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    server = emulator.create_server("127.0.0.1", 0, in_memory=True, default_bucket=BUCKET)
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server._api._httpd.server_port}")

    def send_away() -> None:
        """The emulator lets everybody in; this one nobody."""
        guard = HTTPServer(("127.0.0.1", 0), _Forbidding)
        threading.Thread(target=guard.serve_forever, daemon=True).start()
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{guard.server_port}")

    try:
        yield Cloud(f"gs://{BUCKET}", fsspec.filesystem("gs"), send_away)
    finally:
        server.stop()


def _az(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    pytest.importorskip("adlfs")
    azurite = shutil.which("azurite-blob") or pytest.skip("azurite-blob is not installed")
    flags = ("--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck", "--blobPort", "0")
    server = subprocess.Popen([azurite, *flags], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        url = next(line.split()[-1] for line in server.stdout if "successfully listens" in line)

        def connect(key: str) -> None:
            parts = f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={key}"
            monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", f"{parts};BlobEndpoint={url}/devstoreaccount1")

        connect(AZURITE_KEY)
        system = fsspec.filesystem("az")
        system.mkdir(BUCKET)
        yield Cloud(f"abfs://{BUCKET}@devstoreaccount1.dfs.core.windows.net", system, lambda: connect("AAAA"))
    finally:
        server.terminate()
        server.communicate()


@pytest.fixture
def repo(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folder("bert"), tmp_path / "repo")


def test_a_bucket_is_built_from(cloud: Cloud, repo: Path, tmp_path: Path) -> None:
    url = cloud.put(repo, "a/tiny")
    built = make(url, tmp_path / "out")
    assert (built.new, built.manifest.source) == (True, url)
    check_files(built.folder, built.manifest, full=True)
    for name in built.manifest.files:
        assert (built.folder / name).read_bytes() == (repo / name).read_bytes()
    assert not make(url, tmp_path / "out").new


def test_an_artifact_is_brought_whole(cloud: Cloud, repo: Path, tmp_path: Path) -> None:
    """With the files that only an artifact has: what was converted, and its deployment."""
    torch.save({"weight": torch.ones(1, 48), "bias": torch.zeros(1)}, repo / "sparse_linear.pt")
    first = make(repo, tmp_path / "first", deployment=b"model_name: x\n")
    assert {"sparse_linear.safetensors", "config.yaml"} < first.manifest.files.keys()
    copy = make(cloud.put(first.folder, "artifacts/a"), tmp_path / "copy")
    assert copy.manifest.id == first.manifest.id
    assert (copy.folder / "manifest.json").read_bytes() == (first.folder / "manifest.json").read_bytes()


def test_a_file_that_changes_under_way_is_refused(cloud: Cloud, repo: Path, tmp_path: Path) -> None:
    url = cloud.put(repo, "a/tiny")

    def change(phase: Phase, _: str) -> None:
        if phase == "fetch":
            data = json.dumps(json.loads((repo / "config.json").read_text()) | {"x": 1}).encode()
            cloud.system.pipe(f"{BUCKET}/a/tiny/config.json", data)

    with pytest.raises(ModelNotFound, match=r"config\.json changed while it was fetched: build again"):
        make(url, tmp_path / "out", Watch(change))
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_and_who_may_not_are_told_apart(cloud: Cloud, repo: Path, tmp_path: Path) -> None:
    for place in (f"{cloud.root}/none", cloud.root.replace(BUCKET, "nobucket") + "/none"):
        with pytest.raises(ModelNotFound, match=r"none has no config\.json"):
            make(place, tmp_path / "out")
    url = cloud.put(repo, "a/tiny")
    cloud.deny()
    with pytest.raises(ModelNotFound, match="tiny is forbidden: check the credentials"):
        make(url, tmp_path / "out")
