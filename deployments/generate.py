"""deployments.toml, docs/models.toml and the tests' table of models -> each deployment's config.yaml and README.md.

Called by docs/generate.py (`make docs`), which also checks in CI that nothing here is stale.
"""

import json
import tomllib
from pathlib import Path
from typing import Any

import models as facts_page  # docs/models.py
import yaml

Facts = dict[str, Any]

HERE = Path(__file__).parent
ROWS: list[Facts] = tomllib.loads((HERE / "deployments.toml").read_text(encoding="utf-8"))["deployment"]
MODELS: dict[str, Facts] = {model["id"]: model for model in facts_page.FACTS["model"]}
ROUTES = {"embed": "/v1/embeddings", "rerank": "/rerank", "classify": "/predict", "reward": "/predict"}
DOES = {
    "embed": "turns texts into vectors",
    "rerank": "scores how well each text answers a query",
    "classify": "gives each text a score for every label",
    "reward": "scores how good the answers of a chat are",
}
BODIES: dict[str, Facts] = {
    "embed": {"input": ["Baseten is a fast inference provider", "Grass is green"], "model": "model"},
    "rerank": {"query": "What is Baseten?", "texts": ["Grass is green", "Baseten is a fast inference provider"]},
    "classify": {"inputs": [["Baseten is a fast inference provider"], ["Classify this separately."]]},
    "reward": {
        "inputs": [[{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]],
        "raw_scores": True,
    },
}
EXAMPLES: dict[str, Facts] = {  # model_metadata.example_model_input, which feeds Baseten's playground
    "embed": {"encoding_format": "float", "input": "text string", "model": "model"},
    "rerank": {**BODIES["rerank"], "raw_scores": True, "return_text": True},
    "classify": {**BODIES["classify"], "raw_scores": True},
    "reward": {"inputs": [["This is a good answer."]], "raw_scores": True},
}
CLIENTS = {
    "embed": """import openai  # pip install openai

client = openai.OpenAI(base_url="http://localhost:7997/v1", api_key="none")
answer = client.embeddings.create(model="model", input={input})
print(len(answer.data), "vectors of", len(answer.data[0].embedding), "numbers")""",
    "rerank": """import httpx  # pip install httpx

body = {body}
for rank in httpx.post("http://localhost:7997/rerank", json=body).raise_for_status().json():
    print(rank["score"], body["texts"][rank["index"]])""",
    "classify": """import httpx  # pip install httpx

body = {body}
for labels in httpx.post("http://localhost:7997/predict", json=body).raise_for_status().json():
    print(labels[0]["label"], labels[0]["score"])""",
}
CLIENTS["reward"] = CLIENTS["classify"]
FAST = {
    "embed": """answer = client.embed(input={input}, model="model")
print(len(answer.data), "vectors")""",
    "rerank": """answer = client.rerank(query={query}, texts={texts})
print([(rank.index, rank.score) for rank in answer.data])""",
    "classify": """answer = client.classify(inputs={texts})
print([labels[0].label for labels in answer.data])""",
    "reward": """body = {body}
answer = client.batch_post(url_path="/predict", payloads=[body])
print(answer.data)""",
}
README = """# {name}

*Made by `make docs` from deployments.toml and docs/models.toml; do not edit.*

[{model}](https://huggingface.co/{model}) {does}.

{table}{notes}
## Serve

```
bei serve deployments/{name}
```

reads [config.yaml](config.yaml), says what of it has no effect here, and listens on port 7997. On a machine without a
GPU it is the CPU that computes. Flags that follow win over the file: `--port 8000`, `--device cpu`. A text that is too
long is cut, unless the request or `--auto-truncate false` says otherwise. What the file comes to is told by

```
bei deployments show {name}
```

The weights are taken from what `bei build` made of this file, else from the hub's cache, else fetched. For machines
without a network build where there is one, carry the folder over, and serve it: it is the model with this file.

```
bei build deployments/{name} --out {folder}
bei serve {folder}
```

[docs/deploy.md](../../docs/deploy.md) goes on from there: containers, Kubernetes, replicas.

## Call

```
curl http://localhost:7997{route} -H 'Content-Type: application/json' \\
  -d '{curl}'
```

```python
{client}
```

With Baseten's performance client, which splits large lists and sends many requests at once:

```python
from baseten_performance_client import PerformanceClient  # pip install baseten-performance-client

client = PerformanceClient(base_url="http://localhost:7997", api_key="none")
{fast}
```
"""


def pages() -> dict[str, str]:
    """Path below deployments/ -> text, of every generated file."""
    made: dict[str, str] = {}
    for row in ROWS:
        made[f"{row['name']}/config.yaml"] = config(row)
        made[f"{row['name']}/README.md"] = readme(row)
    return made


def config(row: Facts) -> str:
    """A row -> its config.yaml, which Truss and `bei serve` read alike."""
    made = _bei(row) if row["name"].startswith("BEI-") else _tei(row)
    head = f"# Made by `make docs` from deployments.toml; do not edit. {row['model']}, for Truss and for `bei serve`.\n"
    return f"{head}{yaml.safe_dump(made, sort_keys=True, allow_unicode=True, width=1000)}"


def _common(row: Facts) -> Facts:
    task = seed(row).task
    shared = {
        "description": f"{row['model']} {DOES[task]}.",
        "model_metadata": {"example_model_input": EXAMPLES[task]},
        "model_name": f"{row['name']}-truss-example",
        "python_version": "py311",
        "resources": {"accelerator": row["gpu"], "cpu": "1", "memory": "10Gi", "use_gpu": True},
    }
    pooling = seed(row).pooling  # of a model whose files do not say how to pool
    return shared | ({"environment_variables": {"POOLING": pooling}} if pooling else {})


def _bei(row: Facts) -> Facts:
    build: Facts = {
        "base_model": "encoder",
        "checkpoint_repository": {"repo": row["model"], "revision": "main", "source": "HF"},
        "max_num_tokens": max(16384, seed(row).config.get("max_position_embeddings", 0)),
    }
    if row.get("fp8"):
        build |= {"quantization_type": "fp8", "num_builder_gpus": 2 if row["gpu"] in ("H100", "L4") else 1}
    return _common(row) | {"trt_llm": {"build": build, "runtime": {"webserver_default_route": route(row)}}}


def _tei(row: Facts) -> Facts:
    router = (
        "text-embeddings-router --port 7997 --model-id /app/model_cache/cached_model --max-client-batch-size 128 "
        "--max-concurrent-requests 1024 --max-batch-tokens 16384 --auto-truncate"
    )
    cached = {
        "repo_id": row["model"],
        "revision": "main",
        "use_volume": True,
        "volume_folder": "cached_model",
        "ignore_patterns": ["*.pt", "*.ckpt", "*.onnx"],
    }
    return _common(row) | {
        "base_image": {"image": "baseten/text-embeddings-inference-mirror:89-1.8.3"},  # 89: an L4's
        "docker_server": {
            "start_command": f'bash -c "truss-transfer-cli && {router}"',
            "server_port": 7997,
            "predict_endpoint": route(row),
            "readiness_endpoint": "/health",
            "liveness_endpoint": "/health",
        },
        "model_cache": [cached],
        "runtime": {"predict_concurrency": 32},
    }


def readme(row: Facts) -> str:
    """A row -> its README.md; every fact of the model is read from where it is typed."""
    body, task = BODIES[seed(row).task], seed(row).task
    text = CLIENTS[task].replace("{body}", python(body)).replace("{input}", python(body.get("input")))
    fast = FAST[task].replace("{body}", python(body))
    texts = [text for one in body.get("inputs", ()) for text in one]  # of /predict, where each stands in its own list
    for name, value in {"texts": texts, **body}.items():
        fast = fast.replace(f"{{{name}}}", python(value))
    folder = row["model"].partition("/")[2]
    return README.format(
        name=row["name"],
        model=row["model"],
        does=DOES[task],
        table=_facts(row),
        notes=_notes(row),
        folder=folder,
        route=route(row),
        curl=_json(body),
        client=text,
        fast=fast,
    )


def _facts(row: Facts) -> str:
    model, spec = MODELS[row["model"]], facts_page._spec(MODELS[row["model"]])
    names = ("parameters", "stored", "longest text in tokens", "licence", "GPU that the file asks for", "precision")
    _, family, parameters, size = facts_page._identity(model)
    precision = "FP8 on a GPU (compute capability 8.9 or later)" if row.get("fp8") else "16 bit on a GPU"
    licence = model["licence"] + facts_page._mark(model, "licence")
    values = (parameters, size, facts_page._tokens(model, spec), licence, row["gpu"], precision)
    rows = [("family", family), *zip(names, values, strict=True), *_output(model, spec)]
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows)


def _output(model: Facts, spec: Any) -> list[tuple[str, str]]:
    made = facts_page._seed(model)
    if made.task == "embed":
        pooling = facts_page.POOLINGS[made.modules.pooling if made.modules else made.pooling]
        return [("vector", f"{spec.width:,} numbers, {pooling} pooling")]
    return [("labels", f"{len(made.config['id2label'])}{facts_page._mark(model, 'labels')}")]


def _notes(row: Facts) -> str:
    model = MODELS[row["model"]]
    notes = ["(?) marks what was deduced and not read in the model's files."] if "(?)" in _facts(row) else []
    if "query" in model:
        notes.append(f"Before a query stands {facts_page._code(model['query'])}" + _before_document(model))
        notes.append("The client writes it, or the request's `prompt_name` asks for one that the model's files name.")
    if seed(row).stored.layout == "bin":
        notes.append("The weights are a `pytorch_model.bin`: fetching or building them takes `pip install torch`,")
        notes.append("serving what was built does not.")
    if seed(row).pooling:
        notes.append("The model's files may not say how to pool; `POOLING` in the file does.")
    if seed(row).task == "reward":
        notes.append("A reward is read from the raw score; messages go through the model's own chat template.")
    return "\n" + "\n".join(notes) + "\n" if notes else ""


def _before_document(model: Facts) -> str:
    after = f", before a document {facts_page._code(model['document'])}" if "document" in model else ""
    return after + (f" ({model['note'].replace('](text.md', '](../../docs/text.md')})." if "note" in model else ".")


def seed(row: Facts) -> Any:
    """A row -> its model in the tests' table."""
    return facts_page._seed(MODELS[row["model"]])


def route(row: Facts) -> str:
    """A row -> the path that its clients call."""
    return ROUTES[seed(row).task]


def python(value: Any) -> str:
    """A JSON value -> Python source with double quotes."""
    return _json(value).replace(": true", ": True")


def _json(value: Any) -> str:
    return json.dumps(value)
