"""`bei build`, `verify`, `ls` and `rm` in process, on a tiny model that is really run; what a person reads."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from openbei.cli import main
from openbei.config import EngineConfig
from openbei.engine import start
from openbei.engine.cpu import CpuExecutor
from openbei.engine.probe import difference
from openbei.engine.request import Request
from openbei.errors import ModelError, WeightsError
from openbei.weights.load import load
from openbei.weights.manifest import check_files, read_manifest, write_manifest
from tests import families

FLOAT32 = EngineConfig(device="cpu", dtype="float32")


@pytest.fixture
def bei(tmp_path: Path) -> Callable[..., Result]:
    def call(*args: object) -> Result:
        names = dict.fromkeys((name.upper() for name in EngineConfig.__dataclass_fields__), None)
        return CliRunner().invoke(main, list(map(str, args)), env=names | {"OPENBEI_HOME": str(tmp_path / "home")})

    return call


@pytest.fixture
def built(bei: Callable[..., Result], tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    result = bei("build", tiny_folder("bert"), "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path / 'out'}\n"
    return tmp_path / "out"


def test_an_artifact_starts_and_gives_the_models_own_vectors(built: Path, tiny_folder: Callable[[str], Path]) -> None:
    rows = []
    for folder in (built, tiny_folder("bert")):
        with start.open_engine(EngineConfig(model_id=str(folder), device="cpu", dtype="float32")) as engine:
            rows.append(engine.submit(Request(inputs=["the river bank", "honey"])).result().rows)
    np.testing.assert_array_equal(rows[0], rows[1])


def test_the_manifest_tells_what_was_understood(built: Path) -> None:
    manifest = read_manifest(built)
    assert manifest is not None
    assert (manifest.model["family"], manifest.model["task"], len(manifest.probes)) == ("bert", "embed", 2)
    assert not {"folder", "model", "revision"} & manifest.model.keys()
    assert {len(probe.rows) for probe in manifest.probes} == {1}


@pytest.mark.parametrize(("kind", "num_texts", "num_rows"), [("Sequence", 1, 1), ("Token", 1, None)])
def test_classifiers_have_their_labels_as_the_self_check(
    kind: str, num_texts: int, num_rows: int | None, bei: Callable[..., Result], tmp_path: Path
) -> None:
    model = families.network("bert", kind, num_labels=3)
    folder = families.save(tmp_path / "model", "bert", model, pooling=None)
    assert bei("build", folder, "-o", tmp_path / "out").exit_code == 0
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    for probe in manifest.probes:
        assert (probe.output, len(probe.texts)) == ("labels", num_texts)
        assert len(probe.rows) == (num_rows or len(probe.ids))
        assert {len(row) for row in probe.rows} == {3}
    with start.open_engine(EngineConfig(model_id=str(tmp_path / "out"), device="cpu", dtype="float32")):
        pass


def test_a_reranker_is_checked_by_pairs(bei: Callable[..., Result], tmp_path: Path) -> None:
    model = families.network("bert", "Sequence", num_labels=1)
    folder = families.save(tmp_path / "model", "bert", model, pooling=None)
    assert bei("build", folder, "-o", tmp_path / "out").exit_code == 0
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert [len(probe.texts) for probe in manifest.probes] == [2, 2]
    assert all(max(probe.type_ids) == 1 for probe in manifest.probes)


def test_other_outputs_than_when_it_was_built_stop_the_start(built: Path) -> None:
    checkpoint = load(str(built))
    checkpoint.model.weights.layers[0].up.weight[:] *= np.float32(1.01)  # copy-on-write: the file stays as it is
    with pytest.raises(WeightsError, match=r"self-check failed: in float32 its outputs are off by .* run bei verify"):
        start.make_executor(checkpoint, FLOAT32)
    checkpoint.model.weights.layers[0].up.weight[:] = np.nan
    with pytest.raises(WeightsError, match="off by nan"):
        start.make_executor(checkpoint, FLOAT32)


def test_other_tokens_than_when_it_was_built_stop_the_start(built: Path) -> None:
    vocabulary = json.loads((built / "tokenizer.json").read_text())
    vocabulary["normalizer"]["lowercase"] = False
    (built / "tokenizer.json").write_text(json.dumps(vocabulary))
    _sign_again(built)
    with pytest.raises(ModelError, match=r"self-check failed: a text of it becomes \d+ tokens"):
        start.open_engine(EngineConfig(model_id=str(built), device="cpu", dtype="float32"))


def test_a_limit_below_the_probes_leaves_their_tokens_alone(built: Path) -> None:
    with start.open_engine(
        EngineConfig(model_id=str(built), device="cpu", dtype="float32", max_batch_tokens=8)
    ) as engine:
        assert engine.info.max_input_length == 8


def test_the_precision_of_an_artifact_counts_unless_another_is_asked_for(
    bei: Callable[..., Result], tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bei("build", tiny_folder("bert"), "-o", tmp_path / "out", "--dtype", "float16").exit_code == 0
    checkpoint, asked = load(str(tmp_path / "out")), []

    def executor(model: object, dtype: str) -> CpuExecutor:
        asked.append(dtype)
        return CpuExecutor(model, "float32")  # type: ignore[arg-type]

    monkeypatch.setattr("openbei.engine.cpu.CpuExecutor", executor)
    for dtype in ("auto", "float32"):
        start.make_executor(checkpoint, EngineConfig(device="cpu", dtype=dtype))  # type: ignore[arg-type]
    assert asked == ["float16", "float32"]


def test_the_distance_of_rows() -> None:
    expected = np.array([[3, 4], [0.1, 0]], np.float32)
    assert difference(expected, expected) == 0
    assert difference(expected + np.array([[0, 1], [0, 0]], np.float32), expected) == pytest.approx(1 / 5)
    assert difference(expected + np.array([[0, 0], [0, 0.5]], np.float32), expected) == pytest.approx(0.5)
    assert difference(expected[:1], expected) == np.inf


def test_verify_finds_a_flipped_bit(bei: Callable[..., Result], built: Path) -> None:
    assert bei("verify", built).stdout == f"{built} is whole\n"
    data = bytearray((built / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (built / "model.safetensors").write_bytes(data)
    for command in ("verify", "info"):
        result = bei(command, built)
        assert result.exit_code == 1
        assert "model.safetensors has another sha256 than its manifest says; build or copy it again" in result.stderr


def test_verify_wants_an_artifact(bei: Callable[..., Result], tiny_folder: Callable[[str], Path]) -> None:
    result = bei("verify", tiny_folder("bert"))
    assert (result.exit_code, "has no manifest.json, so it is no artifact" in result.stderr) == (1, True)
    result = bei("serve", tiny_folder("bert"), "--verify")
    assert (result.exit_code, "--verify needs an artifact" in result.stderr) == (1, True)


def test_the_store_lists_and_removes(
    bei: Callable[..., Result], tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    assert bei("ls").stdout == "nothing is built\n"
    folders = [Path(bei("build", tiny_folder(family)).stdout.strip()) for family in ("bert", "mpnet")]
    assert all(folder.parent == tmp_path / "home" / "artifacts" for folder in folders)
    assert bei("build", tiny_folder("bert")).stdout.strip() == str(folders[0])
    for age, folder in enumerate(folders):
        os.utime(folder / "manifest.json", (1000 - age, 1000 - age))
    listed = json.loads(bei("ls", "--json").stdout)
    assert [row["folder"] for row in listed] == [str(folder) for folder in folders]
    assert listed[0]["used"] == "1970-01-01T00:16:40+00:00"
    assert folders[1].name[:12] in bei("ls").stdout
    result = bei("rm", folders[0].name[:12])
    assert result.stdout == f"removed {folders[0].name} ({tiny_folder('bert')})\n"
    assert (folders[0].exists(), folders[1].exists()) == (False, True)
    assert "0 artifacts of" in bei("rm", "0123456789ab").stderr
    assert bei("rm").exit_code == 2


def test_the_store_keeps_to_its_limit_and_what_was_just_built(
    bei: Callable[..., Result], tiny_folder: Callable[[str], Path]
) -> None:
    first = Path(bei("build", tiny_folder("bert")).stdout.strip())
    result = bei("build", tiny_folder("mpnet"), "--store-limit", 1)
    second = Path(result.stdout.strip())
    assert (first.exists(), second.exists()) == (False, True)
    assert f"removed {first.name}" in result.stderr
    bei("rm", "--keep-bytes", 10**9)
    assert second.exists()
    bei("rm", "--keep-bytes", 0)
    assert not second.exists()


def test_rm_clears_up_after_builds_that_were_killed_and_not_after_those_that_run(
    bei: Callable[..., Result], tmp_path: Path
) -> None:
    from openbei.weights.store import locked

    root = tmp_path / "home" / "artifacts"
    for name in ("killed", "running"):
        (root / f".{name}.part").mkdir(parents=True)
    with locked(root / ".running.lock"):
        assert bei("rm", "--keep-bytes", 10**9).exit_code == 0
        assert [path.name for path in root.glob(".*.part")] == [".running.part"]


def _sign_again(folder: Path) -> None:
    """As someone would who builds with another tokenizers library: files that fit, and the old self-check."""
    from dataclasses import replace

    from openbei.weights.manifest import FileFact, list_files, sha256_of

    manifest = read_manifest(folder)
    assert manifest is not None
    files = {name: FileFact(path.stat().st_size, sha256_of(path)) for name, path in list_files(folder).items()}
    write_manifest(folder, replace(manifest, files=files))
    check_files(folder, replace(manifest, files=files), full=True)
