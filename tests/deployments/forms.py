"""config.yaml files as the published collection writes them, made from its table: the oldest form and the newer one.

Source: github.com/basetenlabs/truss-examples, 11-embeddings-reranker-classification-tensorrt, commits 267c2efc and
dc9c1665; the differences between rows are in deployments/deployments.toml.
"""

import tomllib
from pathlib import Path
from typing import Any

import yaml

Tree = dict[str, Any]

ROOT = Path(__file__).parents[2]
COLLECTION = ROOT / "deployments"
ROWS: list[Tree] = tomllib.loads((COLLECTION / "deployments.toml").read_text())["deployment"]
BEI = [row["name"] for row in ROWS if row["name"].startswith("BEI-")]
TEI = [row["name"] for row in ROWS if row["name"].startswith("TEI-")]
ROUTER = "text-embeddings-router --port 7997 --model-id {model} --max-client-batch-size 128"


def row(name: str) -> Tree:
    return next(row for row in ROWS if row["name"] == name)


def bei(name: str, **build: Any) -> Tree:
    """The oldest form of a BEI folder: every list written out empty, max_seq_len beyond any model's."""
    facts = row(name)
    quantized = {"quantization_type": "fp8", "num_builder_gpus": 2} if facts.get("fp8") else {}
    checkpoint = {"repo": facts["model"], "revision": "main", "source": "HF"}
    made = {
        **{"base_model": "encoder", "checkpoint_repository": checkpoint},
        **{"max_num_tokens": 16384, "max_seq_len": 1000001},
    }
    return {**_old(facts), "trt_llm": {"build": {**made, **quantized, **build}}}


def tei(name: str, **docker: Any) -> Tree:
    """The oldest form of a TEI folder: git clone when the image is built."""
    facts = row(name)
    clone = f"git clone https://huggingface.co/{facts['model']} /data/local-model # optional step: `download` it"
    limits = "--max-concurrent-requests 40 --max-batch-tokens 16384"
    return {
        **_old(facts),
        "base_image": {"image": "baseten/text-embeddings-inference-mirror:89-1.6"},
        "build_commands": [clone],
        "docker_server": {
            "liveness_endpoint": "/health",
            "predict_endpoint": "/v1/embeddings",
            "readiness_endpoint": "/health",
            "server_port": 7997,
            "start_command": f"{ROUTER.format(model='/data/local-model')} {limits}",
            **docker,
        },
        "runtime": {"predict_concurrency": 40},
    }


def _old(facts: Tree) -> Tree:
    empty: Tree = {name: [] for name in ("external_package_dirs", "requirements", "system_packages", "build_commands")}
    return {
        **empty,
        **{"environment_variables": {}, "secrets": {}, "python_version": "py39", "model_metadata": {"a": {"b": 1}}},
        "model_name": f"{facts['name']}-truss-example",
        "resources": {"accelerator": facts["gpu"], "cpu": "1", "memory": "8Gi", "use_gpu": True},
    }


def write(folder: Path, tree: Tree | str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(tree if isinstance(tree, str) else yaml.safe_dump(tree))
    return path
