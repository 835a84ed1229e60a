"""Router modules of sentence-transformers: a SPLADE model whose queries are looked up, and not computed.

Owns router_config.json and the table of weights by token (SparseStaticEmbedding); never touches the documents' network.
Sources: sentence-transformers 6.2, base/modules/router.py and sparse_encoder/modules/sparse_static_embedding.py.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from openbei.errors import ModelError, UnsupportedModel, WeightsError
from openbei.weights.checkpoint import Lookup
from openbei.weights.files import read_object
from openbei.weights.tensors import read_tensors
from openbei.weights.text import read_text

MAX_TOKENS = 1 << 16  # of a query whose tokenizer has no limit


class Routes(NamedTuple):
    """The modules of a document with their folders, and the folder of the queries' one module."""

    kinds: list[str]
    paths: list[str]
    query: str


def read_router(folder: Path, path: str) -> Routes:
    """The folder of a model, and that of its Router in it -> its Routes. Raises UnsupportedModel for other routes."""
    config = read_object(folder / path / "router_config.json")
    try:
        types = {name: str(kind).rpartition(".")[2] for name, kind in config["types"].items()}
        structure = {route: [(types[name], name) for name in names] for route, names in config["structure"].items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ModelError(f"router_config.json must have types and a structure of them: {error!r}") from error
    query, document = structure.get("query", []), structure.get("document", [])
    if set(structure) != {"query", "document"} or [kind for kind, _ in query] != ["SparseStaticEmbedding"]:
        told = "; ".join(f"{route}: {', '.join(kind for kind, _ in rows)}" for route, rows in structure.items())
        raise UnsupportedModel(
            f"router_config.json has the routes {told}; supported: query, of SparseStaticEmbedding, and document"
        )
    if mappings := (config.get("parameters") or {}).get("route_mappings"):
        raise UnsupportedModel(f"router_config.json has route_mappings {mappings!r}; supported: none")
    below = [(Path(path) / name).as_posix() for _, name in (*query, *document)]
    return Routes([kind for kind, _ in document], below[1:], below[0])


def read_lookup(folder: Path, path: str, num_words: int) -> Lookup:
    """The folders of a model and of its SparseStaticEmbedding -> what queries are looked up in, num_words long."""
    body = folder / path
    config = read_object(body / "config.json", optional=True)
    if "path" in config:
        raise UnsupportedModel(f"{path}/config.json takes its weights from {config['path']!r}; supported: its tensors")
    weights = read_tensors(body).get("weight", np.empty(0, np.float32))
    if weights.shape != (num_words,):
        raise WeightsError(f"{path} has weights of shape {weights.shape}; documents have {num_words} words")
    text = replace(read_text(folder, body, MAX_TOKENS), bare=True)
    return Lookup(text, np.asarray(weights, np.float32))
