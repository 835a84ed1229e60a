"""Where a build fetches: a hub and a web server on loopback, and fsspec's file systems, with what goes wrong there."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import huggingface_hub.constants
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file

from openbei.cli import main
from openbei.errors import ConfigError, ModelError, ModelNotFound, WeightsError
from openbei.weights.build import Built
from openbei.weights.load import load
from openbei.weights.manifest import check_files, list_files
from openbei.weights.remote import Patience
from openbei.weights.repo import HubOptions, locate
from tests.weights.building import AT_ONCE, SHORT_S, make
from tests.weights.hub import SHA, TOKEN, Hub, serving

WEIGHTS = "model.safetensors"
FILES = {"config.json", "modules.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS, "1_Pooling/config.json"}


@pytest.fixture
def repo(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folder("bert"), tmp_path / "repo")


@pytest.fixture
def hub(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    repos = {"owner/tiny": repo, "owner/private": repo}
    with serving(Hub(repos, gated=frozenset({"owner/gated"}), private=frozenset({"owner/private"}))) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("OPENBEI_HOME", str(tmp_path / "home"))
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
        yield hub


@pytest.fixture
def from_hub(hub: Hub, tmp_path: Path) -> Callable[..., Built]:
    def build(model: str = "owner/tiny", **more: object) -> Built:
        return make(model, tmp_path / "out", cache_dir=tmp_path / "cache", **more)

    return build


@pytest.fixture
def web(hub: Hub) -> str:
    """The address of the same files on a plain web server."""
    return f"{hub.url}/owner/tiny/resolve/main"


def _same(built: Built, repo: Path) -> bool:
    check_files(built.folder, built.manifest, full=True)
    same = [(built.folder / name).read_bytes() == (repo / name).read_bytes() for name in FILES]
    return all(same) and set(list_files(built.folder)) == FILES


def test_a_hub_model_is_pinned_to_its_commit(from_hub: Callable[..., Built], repo: Path) -> None:
    built = from_hub("owner/tiny@v1")
    assert (built.manifest.source, built.manifest.revision) == ("owner/tiny", SHA)
    assert _same(built, repo)


def test_a_second_build_of_a_commit_fetches_nothing(from_hub: Callable[..., Built], hub: Hub, tmp_path: Path) -> None:
    from_hub(revision=SHA)
    shutil.rmtree(tmp_path / "cache")
    hub.asked.clear()
    hub.tokens.clear()
    assert not from_hub(revision=SHA).new
    assert (hub.asked, hub.tokens) == ([], [])


def test_the_cache_builds_offline(
    from_hub: Callable[..., Built], hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locate("owner/tiny", HubOptions(cache_dir=tmp_path / "cache"))
    hub.tokens.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert from_hub().manifest.revision == SHA
    assert hub.tokens == []


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("owner/none", "no folder owner/none, and no model of this name at http://127"),
        ("owner/gated", "owner/gated is gated: accept its terms"),
        ("owner/private", "or it is private: give a token"),
        ("owner/tiny@v9", "owner/tiny has no revision 'v9'"),
    ],
)
def test_what_the_hub_refuses_says_what_to_do(
    model: str, said: str, from_hub: Callable[..., Built], tmp_path: Path
) -> None:
    with pytest.raises(ModelNotFound, match=said):
        from_hub(model)
    assert not (tmp_path / "out").exists()


def test_two_revisions_are_one_too_many(from_hub: Callable[..., Built]) -> None:
    with pytest.raises(ConfigError, match="names revision v1 and --revision main"):
        from_hub("owner/tiny@v1", revision="main")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_is_busy_twice_is_asked_again(
    status: int, from_hub: Callable[..., Built], hub: Hub, repo: Path
) -> None:
    hub.faults = {"api": [status, status]}
    assert _same(from_hub(), repo)
    assert hub.faults == {"api": []}


def test_a_hub_that_stays_broken_is_named(from_hub: Callable[..., Built], hub: Hub, tmp_path: Path) -> None:
    hub.broken = True
    with pytest.raises(ModelNotFound, match=r"owner/tiny could not be fetched in 3 attempts: .* build again"):
        from_hub()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", [429, 500, "truncate", "hang"])
def test_a_file_that_fails_once_arrives_whole(
    fault: int | str, from_hub: Callable[..., Built], hub: Hub, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault == "hang":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", SHORT_S)
    hub.faults = {WEIGHTS: [fault]}
    assert _same(from_hub(), repo)
    assert hub.faults == {WEIGHTS: []}


@pytest.mark.parametrize("fault", ["flip", "change"])
def test_a_file_that_is_not_what_the_hub_said_is_refused(
    fault: str, from_hub: Callable[..., Built], hub: Hub, repo: Path, tmp_path: Path
) -> None:
    hub.faults = {"tokenizer.json": [fault]}
    with pytest.raises(ModelError, match=r"tokenizer\.json of .* has not the checksum|Consistency.*tokenizer\.json"):
        from_hub()
    assert not (tmp_path / "out").exists()


def test_a_cache_that_was_damaged_is_not_built_from(from_hub: Callable[..., Built], hub: Hub, tmp_path: Path) -> None:
    file = locate("owner/tiny", HubOptions(cache_dir=tmp_path / "cache")).folder / WEIGHTS
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.resolve().write_bytes(data)
    with pytest.raises(WeightsError, match=r"model\.safetensors of owner/tiny has not the checksum"):
        from_hub()


def test_a_token_reaches_the_hub_and_no_file(from_hub: Callable[..., Built], hub: Hub) -> None:
    built = from_hub("owner/private", token=TOKEN)
    assert set(hub.tokens) == {f"Bearer {TOKEN}"}
    assert TOKEN.encode() not in b"".join(path.read_bytes() for path in built.folder.rglob("*.json"))


@pytest.fixture
def storage(repo: Path) -> Iterator[Hub]:
    """Another server with the same files, as a hub keeps large ones; localhost is another name than 127.0.0.1."""
    with serving(Hub({"owner/tiny": repo})) as storage:
        storage.url = storage.url.replace("127.0.0.1", "localhost")
        yield storage


def test_a_hubs_token_stays_with_the_hub(
    from_hub: Callable[..., Built], hub: Hub, web: str, storage: Hub, repo: Path, tmp_path: Path
) -> None:
    hub.sends_to = storage.url
    assert _same(from_hub(token=TOKEN, source_token="other"), repo)
    assert set(hub.tokens) == {f"Bearer {TOKEN}"}
    assert (len(storage.asked), set(storage.tokens)) == (len(FILES), {None})


def test_a_web_servers_token_is_its_own_and_stays_with_it(
    hub: Hub, web: str, storage: Hub, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert make(web, tmp_path / "none", token=TOKEN).new
    assert set(hub.tokens) == {None}
    hub.tokens.clear()
    hub.sends_to = storage.url
    assert _same(make(web, tmp_path / "out", token=TOKEN, source_token="own"), repo)
    assert set(hub.tokens) == {"Bearer own"}
    assert (len(storage.asked), set(storage.tokens)) == (len(FILES) + 1, {None})  # modules.json is read twice


def test_each_token_has_a_setting_of_its_own(
    hub: Hub, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("SOURCE_TOKEN", "own")
    (tmp_path / "token").write_text(f"{TOKEN}2\n")
    sent = {}
    for model, flags in ((web, ()), (web, ("--token-file", tmp_path / "token")), ("owner/tiny", ())):
        hub.tokens.clear()
        place = tmp_path / str(len(sent))
        args = ["build", model, "--out", place, "--huggingface-hub-cache", place.with_suffix(".cache"), *flags]
        main.main(list(map(str, args)), standalone_mode=False)
        sent[model, flags] = set(hub.tokens)
    assert list(sent.values()) == [{"Bearer own"}, {"Bearer own"}, {f"Bearer {TOKEN}"}]


def test_a_web_server_is_read_file_by_file(web: str, repo: Path, tmp_path: Path) -> None:
    built = make(web, tmp_path / "out")
    assert (built.manifest.source, _same(built, repo)) == (web, True)
    assert not list((tmp_path / "home" / "fetched").glob("[!.]*"))  # nothing is kept twice
    assert not make(web, tmp_path / "out").new


def test_a_web_servers_shards_and_pickles_are_found(hub: Hub, web: str, repo: Path, tmp_path: Path) -> None:
    state = load_file(repo / WEIGHTS)
    (repo / WEIGHTS).unlink()
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    for number, name in enumerate(names):
        torch.save(dict(list(state.items())[number::2]), repo / name)
    index = {key: names[number % 2] for number, key in enumerate(state)}
    (repo / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    built = make(web, tmp_path / "out")
    assert set(built.manifest.files) == FILES
    converted = load_file(built.folder / WEIGHTS)
    assert all(torch.equal(converted[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("fault", [429, 503, "truncate", "hang"])
def test_a_web_file_that_fails_twice_arrives_whole(
    fault: int | str, hub: Hub, web: str, repo: Path, tmp_path: Path
) -> None:
    """A server that hangs does so once: on a busy machine another attempt may run out of that short time too."""
    hub.faults = {WEIGHTS: [fault] if fault == "hang" else [fault, fault]}
    patience = replace(AT_ONCE, timeout_s=SHORT_S) if fault == "hang" else AT_ONCE
    assert _same(make(web, tmp_path / "out", patience=patience), repo)
    assert hub.faults == {WEIGHTS: []}
    half = (repo / WEIGHTS).stat().st_size // 2
    assert hub.ranges == ([half] if fault == "truncate" else [])


def test_a_web_server_that_knows_no_ranges_is_read_from_the_start_again(
    hub: Hub, web: str, repo: Path, tmp_path: Path
) -> None:
    hub.faults, hub.whole = {WEIGHTS: ["truncate"]}, True
    assert _same(make(web, tmp_path / "out"), repo)
    assert len(hub.ranges) == 1


def test_a_file_is_not_put_together_of_two(hub: Hub, web: str, repo: Path, tmp_path: Path) -> None:
    """It broke off in the middle, and what came after is of another file of the same length."""
    hub.faults = {"tokenizer.json": ["truncate", "change"]}
    with pytest.raises(ModelNotFound, match=r"tokenizer\.json changed while it was fetched: build again"):
        make(web, tmp_path / "out")
    assert hub.ranges


@pytest.mark.parametrize(
    ("asked", "pauses"), [("0", [1, 2]), ("7", [7, 7]), ("999", [60, 60]), ("Wed, 21 Oct 2026 07:28:00 GMT", [1, 2])]
)
def test_a_server_says_how_long_to_wait(
    asked: str, pauses: list[float], hub: Hub, web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within reason; what is no number of seconds is our own pause."""
    slept: list[float] = []
    monkeypatch.setattr("openbei.weights.remote.time.sleep", slept.append)
    hub.faults, hub.retry_after = {WEIGHTS: [429, 503]}, asked
    assert make(web, tmp_path / "out", patience=Patience((1, 2))).new
    assert slept == pauses


def test_a_fetch_goes_on_where_the_last_one_ended(hub: Hub, web: str, repo: Path, tmp_path: Path) -> None:
    hub.faults = {WEIGHTS: ["truncate", 500, 500]}
    with pytest.raises(ModelNotFound, match=r"model\.safetensors could not be fetched in 3 attempts: .*500"):
        make(web, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    hub.asked.clear()
    assert _same(make(web, tmp_path / "out"), repo)
    assert hub.ranges == [(repo / WEIGHTS).stat().st_size // 2]


def test_a_web_file_that_changes_under_way_is_refused_and_the_next_build_is_of_the_new_one(
    hub: Hub, web: str, repo: Path, tmp_path: Path
) -> None:
    hub.faults = {"tokenizer_config.json": ["change"]}
    with pytest.raises(ModelNotFound, match=r"tokenizer_config\.json changed while it was fetched: build again"):
        make(web, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert _same(make(web, tmp_path / "out"), repo)


def test_a_web_server_that_refuses_says_what_to_do(hub: Hub, web: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"resolve/main answers 401 .* give a token with --source-token"):
        make(web.replace("tiny", "private"), tmp_path / "out")
    assert make(web.replace("tiny", "private"), tmp_path / "out", source_token=TOKEN).new
    with pytest.raises(ModelNotFound, match=r"none/resolve/main has no config\.json"):
        make(web.replace("tiny", "none"), tmp_path / "other")
    with pytest.raises(ModelNotFound, match="must not hold a user or password"):
        make("http://ada:secret@127.0.0.1/m", tmp_path / "other")
    with pytest.raises(ModelNotFound, match=r"m\.tar\.gz is an archive: give the address of a folder"):
        make("http://127.0.0.1/m.tar.gz?sig=x", tmp_path / "other")


def test_a_signature_in_the_address_is_sent_and_never_written(hub: Hub, web: str, tmp_path: Path) -> None:
    built = make(f"{web}?sig=secret", tmp_path / "out")
    assert built.manifest.source == web
    assert b"secret" not in (built.folder / "manifest.json").read_bytes()
    hub.broken = True
    with pytest.raises(ModelNotFound) as raised:
        make(f"{web}?sig=secret", tmp_path / "other")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("name", ["../outside", "/etc/outside"])
def test_an_index_may_not_name_files_elsewhere(name: str, hub: Hub, web: str, repo: Path, tmp_path: Path) -> None:
    (repo / WEIGHTS).rename(repo.parent / "outside")
    (repo / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelError, match=r"outside of its folder|may only name files beside it|has no"):
        make(web, tmp_path / "out")
    assert not (tmp_path / "home" / "fetched" / "outside").exists()


@pytest.fixture
def bucket(repo: Path) -> Iterator[MemoryFileSystem]:
    """The same files in fsspec's memory://models/tiny, beside others."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    for path in (path for path in repo.rglob("*") if path.is_file()):
        system.pipe(f"/models/tiny/{path.relative_to(repo)}", path.read_bytes())
    system.pipe("/models/tiny/onnx/model.onnx", b"x")
    yield system
    system.store.clear()


def test_a_bucket_is_read_through_fsspec(bucket: MemoryFileSystem, hub: Hub, repo: Path, tmp_path: Path) -> None:
    built = make("memory://models/tiny", tmp_path / "out")
    assert (built.manifest.source, _same(built, repo)) == ("memory://models/tiny", True)
    assert not make("memory://models/tiny", tmp_path / "out").new
    assert _same(make(f"file://{repo}", tmp_path / "file"), repo)


def test_a_buckets_file_that_fails_is_read_again_from_there(
    bucket: MemoryFileSystem, hub: Hub, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, plain = [], MemoryFileSystem.open

    def fail_once(self: MemoryFileSystem, path: str, *args: object, **more: object) -> object:
        opened.append(path)
        if opened.count(path) == 1:
            raise ConnectionResetError("lost")
        return plain(self, path, *args, **more)

    monkeypatch.setattr(MemoryFileSystem, "open", fail_once)
    assert _same(make("memory://models/tiny", tmp_path / "out"), repo)


def test_who_may_not_read_a_bucket_is_told_at_once(
    bucket: MemoryFileSystem, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The three clients' own ways of saying so; test_build_clouds.py asks the clients."""

    class NoCredentialsError(Exception):
        pass

    class HttpError(Exception):
        code = 401

    told, looked = "memory://models/tiny is forbidden: check the credentials", []
    for error in (PermissionError("Access Denied"), NoCredentialsError(), HttpError(), OSError("Forbidden: b/x")):

        def find(*_: object, error: Exception = error, **_more: object) -> None:
            looked.append(error)
            raise error

        monkeypatch.setattr(MemoryFileSystem, "find", find)
        with pytest.raises(ModelNotFound, match=told):
            make("memory://models/tiny", tmp_path / "out")
    assert len(looked) == 4


def test_an_artifact_of_a_bucket_keeps_what_only_artifacts_have(
    bucket: MemoryFileSystem, hub: Hub, repo: Path, tmp_path: Path
) -> None:
    """What was converted, and its deployment."""
    torch.save({"weight": torch.ones(1, 48), "bias": torch.zeros(1)}, repo / "sparse_linear.pt")
    first = make(repo, tmp_path / "first", deployment=b"model_name: x\n")
    for name in [*first.manifest.files, "manifest.json"]:
        bucket.pipe(f"/artifacts/b/{name}", (first.folder / name).read_bytes())
    copy = make("memory://artifacts/b", tmp_path / "copy")
    assert {"sparse_linear.safetensors", "config.yaml"} < copy.manifest.files.keys()
    assert copy.manifest.id == first.manifest.id
    other = make("memory://artifacts/b", tmp_path / "other", deployment=b"model_name: y\n")
    assert (other.folder / "config.yaml").read_bytes() == b"model_name: y\n"
    check_files(other.folder, other.manifest, full=True)
    with pytest.raises(ConfigError, match="not what is to be built"):
        make("memory://artifacts/b", tmp_path / "copy", deployment=b"model_name: y\n")


def test_a_bucket_without_a_model_or_a_package_says_so(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelNotFound, match=r"memory://nothing has no config\.json"):
        make("memory://nothing", tmp_path / "out")
    for url, extra in (("s3://b/m", "s3"), ("gs://b/m", "gcs"), ("az://b/m", "azure")):
        monkeypatch.setitem(sys.modules, {"s3": "s3fs", "gcs": "gcsfs", "azure": "adlfs"}[extra], None)
        with pytest.raises(ModelNotFound, match=rf"needs a package: pip install 'openbei\[{extra}\]'"):
            make(url, tmp_path / "out")
    with pytest.raises(ModelNotFound, match="no address that fsspec knows"):
        make("nope://b/m", tmp_path / "out")


def test_an_artifact_in_a_bucket_is_copied_whole_or_not_at_all(
    bucket: MemoryFileSystem, hub: Hub, repo: Path, tmp_path: Path
) -> None:
    first = make(repo, tmp_path / "first")
    for name in [*first.manifest.files, "manifest.json"]:
        bucket.pipe(f"/artifacts/a/{name}", (first.folder / name).read_bytes())
    copy = make("memory://artifacts/a", tmp_path / "copy")
    assert (copy.folder / "manifest.json").read_bytes() == (first.folder / "manifest.json").read_bytes()
    assert not make("memory://artifacts/a", tmp_path / "copy").new
    data = bytearray(bucket.cat("/artifacts/a/model.safetensors"))
    data[-1] ^= 1
    bucket.pipe("/artifacts/a/model.safetensors", bytes(data))
    with pytest.raises(WeightsError, match=r"model\.safetensors has another sha256"):
        make("memory://artifacts/a", tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()


def test_serving_never_fetches_from_an_address(web: str) -> None:
    with pytest.raises(ModelNotFound, match="is an address: bei build it to a folder"):
        load(web)
