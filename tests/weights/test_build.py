"""A folder -> an artifact: what is in it, and that nothing half-built, changed or damaged is ever taken for one."""

import json
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import orjson
import pytest
import torch
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file

from openbei.errors import ConfigError, ModelError, ModelNotFound, UnsupportedModel, WeightsError
from openbei.weights.build import Built, Watch
from openbei.weights.load import LoadOptions, load
from openbei.weights.manifest import NAME, check_files, list_files, read_manifest, sha256_of
from openbei.weights.tensors import read_tensors, write_safetensors
from tests import families
from tests.weights.building import PHASES, make, rewrite

WEIGHTS = "model.safetensors"


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENBEI_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def folder(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """Tiny BERT with what else lies in a model's folder."""
    folder = shutil.copytree(tiny_folder("bert"), tmp_path / "model")
    (folder / "run_me.py").write_text("raise SystemExit")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"x")
    return folder


def _flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    rewrite(path, data)


def _visible(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]


def test_an_artifact_is_the_model_and_its_manifest(folder: Path, tmp_path: Path) -> None:
    built = make(folder, tmp_path / "out", dtype="float32")
    assert built.new
    kept = {"config.json", "modules.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS, "1_Pooling/config.json"}
    assert set(list_files(built.folder)) == set(built.manifest.files) == kept
    for name, fact in built.manifest.files.items():
        assert (built.folder / name).read_bytes() == (folder / name).read_bytes()
        assert fact.sha256 == sha256_of(folder / name)
    found = read_manifest(built.folder)
    assert found is not None
    assert (found.source, found.dtype, found.model, found.probes) == (
        str(folder),
        "float32",
        {"family": "bert"},
        built.manifest.probes,
    )


def test_an_artifact_loads_as_its_model_and_knows_itself(folder: Path, tmp_path: Path) -> None:
    make(folder, tmp_path / "out")
    checkpoint = load(str(tmp_path / "out"))
    assert checkpoint.artifact == read_manifest(tmp_path / "out")
    assert (checkpoint.model_id, checkpoint.revision) == (str(folder), checkpoint.artifact.revision)
    assert checkpoint.text.probes == ((("a",), (1, 2)),)
    plain = load(str(folder))
    np.testing.assert_array_equal(checkpoint.model.weights.embedding.word, plain.model.weights.embedding.word)


def test_the_pooling_that_was_asked_for_is_kept_and_gives_way(tmp_path: Path) -> None:
    plain = families.save(tmp_path / "plain", "bert", pooling=None)
    with pytest.raises(UnsupportedModel, match="give --pooling"):
        make(plain, tmp_path / "out")
    make(plain, tmp_path / "out", pooling="cls")
    assert load(str(tmp_path / "out")).model.pooling == "cls"
    assert load(str(tmp_path / "out"), LoadOptions(pooling="mean")).model.pooling == "mean"


def test_a_pickle_becomes_safetensors_with_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    state = load_file(folder / WEIGHTS)
    torch.save(state, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    built = make(folder, tmp_path / "out")
    assert WEIGHTS in built.manifest.files
    assert not list(built.folder.rglob("*.bin"))
    converted = load_file(built.folder / WEIGHTS)
    assert converted.keys() == state.keys()
    assert all(torch.equal(converted[name], state[name]) for name in state)
    check_files(built.folder, built.manifest, full=True)


def test_extra_layers_become_safetensors_with_the_same_numbers(folder: Path, tmp_path: Path) -> None:
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    for name, rows in (("sparse_linear.pt", 1), ("colbert_linear.pt", 5)):
        torch.save({"weight": torch.randn(rows, width), "bias": torch.randn(rows)}, folder / name)
    built = make(folder, tmp_path / "out")
    assert not list(built.folder.rglob("*.pt"))
    ours, theirs = load(str(built.folder)), load(str(folder))
    assert ours.by_token == theirs.by_token
    for ours_head, their_head in ((ours.model.weigher, theirs.model.weigher), (ours.model.multi, theirs.model.multi)):
        np.testing.assert_array_equal(ours_head[0].linear.weight, their_head[0].linear.weight)
        np.testing.assert_array_equal(ours_head[0].linear.bias, their_head[0].linear.bias)


def test_safetensors_are_written_aligned_and_as_the_library_reads_them(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {
        "bytes": rng.integers(0, 255, 3, np.uint8),
        "half": rng.standard_normal((3, 5)).astype(np.float16),
        "wide": rng.standard_normal((2, 1)),
        "single": rng.standard_normal(7).astype(np.float32),
        "turned": rng.standard_normal((4, 3)).astype(np.float32).T,
    }
    write_safetensors(tmp_path / WEIGHTS, tensors)
    theirs, ours = load_numpy(tmp_path / WEIGHTS), read_tensors(tmp_path)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(theirs[name], tensor)
        np.testing.assert_array_equal(ours[name], tensor)
        assert ours[name].flags.aligned
    with pytest.raises(WeightsError, match="complex64, which safetensors cannot hold"):
        write_safetensors(tmp_path / WEIGHTS, {"c": np.zeros(1, np.complex64)})


def test_a_second_build_does_nothing(folder: Path, tmp_path: Path) -> None:
    first = make(folder, tmp_path / "out")
    phases: list[str] = []
    inodes = {path: path.stat().st_ino for path in first.folder.iterdir()}
    again = make(folder, tmp_path / "out", Watch(lambda phase, _: phases.append(phase)))
    assert (again.new, again.manifest.id, phases) == (False, first.manifest.id, ["pin"])
    assert {path: path.stat().st_ino for path in first.folder.iterdir()} == inodes


def test_another_model_is_never_put_over_an_artifact_nor_over_anything(folder: Path, tmp_path: Path) -> None:
    make(folder, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"out holds .* remove it, or give another --out"):
        make(folder, tmp_path / "out", dtype="float32")
    families.change_json(folder / "config.json", layer_norm_eps=1e-5)
    with pytest.raises(ConfigError, match="not what is to be built"):
        make(folder, tmp_path / "out")
    with pytest.raises(ConfigError, match="something that is no artifact"):
        make(folder, folder)


def test_an_empty_folder_may_be_the_target(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert make(folder, tmp_path / "out").new


@pytest.mark.parametrize("dtype", ["auto", "fp8"])
def test_two_builds_at_once_are_one(dtype: str, folder: Path, tmp_path: Path) -> None:
    built: list[Built] = []
    begun = threading.Barrier(2)

    def run() -> None:
        begun.wait()
        built.append(make(folder, tmp_path / "out", dtype=dtype))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(one.new for one in built) == [False, True]
    check_files(tmp_path / "out", built[0].manifest, full=True)


@pytest.mark.parametrize(
    ("phase", "dtype"), [*((phase, "auto") for phase in PHASES), *((phase, "fp8") for phase in PHASES[3:])]
)
def test_a_killed_build_leaves_nothing_and_does_not_hinder_the_next(
    phase: str, dtype: str, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "there" / "out"
    command = [sys.executable, "-m", "tests.weights.building", str(folder), str(out), dtype, phase]
    assert subprocess.run(command, check=False).returncode == -9
    assert not out.exists()
    assert out.parent.exists() is (phase != "pin")
    assert make(folder, out, dtype=dtype).new
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_failed_examination_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    families.change_json(folder / "config.json", hidden_act="swish2")
    with pytest.raises(UnsupportedModel, match="swish2"):
        make(folder, tmp_path / "out")
    assert set(_visible(tmp_path)) == {"model"}


def test_a_full_disk_is_said_before_anything_is_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ModelError, match=r"0\.00 GB free, the artifact needs 0\.06: free some"):
        make(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", ["auto", "fp8"])
def test_a_disk_that_fills_up_meanwhile_leaves_nothing(dtype: str, folder: Path, tmp_path: Path) -> None:
    program = "import sys, pathlib, tests.weights.building as b; b.make(sys.argv[1], pathlib.Path(sys.argv[2]), dtype="
    program += f"{dtype!r})"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), str(tmp_path / "out")],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ModelError" in done.stderr
    assert "nothing was built: free some space" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


@pytest.mark.parametrize("dtype", ["auto", "fp8"])
def test_a_flipped_bit_is_found_in_every_file(dtype: str, folder: Path, tmp_path: Path) -> None:
    manifest = make(folder, tmp_path / "out", dtype=dtype).manifest
    for name in manifest.files:
        broken = shutil.copytree(tmp_path / "out", tmp_path / "broken")
        _flip(broken / name, (broken / name).stat().st_size // 2)
        with pytest.raises(WeightsError, match=f"broken is damaged: {name} has another sha256"):
            load(str(broken))
        shutil.rmtree(broken)


def test_a_large_file_is_hashed_only_if_that_is_asked_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = make(folder, tmp_path / "out").manifest
    _flip(tmp_path / "out" / WEIGHTS, -1)
    monkeypatch.setattr("openbei.weights.manifest.SMALL_BYTES", 100)
    check_files(tmp_path / "out", manifest, full=False)
    with pytest.raises(WeightsError, match=r"model\.safetensors has another sha256"):
        check_files(tmp_path / "out", manifest, full=True)


def test_a_flipped_bit_in_the_manifest_is_found_wherever_it_is(folder: Path, tmp_path: Path) -> None:
    make(folder, tmp_path / "out")
    path = tmp_path / "out" / NAME
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        _flip(path, position)
        with pytest.raises(ModelError, match="manifest"):
            read_manifest(tmp_path / "out")
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda out: (out / "tokenizer.json").unlink(), r"tokenizer\.json is missing"),
        (lambda out: (out / "adapter_config.json").write_text("{}"), r"adapter_config\.json is not in its manifest"),
        (lambda out: (out / WEIGHTS).write_bytes(b"x"), r"model\.safetensors has 1 bytes, its manifest says"),
        (lambda out: (out / NAME).write_text("{"), "not an openbei manifest"),
        (lambda out: (out / NAME).write_text('{"icons": []}'), "not an openbei manifest"),
    ],
)
def test_a_folder_that_is_not_its_manifest_is_refused(
    damage: Callable[[Path], object], said: str, folder: Path, tmp_path: Path
) -> None:
    make(folder, tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(ModelError, match=said):
        load(str(tmp_path / "out"))


def test_a_manifest_of_another_format_is_refused(folder: Path, tmp_path: Path) -> None:
    make(folder, tmp_path / "out")
    path = tmp_path / "out" / NAME
    path.write_bytes(orjson.dumps(json.loads(path.read_bytes()) | {"format": "openbei artifact 1"}))
    with pytest.raises(ModelError, match="has format 'openbei artifact 1'; this openbei reads 'openbei artifact 2'"):
        load(str(tmp_path / "out"))


def test_an_artifact_is_copied_and_verified_not_built_anew(folder: Path, tmp_path: Path) -> None:
    first = make(folder, tmp_path / "out", dtype="float32")
    copy = make(tmp_path / "out", tmp_path / "copy")
    assert (copy.folder / NAME).read_bytes() == (first.folder / NAME).read_bytes()
    assert not make(tmp_path / "out", tmp_path / "copy").new
    with pytest.raises(ConfigError, match="is an artifact already, built for dtype float32"):
        make(tmp_path / "out", tmp_path / "other", dtype="bfloat16")
    _flip(tmp_path / "out" / WEIGHTS, 5000)
    with pytest.raises(WeightsError, match="another sha256"):
        make(tmp_path / "out", tmp_path / "third")
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize("model", ["./none", "/none/of/this", "a/b/c", ""])
def test_a_path_that_is_not_there_is_said_so(model: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"there is no folder|name is empty"):
        make(model, tmp_path / "out")
