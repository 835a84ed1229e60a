"""sentence-transformers' modules.json -> what follows the network: pooling, Dense, normalise.

Owns which modules may stand in which order, and what they make together; module_files.py reads each by itself. Never
reads weights. What the files ask for and openbei does not do exactly is refused by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from openbei.errors import UnsupportedModel
from openbei.model.spec import Pooling
from openbei.weights.files import read_object
from openbei.weights.late import Late, is_pylate, is_stanford, read_late, read_stanford
from openbei.weights.module_files import (
    LOGITS,
    SCORES,
    STATES,
    WORDS,
    DenseModule,
    check_keys,
    check_output,
    entries,
    read_dense,
    read_pooling,
    text_config,
)
from openbei.weights.router import read_router

PoolingChoice = Pooling | Literal["splade"]

_EMBEDDERS = {"Pooling", "SpladePooling", "MultiVectorMask"}

_SPLADE_LOGS = {"relu": 1, "log1p_relu": 2}


@dataclass(frozen=True, slots=True)
class Modules:
    """What modules.json asks for. transformer: folder of the network, "" for the root. num_logs: see Model.

    pooling None: the Dense modules work on every token, whose vectors are the answer, and late says the rest.
    query: folder of what queries are looked up in, instead of the network.
    """

    transformer: str
    pooling: Pooling | None
    dense: tuple[DenseModule, ...] = ()
    normalize: bool = True
    num_logs: int = 0
    late: Late | None = None
    query: str | None = None


class Outline(NamedTuple):
    """modules.json at a glance. transformer: folder of the network, "" for the root. pools: it has a pooling module.

    or is an embedder without one. logit_score: folder of its LogitScore module, if any. given: there is a modules.json.
    """

    transformer: str
    pools: bool
    logit_score: str | None = None
    given: bool = False


def read_modules(folder: Path, pooling: PoolingChoice | None = None) -> Modules:
    """A model's folder -> its Modules; pooling, if given, wins over the files.

    A folder without modules.json is a plain network, and served only if pooling is given; its vectors are normalised.
    SPLADE is another network than one that pools states: one is not made the other by pooling.
    Raises UnsupportedModel by the name of what is not done here.
    """
    if not (folder / "modules.json").exists():
        if pooling is None and is_stanford(folder):
            return Modules("", None, late=read_stanford(folder))
        if pooling is None:
            raise UnsupportedModel(
                f"{folder} has no modules.json, so its pooling is unknown: "
                "give --pooling cls, mean, last-token or splade"
            )
        return Modules("", "max", num_logs=1) if pooling == "splade" else Modules("", pooling)
    kinds, paths, query = _document_modules(folder)
    is_splade = "SpladePooling" in kinds
    if pooling is not None and (pooling == "splade") != is_splade:
        raise UnsupportedModel(f"modules.json orders {', '.join(kinds)}, which --pooling {pooling} does not fit")
    if is_splade:
        return replace(_splade(folder, kinds, paths), query=query)
    if query is not None:
        raise UnsupportedModel(f"router_config.json orders {', '.join(kinds)} for documents, without SpladePooling")
    if pooling is None and ("MultiVectorMask" in kinds or is_pylate(folder, kinds)):
        return _multi_vector(folder, kinds, paths)
    num_dense = kinds.count("Dense")
    _check_order(kinds, num_dense)
    check_output(folder / paths[0], STATES, "last_hidden_state")
    if "message" in (text_config(folder / paths[0]).get("modality_config") or {}):
        raise UnsupportedModel("sentence_bert_config.json embeds every text as a chat message, which is not supported")
    normalize = kinds[-1] == "Normalize"
    if normalize:
        check_keys(folder / paths[-1])
    return Modules(
        transformer=paths[0],
        pooling=read_pooling(folder, paths[1], None if pooling == "splade" else pooling),
        dense=tuple(read_dense(folder, path) for path in paths[2 : 2 + num_dense]),
        normalize=normalize,
    )


def check_classifier(folder: Path) -> None:
    """Raise UnsupportedModel if a folder whose weights have a head asks for more modules than that (CrossEncoder)."""
    if not (folder / "modules.json").exists():
        return
    kinds, paths = entries(folder / "modules.json")
    if kinds not in (["Transformer"], ["Transformer", "LogitScore"]):
        raise UnsupportedModel(
            f"modules.json orders {', '.join(kinds)} for a classifier; supported: Transformer, and LogitScore or none"
        )
    check_output(folder / paths[0], SCORES if len(kinds) == 1 else LOGITS, "logits")


def read_outline(folder: Path) -> Outline:
    """A model's folder -> where its network lies and whether it is an embedder for sure."""
    if not (folder / "modules.json").exists():
        return Outline("", is_stanford(folder))
    kinds, paths, _ = _document_modules(folder)
    logit_score = paths[kinds.index("LogitScore")] if "LogitScore" in kinds else None
    pools = bool(_EMBEDDERS & set(kinds)) or is_pylate(folder, kinds)
    return Outline(paths[0] if paths else "", pools, logit_score, True)


def _document_modules(folder: Path) -> tuple[list[str], list[str], str | None]:
    """Kinds and folders, those of documents where a Router tells them from queries; then the folder of the queries'."""
    kinds, paths = entries(folder / "modules.json")
    return read_router(folder, paths[0]) if kinds == ["Router"] else (kinds, paths, None)


def _check_order(kinds: Sequence[str], num_dense: int) -> None:
    known = {"Transformer", "Pooling", "Dense", "Normalize"}
    for kind in kinds:
        if kind not in known:
            raise UnsupportedModel(f"modules.json has a {kind} module; supported: {', '.join(sorted(known))}")
    served = ["Transformer", "Pooling", *["Dense"] * num_dense]
    if list(kinds) not in (served, [*served, "Normalize"]):
        raise UnsupportedModel(
            f"modules.json orders {', '.join(kinds)}; supported: Transformer, Pooling, any Dense, and Normalize or none"
        )


def _splade(folder: Path, kinds: Sequence[str], paths: Sequence[str]) -> Modules:
    """The two modules of a SPLADE model; the older one of the two kinds of network says by its name what it gives."""
    if list(kinds) not in (["Transformer", "SpladePooling"], ["MLMTransformer", "SpladePooling"]):
        raise UnsupportedModel(f"modules.json orders {', '.join(kinds)}; supported: Transformer, SpladePooling")
    task = text_config(folder / paths[0]).get("transformer_task")
    if kinds[0] == "Transformer" and task != "fill-mask":
        raise UnsupportedModel(f"sentence_bert_config.json has transformer_task {task!r}; supported: 'fill-mask'")
    check_output(folder / paths[0], WORDS, "logits")
    config = read_object(folder / paths[1] / "config.json", optional=True)
    strategy, activation = config.get("pooling_strategy", "max"), config.get("activation_function", "relu")
    if strategy not in ("max", "sum"):
        raise UnsupportedModel(f"{paths[1]}/config.json has pooling_strategy {strategy!r}; supported: max, sum")
    if activation not in _SPLADE_LOGS:
        listed = ", ".join(_SPLADE_LOGS)
        raise UnsupportedModel(f"{paths[1]}/config.json has activation_function {activation!r}; supported: {listed}")
    return Modules(paths[0], strategy, normalize=False, num_logs=_SPLADE_LOGS[activation])


def _multi_vector(folder: Path, kinds: Sequence[str], paths: Sequence[str]) -> Modules:
    """The modules of a model of late interaction. PyLate's folders lack the two that stand at the end."""
    num_dense = kinds.count("Dense")
    path, body = paths[-1], folder / paths[0]
    served = ["Transformer", *["Dense"] * num_dense]
    mask: dict[str, Any] | None = None
    if list(kinds) != served:
        path = _check_late(folder, kinds, paths, [*served, "MultiVectorMask"])
        mask = read_object(folder / path / "config.json", optional=True)
    for key, wanted in {"skiplist_tasks": ["document"], "keep_only_token_ids": None}.items():
        if mask is not None and mask.get(key) not in (None, wanted):
            raise UnsupportedModel(f"{path}/config.json has {key} {mask[key]!r}; supported: {wanted!r}")
    check_output(body, STATES, "last_hidden_state", expands=True)
    return Modules(
        transformer=paths[0],
        pooling=None,
        dense=tuple(read_dense(folder, path, "token_embeddings") for path in paths[1 : 1 + num_dense]),
        normalize=mask is None or kinds[-1] == "Normalize",
        late=read_late(folder, body, mask),
    )


def _check_late(folder: Path, kinds: Sequence[str], paths: Sequence[str], served: list[str]) -> str:
    """The folder of the MultiVectorMask, where it and a Normalize or none are the last ones."""
    if "Dense" not in served or list(kinds) not in (served, [*served, "Normalize"]):
        raise UnsupportedModel(
            f"modules.json orders {', '.join(kinds)}; "
            "supported: Transformer, Dense, MultiVectorMask, and Normalize or none"
        )
    if kinds[-1] == "Normalize":
        check_keys(folder / paths[-1], "token_embeddings")
    return paths[len(served) - 1]
