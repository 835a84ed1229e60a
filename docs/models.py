"""docs/models.md: every model and family openbei is made for, and what each is checked against.

Joins docs/models.toml (what no code knows) with the product's rows of families and with the tables of the tests: true
sizes and parameter counts, seeded mistakes, published values. Fails by name where models.toml lacks what they have.
"""

import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from openbei.model.spec import ModelSpec
from openbei.weights.families import FAMILIES, Family, read_config
from openbei.weights.families.encoders import JINA, JINA_CODE
from openbei.weights.families.heads import SEQUENCE, TOKEN
from openbei.weights.labels import HeadFacts, read_labels
from tests import families
from tests.golden.values import MINILM, ROWS
from tests.model.bugs import BUGS
from tests.seeds.rows import SEEDS

Facts = dict[str, Any]

FACTS: Facts = tomllib.loads((Path(__file__).parent / "models.toml").read_text(encoding="utf-8"))
POOLINGS = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last token", "last-token": "last token"}
ROW_OF = {family.name: family for family in (*FAMILIES.values(), JINA, JINA_CODE)}
UNSURE = " (?)"
IDENTITY = ("model", "family", "parameters", "size")

HEAD = """# Models

*Made by `make docs` from the code, its tests and [models.toml](models.toml); do not edit.*

openbei serves any model of the [families](#families) below; `bei info MODEL` says what it understands of one, or why it
refuses it. The {count} embedders, rerankers, classifiers and reward models listed first are the ones it is made for.
Of each of them is checked, on every change:

- the whole way (`tests/seeds/test_seeds.py`): a tiny random model with the switches of its config.json, in a folder
  laid out as the published one as far as that is known (names and number type of its tensors, kind of tokenizer,
  prompts, modules), loaded and asked over HTTP, gives what transformers and its tokenizer give (of JinaBERT, the
  equations), to 1e-4, and 1e-5 for vectors of length 1 and for scores;
- the tensors (`tests/seeds/test_true_size.py`): the names and shapes of its checkpoint at true size all have their
  place, and their sum is the published number of parameters;
- the formulas of its [family](#families).

`published` counts the values that others published of the real weights and that openbei is compared with, each with its
source, in `tests/golden/values.py`. For all-MiniLM-L6-v2 they are compared on every change, because its weights come
with openbei. For the others the weights must be given:

```
OPENBEI_REAL_MODELS=/models make test ARGS=tests/golden    # /models/BAAI/bge-m3 or /models/BAAI--bge-m3, and so on
```

**No other of these models has been run with its real weights so far**; the Llama family has, with those of
SmolLM2-135M (`tests/model/test_decoder_real.py`). (?) marks what was not read in the model's files but deduced, from
the published size of a file for one; "-" is what is not known. openbei follows the files, whatever stands here.

`size` is that of the parameters as stored. `tokens` is the longest input.
"""

NORMALIZED = """
`normalised` says whether the model's own files end in a Normalize module, which is what sentence-transformers obeys.
openbei's vectors have length 1 in any case, unless the request says `"normalize": false`.
"""

PROMPTS = """
### What stands before a text

Nothing, for the embedders that are not listed. `prompt_name` asks for a prompt that the model's files name; any other
goes before every text with `--default-prompt`, or the client writes it. [More on prompts](text.md#prompts).
"""

LABELS = """
`scores` is what turns logits into scores where the request does not ask for raw ones; `identity` leaves them alone.
"""

FAMILY = """
## Families

`judge` is what a tiny model of the family (weights N(0, 0.2), texts of several lengths in one batch, through OpenVINO
and through plain PyTorch) must equal to 1e-4. `mistakes` are deliberately wrong variants, such as a shifted position or
the norm of another family; each is seen to fail that test (`tests/model/bugs.py`). `labels` are the heads: of a text
(ForSequenceClassification), of each token (ForTokenClassification). Whatever has neither is an embedder. JinaBERT's
config.json says `bert`; its ALiBi positions tell it apart.
"""

OTHERS = """
### Others of these families

Well-known models that belong here by their published files. None has been run with its real weights. Those in **bold**
have published values in `tests/golden/values.py`, which are compared where the weights are given.
"""

TRAPS = """
## What to know before comparing

- **gelu.** TEI's candle backend computes every `gelu` by its tanh form. openbei follows the model's config, as
  transformers does. Of all-MiniLM-L6-v2's unit vector of "What is Deep Learning?" that moves a value by up to 1.5e-4.
- **all-MiniLM-L6-v2 reads 256 tokens.** `tokenizer_config.json` says 512 and `tokenizer.json` has a cut at 128 built
  in; openbei follows `sentence_bert_config.json`, as sentence-transformers does.
- **The end token.** The `tokenizer.json` of some Mistral models adds `<s>` but not the `</s>` whose state is the
  embedding. openbei adds what `tokenizer_config.json` asks for ([text.md](text.md#the-ends-of-a-text)).
- **gte-Qwen2-1.5B-instruct looks to both sides**, unlike other Qwen2 models, and its own tokenizer code appends
  `<|endoftext|>`. openbei does both, where `auto_map` names that code.
- **e5-mistral-7b-instruct** takes 32,768 tokens; its authors advise at most 4,096. Llama-3.1-Tulu-3-8B-RM was trained
  with 2,048.
- **bge-en-icl and bge-multilingual-gemma2** may lack `modules.json`; then start with `--pooling last-token`.
- **bge-m3 and MedCPT-Cross-Encoder** are stored as `pytorch_model.bin` only, which takes an installed PyTorch to read.
  Of bge-m3 openbei serves the sparse and multi-vector outputs too, at `/embed_sparse` and `/v1/multi-vector`.
- **roberta-base-go_emotions** declares independent labels, so each has a sigmoid of its own. TEI takes softmax over
  all of them.
- **Shorter vectors.** `dimensions` cuts and then scales to length 1, as sentence-transformers' `truncate_dim` does.
  The page of nomic-embed-text-v1.5 has a layer norm over the whole vector before the cut; none of its files says so,
  and openbei does not do it. From a whole vector of openbei's you get it exactly: subtract the mean of its values, cut,
  scale to length 1.
- **Sparse and late interaction models** may be of most encoders above. SPLADE is served at `/embed_sparse` for BERT,
  RoBERTa, XLM-RoBERTa, DistilBERT, MPNet, ModernBERT, NomicBERT and GTE, with queries that are looked up
  (`SparseStaticEmbedding`) where a `Router` says so. ColBERT is served at `/v1/multi-vector` from the folders of
  sentence-transformers, of PyLate and of Stanford's code; its queries are filled up as the folder says. `input_type`
  of a request tells queries from documents.
- **Reward models** read chats, through their own template ([text.md](text.md#chats)).
"""


def models_page() -> str:
    """Everything above -> docs/models.md."""
    _check_whole()
    models: list[Facts] = FACTS["model"]
    embedders = [model for model in models if _seed(model).task == "embed"]
    rerankers = [model for model in models if _seed(model).task == "rerank"]
    others = [model for model in models if _seed(model).task not in ("embed", "rerank")]
    parts = [
        HEAD.format(count=len(models)),
        "\n## Embedders\n\n" + _embedders(embedders) + NORMALIZED + PROMPTS + "\n" + _prompts(embedders),
        "\n## Rerankers\n\n" + _labelled(rerankers),
        "\n## Classifiers and reward models\n\n" + _labelled(others) + LABELS,
        FAMILY + "\n" + _families() + OTHERS + "\n" + _others(),
        TRAPS,
    ]
    return "".join(parts)


def _check_whole() -> None:
    """Raise ValueError, by name, for what one table has and another lacks."""
    rows, models = FACTS["family"], FACTS["model"]
    listed = {model["id"] for model in models}.union(*(row["others"] for row in rows))
    missing = {
        "model": SEEDS.keys() - set(map(_key, models)),
        "family": ROW_OF.keys() - {row["row"] for row in rows},
        "tiny model": families.ALL.keys() - {tiny for row in rows for tiny in row["tiny"]},
        "model with published values": {row.model for row in ROWS} - listed,
    }
    for what, names in missing.items():
        if names:
            raise ValueError(f"docs/models.toml lacks the {what} {', '.join(sorted(names))}")


def _embedders(models: Sequence[Facts]) -> str:
    names = (*IDENTITY, "width", "tokens", "pooling", "normalised", "licence", "published")
    return _table(names, [_embedder(model, _spec(model)) for model in models])


def _embedder(model: Facts, spec: ModelSpec) -> list[str]:
    seed = _seed(model)
    pooling = POOLINGS[seed.modules.pooling if seed.modules else seed.pooling]
    middle = [f"{spec.width:,}", _tokens(model, spec), pooling, _normalized(model)]
    return [*_identity(model), *middle, *_terms(model)]


def _normalized(model: Facts) -> str:
    modules = _seed(model).modules
    if modules is None or "normalized" in model.get("unknown", ()):
        return "-"
    return ("yes" if modules.normalize else "no") + _mark(model, "normalized")


def _prompts(models: Sequence[Facts]) -> str:
    rows = []
    for model in models:
        if "query" in model:
            texts = [_code(model["query"]) + _mark(model, "query"), _code(model.get("document", ""))]
            names = _codes(model.get("prompt_names", ())) + _mark(model, "prompt_names")
            rows.append([_link(model["id"]), *texts, names, model.get("note", "")])
    return _table(("model", "query", "document", "prompts in its files", "note"), rows)


def _labelled(models: Sequence[Facts]) -> str:
    names = (*IDENTITY, "task", "tokens", "labels", "scores", "licence", "published")
    return _table(names, [_labels(model, _spec(model)) for model in models])


def _labels(model: Facts, spec: ModelSpec) -> list[str]:
    seed = _seed(model)
    num_labels = len(seed.config["id2label"])
    scores = read_labels(seed.config, num_labels, HeadFacts(False, ROW_OF[spec.family].decoder)).activation
    labels = [f"{num_labels}{_mark(model, 'labels')}", scores + _mark(model, "labels")]
    return [*_identity(model), seed.task, _tokens(model, spec), *labels, *_terms(model)]


def _families() -> str:
    names = ("family", "model_type", "labels", "judge", "mistakes", "of the models above")
    return _table(names, [_family(facts, ROW_OF[facts["row"]]) for facts in FACTS["family"]])


def _family(facts: Facts, row: Family) -> list[str]:
    types = [name for name, family in FAMILIES.items() if family.name == row.name] or ["bert"]
    heads = [word for ending, word in ((SEQUENCE, "text"), (TOKEN, "token")) if ending in row.heads]
    mistakes = {bug for tiny in facts["tiny"] for bug in BUGS[tiny]}
    used = sum(model["tiny"] in facts["tiny"] for model in FACTS["model"])
    return [facts["title"], _codes(types), ", ".join(heads), _judge(facts), str(len(mistakes) or ""), str(used or "")]


def _judge(facts: Facts) -> str:
    """judge in models.toml is for a family that has no tiny model of its own."""
    if "judge" in facts:
        return str(facts["judge"])
    name = families.ALL[facts["tiny"][0]].model.__name__
    return "its equations, written out" if name == "JinaOracle" else f"transformers' {name}"


def _others() -> str:
    published = {row.model for row in ROWS}
    rows = []
    for facts in FACTS["family"]:
        if facts["others"]:
            names = [f"**{name}**" if name in published else name for name in facts["others"]]
            rows.append([facts["title"], ", ".join(names)])
    return _table(("family", "models"), rows)


def _key(model: Facts) -> str:
    """Its name in the tests."""
    return str(model["id"]).partition("/")[2].removeprefix("example-")


def _seed(model: Facts) -> Any:
    return SEEDS[_key(model)]


def _spec(model: Facts) -> ModelSpec:
    return read_config(_seed(model).config)[0]


def _identity(model: Facts) -> list[str]:
    seed = _seed(model)
    title = next(family["title"] for family in FACTS["family"] if model["tiny"] in family["tiny"])
    dtype = seed.stored.dtype
    known = "stored" not in model.get("unknown", ())
    stored = str(dtype).removeprefix("torch.") if known else f"{8 * dtype.itemsize}-bit"
    size = f"{_bytes(seed.parameters * dtype.itemsize)} {stored}{_mark(model, 'stored')}"
    return [_link(model["id"]), title, f"{seed.parameters:,}{_mark(model, 'parameters')}", size]


def _bytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _tokens(model: Facts, spec: ModelSpec) -> str:
    return f"{model.get('max_tokens', spec.max_length):,}{_mark(model, 'max_tokens')}"


def _terms(model: Facts) -> list[str]:
    """The last two columns of every model: its licence, and how many published values there are."""
    count = sum(row.model == model["id"] for row in ROWS)
    published = f"{count}, on every change" if model["id"] == MINILM else str(count or "-")
    return [model["licence"] + _mark(model, "licence"), published]


def _mark(model: Facts, field: str) -> str:
    return UNSURE if field in model.get("unsure", ()) else ""


def _link(model: str) -> str:
    return f"[{model.partition('/')[2]}](https://huggingface.co/{model})"


def _code(text: str) -> str:
    return f"`{text}`".replace("\n", "\\n") if text else ""


def _codes(names: Iterable[str]) -> str:
    return ", ".join(map(_code, names))


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
