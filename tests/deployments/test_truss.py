"""The collection in the eyes of Truss itself: its schema loads every file and knows every key."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from openbei.deployment_keys import KEYS, ROUTES
from tests.deployments.forms import BEI, COLLECTION, ROWS, TEI, bei, tei, write


@pytest.mark.parametrize("name", [row["name"] for row in ROWS])
def test_truss_takes_the_file_and_knows_every_key(name: str, truss: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of model_cache, which it deprecates
        path = COLLECTION / name / "config.yaml"
        config = truss.config.TrussConfig.from_yaml(path)
        config.validate_forbid_extra()
    tree = yaml.safe_load(path.read_text())
    assert config.resources.accelerator.accelerator.value == tree["resources"]["accelerator"]
    assert (config.trt_llm is not None) is name.startswith("BEI-")
    if config.trt_llm:
        assert config.trt_llm.build.max_num_tokens == tree["trt_llm"]["build"]["max_num_tokens"]


@pytest.mark.parametrize("name", [BEI[0], TEI[0]])
def test_truss_takes_the_oldest_form_of_the_tests(name: str, truss: Any, tmp_path: Path) -> None:
    path = write(tmp_path, bei(name) if name in BEI else tei(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        truss.config.TrussConfig.from_yaml(path).validate_forbid_extra()


def test_our_table_has_every_key_of_truss(truss: Any) -> None:
    """And no other: a new version of Truss is seen here first."""
    t, b = truss.config, truss.trt_llm
    models = {
        "": t.TrussConfig,
        "trt_llm.build": b.TrussTRTLLMBuildConfiguration,
        "trt_llm.build.checkpoint_repository": b.CheckpointRepository,
        "trt_llm.runtime": b.TrussTRTLLMRuntimeConfiguration,
        "docker_server": t.DockerServer,
        "base_image": t.BaseImage,
        "model_cache": t.ModelRepo,
        "weights": t.WeightsSource,
        "resources": t.Resources,
        "runtime": t.Runtime,
    }
    for path, model in models.items():
        theirs = set(model.model_fields)
        assert set(KEYS[path]) - OLD.get(path, set()) == theirs, path


OLD = {"": {"hf_cache"}, "resources": {"use_gpu"}, "runtime": {"num_workers"}}  # still read, or dropped, on load


def test_the_routes_are_truss_s(truss: Any) -> None:
    field = truss.trt_llm.TrussTRTLLMRuntimeConfiguration.model_fields["webserver_default_route"]
    assert set(ROUTES) < {value for value in str(field.annotation).split("'") if value.startswith("/")}
