"""`bei build`, `verify`, `ls` and `rm` in process, on a tiny model that is really run; what a person reads."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from openbei.cli import main
from openbei.config import EngineConfig
from openbei.describe import served_facts
from openbei.engine import start
from openbei.engine.cpu import CpuExecutor
from openbei.engine.precision import choose_precision
from openbei.engine.probe import difference, make_probes
from openbei.engine.request import Request
from openbei.errors import ModelError, WeightsError
from openbei.model.spec import Output, pack
from openbei.weights.load import load
from openbei.weights.manifest import check_files, read_manifest, write_manifest
from tests import families
from tests.model.oracles import error, run_of
from tests.weights.building import rewrite

FLOAT32 = EngineConfig(device="cpu", dtype="float32")


@pytest.fixture
def bei(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setattr("openbei.logs.start", lambda json_output: None)  # it would go on for the tests that follow

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
    assert [probe.rows.keys() for probe in manifest.probes] == [{"vectors", "states"}] * 2
    for probe in manifest.probes:
        assert (len(probe.rows["vectors"]), len(probe.rows["states"])) == (1, min(len(probe.ids), 1024 // 48))


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
        assert (probe.rows.keys(), len(probe.texts)) == ({"labels"}, num_texts)
        assert len(probe.rows["labels"]) == (num_rows or len(probe.ids))
        assert {len(row) for row in probe.rows["labels"]} == {3}
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
    with pytest.raises(WeightsError, match=r"self-check failed: in float32 its vectors are off by .* run bei verify"):
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


@pytest.fixture
def three_ways(bei: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact of a model with vectors, weights and vectors of tokens, as bge-m3 has; all tokens are checked."""
    monkeypatch.setattr("openbei.engine.probe.KEPT_VALUES", 1 << 20)
    folder = families.save(tmp_path / "m3", "xlm-roberta")
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    for name, rows in (("sparse_linear.pt", 1), ("colbert_linear.pt", 5)):
        weight = torch.randn(rows, width, generator=torch.Generator().manual_seed(1))
        torch.save({"weight": weight, "bias": torch.zeros(rows)}, folder / name)
    assert bei("build", folder, "-o", tmp_path / "out").exit_code == 0
    return tmp_path / "out"


def test_the_self_check_has_every_output_as_another_backend_gives_it(three_ways: Path) -> None:
    checkpoint = load(str(three_ways))
    assert checkpoint.artifact is not None
    probes = checkpoint.artifact.probes
    batch = pack(checkpoint.model.spec, [probe.ids for probe in probes])
    outputs: tuple[Output, ...] = ("vectors", "states", "weights", "multi")
    assert probes[0].rows.keys() == set(outputs)
    for output in outputs:
        rows = np.concatenate([np.array(probe.rows[output], np.float32) for probe in probes])
        assert error(rows, run_of("cuda", checkpoint.model, output)(batch)) <= 1e-5, output
    assert max(max(row) for row in probes[0].rows["weights"]) > 0.1


def test_of_wide_tokens_some_are_kept_evenly_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = load(str(families.save(tmp_path / "model", "bert")))
    monkeypatch.setattr("openbei.engine.probe.KEPT_VALUES", 1 << 20)
    whole = make_probes(checkpoint)
    monkeypatch.setattr("openbei.engine.probe.KEPT_VALUES", 48 * 3)
    for probe, other in zip(make_probes(checkpoint), whole, strict=True):
        rows, last = other.rows["states"], len(other.ids) - 1
        assert probe.rows["states"] == (rows[0], rows[last // 2], rows[last])


@pytest.mark.parametrize("output", ["weights", "multi"])
def test_what_is_not_compiled_at_start_is_tried_where_that_is_asked_for(output: str, three_ways: Path) -> None:
    checkpoint = load(str(three_ways))
    layer = checkpoint.model.weigher if output == "weights" else checkpoint.model.multi
    layer[0].linear.weight[:] *= np.float32(1.5)
    start.make_executor(checkpoint, FLOAT32)
    with pytest.raises(WeightsError, match=f"self-check failed: in float32 its {output} are off by"):
        start.make_executor(checkpoint, replace(FLOAT32, verify=True))


def test_a_model_whose_answer_is_no_number_is_not_built(bei: Callable[..., Result], tmp_path: Path) -> None:
    model = families.network("bert")
    with torch.no_grad():
        model.get_parameter("encoder.layer.2.output.dense.weight")[0, 0] = torch.nan
    result = bei("build", families.save(tmp_path / "model", "bert", model), "-o", tmp_path / "out")
    assert "the model's vectors are no numbers: its weights are damaged" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def fp8(bei: Callable[..., Result], tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    assert bei("build", tiny_folder("bert"), "-o", tmp_path / "fp8", "--dtype", "fp8").exit_code == 0
    return tmp_path / "fp8"


def test_an_fp8_artifact_starts_on_a_cpu_and_says_so(fp8: Path, tiny_folder: Callable[[str], Path]) -> None:
    config = EngineConfig(model_id=str(fp8), device="cpu")
    with start.open_engine(config) as engine:
        served = served_facts(load(str(fp8)), config, engine.info)
        assert served["precision"].endswith("; the weights are stored in fp8")
        rows = engine.submit(Request(inputs=["the river bank"])).result().rows
    with start.open_engine(replace(FLOAT32, model_id=str(tiny_folder("bert")))) as engine:
        assert 1e-3 < np.abs(rows - engine.submit(Request(inputs=["the river bank"])).result().rows).max() < 0.2


@pytest.mark.parametrize(
    ("built", "flag", "on_cpu", "asked"),
    [
        ("fp8", "auto", True, "auto"),
        ("fp8", "auto", False, "auto"),
        ("fp8", "bfloat16", False, "bfloat16"),
        ("bfloat16", "auto", True, "auto"),
        ("bfloat16", "auto", False, "bfloat16"),
        ("float16", "auto", True, "float16"),
        ("float32", "auto", False, "float32"),
        ("float32", "fp8", False, "fp8"),
    ],
)
def test_an_artifact_is_served_in_its_precision_where_the_device_has_it(
    built: Any, flag: Any, on_cpu: bool, asked: str, fp8: Path
) -> None:
    checkpoint = load(str(fp8))
    assert checkpoint.artifact is not None
    checkpoint = replace(checkpoint, artifact=replace(checkpoint.artifact, dtype=built))
    assert start.asked_dtype(checkpoint, EngineConfig(dtype=flag), on_cpu) == asked


def test_what_is_stored_in_fp8_is_computed_in_it_where_the_chip_does(fp8: Path, built: Path) -> None:
    much = 1 << 40
    for folder, capability, chosen in (
        (fp8, (9, 0), "fp8"),
        (fp8, (8, 0), "bfloat16"),
        (fp8, (7, 5), "float16"),
        (built, (9, 0), "bfloat16"),
    ):
        assert choose_precision("auto", load(str(folder)).model, capability, much) == chosen


def test_a_flipped_bit_in_a_scale_stops_the_start_though_the_file_is_not_hashed(
    fp8: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fp8 / "model.safetensors"
    data, tensors = path.read_bytes(), load_file(path)
    scale = tensors["encoder.layer.1.output.dense.weight_scale"].numpy().tobytes()
    assert data.count(scale) == 1
    broken = bytearray(data)
    broken[data.index(scale) + 4 * 7 + 3] ^= 0x40  # the top of the eighth row's exponent
    rewrite(path, broken)
    with pytest.raises(WeightsError, match=r"model\.safetensors has another sha256"):
        load(str(fp8))
    monkeypatch.setattr("openbei.weights.manifest.SMALL_BYTES", 100)
    with pytest.raises(WeightsError, match="self-check failed: in float32 its vectors are off by"):
        start.make_executor(load(str(fp8)), FLOAT32)


@pytest.mark.parametrize("has_manifest", [True, False])
def test_a_truncated_fp8_file_is_refused(has_manifest: bool, fp8: Path) -> None:
    path = fp8 / "model.safetensors"
    rewrite(path, path.read_bytes()[:-100])
    if not has_manifest:
        (fp8 / "manifest.json").unlink()
    with pytest.raises(WeightsError, match="bytes, its manifest says" if has_manifest else "not a whole safetensors"):
        load(str(fp8))


def test_a_build_needs_neither_openvino_nor_torch(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    program = """
import sys
sys.modules |= dict.fromkeys(("openvino", "torch"))
from openbei.cli import main
main(["build", sys.argv[1], "--out", sys.argv[2], "--dtype", "fp8"])
"""
    command = [sys.executable, "-c", program, str(tiny_folder("bert")), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'out'}\n"), done.stderr


def test_the_distance_of_rows() -> None:
    expected = np.array([[3, 0], [0, 4]], np.float32)
    assert difference(expected, expected) == 0
    assert difference(expected + np.array([[0, 1], [0, 0]], np.float32), expected) == pytest.approx(1 / 5)
    assert difference(expected / 100 + np.float32(0.1), expected / 100, 1.0) == pytest.approx(0.2)
    assert difference(expected[:1], expected) == np.inf
    assert not difference(expected * np.nan, expected) <= 1


def test_verify_finds_a_flipped_bit(bei: Callable[..., Result], built: Path) -> None:
    assert bei("verify", built).stdout == f"{built} is whole\n"
    data = bytearray((built / "model.safetensors").read_bytes())
    data[-1] ^= 1
    rewrite(built / "model.safetensors", data)
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
    assert bei("rm", "--keep-bytes", -1).exit_code == 2  # which somebody might type for no limit
    assert second.exists()
    bei("rm", "--keep-bytes", 0)
    assert not second.exists()


def test_rm_clears_up_after_what_was_killed_and_not_after_what_runs(bei: Callable[..., Result], tmp_path: Path) -> None:
    from openbei.weights.store import locked

    home = tmp_path / "home"
    for name in ("artifacts/.killed.part", "artifacts/.running.part", "fetched/killed", "fetched/running"):
        (home / name).mkdir(parents=True)
        (home / name / "model.safetensors").write_bytes(b"1234")
    (home / "artifacts" / ".removed.gone").mkdir()
    for lock in ("artifacts/.killed.lock", "artifacts/.alone.lock", "fetched/.killed.lock"):
        (home / lock).touch()
    with locked(home / "artifacts" / ".running.lock"), locked(home / "fetched" / ".running.lock"):
        assert bei("rm", "--keep-bytes", 10**9).stdout == "removed 8 bytes of builds that were not finished\n"
        left = sorted(path.relative_to(home).as_posix() for path in home.glob("*/*"))
        running = ["artifacts/.running.lock", "artifacts/.running.part", "fetched/.running.lock", "fetched/running"]
        assert left == running
    assert not list(home.glob("*/.*.lock"))
    assert bei("rm", "--keep-bytes", 10**9).stdout == "removed 8 bytes of builds that were not finished\n"
    assert not list(home.glob("*/*"))


def test_who_waited_for_a_lock_that_is_gone_takes_the_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the file and locking it, another process removes it, makes it again and holds that."""
    from openbei.weights.store import locked

    path, lock = tmp_path / ".lock", fcntl.flock
    with path.with_name("new").open("a") as new:

        def flock(file: IO[str], how: int) -> None:
            monkeypatch.undo()
            path.with_name("new").rename(path)
            lock(new, fcntl.LOCK_EX)
            lock(file, how)

        monkeypatch.setattr(fcntl, "flock", flock)
        with pytest.raises(BlockingIOError), locked(path, wait=False):
            pytest.fail("two are inside")
    with locked(path):
        assert path.exists()
    assert not path.exists()


def _sign_again(folder: Path) -> None:
    """As someone would who builds with another tokenizers library: files that fit, and the old self-check."""
    from openbei.weights.manifest import FileFact, list_files, sha256_of

    manifest = read_manifest(folder)
    assert manifest is not None
    files = {name: FileFact(path.stat().st_size, sha256_of(path)) for name, path in list_files(folder).items()}
    write_manifest(folder, replace(manifest, files=files))
    check_files(folder, replace(manifest, files=files), full=True)
