"""Artifacts of the kinds of model that keep more than a network: every file that they are read from is in them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SparseEncoder
from sentence_transformers.base.modules import Router
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding, SpladePooling

from openbei.model.spec import num_parameters
from openbei.weights.load import load
from tests import late, splade
from tests.weights.building import make


def routed(folder: Path) -> Path:
    body = SparseEncoder(str(splade.save(late.network(folder / "body", "bert"), "bert")), device="cpu")
    weights = torch.arange(body[0].model.config.vocab_size) / 3
    router = Router.for_query_document(
        query_modules=[SparseStaticEmbedding(body.tokenizer, weight=weights, frozen=True)],
        document_modules=[body[0], SpladePooling("sum")],
    )
    SparseEncoder(modules=[router], device="cpu").save_pretrained(str(folder / "routed"))
    return folder / "routed"


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "stanford": lambda folder: late.stanford(folder, query_maxlen=20, doc_maxlen=30),
    "pylate": lambda folder: late.pylate(folder, "bert", query_length=20),
    "routed": routed,
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", FOLDERS)
def test_an_artifact_is_read_as_its_folder_was(
    kind: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENBEI_HOME", str(tmp_path / "home"))
    folder = FOLDERS[kind](tmp_path / "model")
    theirs, ours = load(str(folder)), load(str(make(folder, tmp_path / "out", dtype=dtype).folder))
    assert num_parameters(ours.model) == num_parameters(theirs.model)
    assert (ours.by_token, ours.text.expansion, ours.text.markers, ours.text.prompts) == (
        theirs.by_token,
        theirs.text.expansion,
        theirs.text.markers,
        theirs.text.prompts,
    )
    assert (ours.lookup is None) is (theirs.lookup is None) is (kind != "routed")
    if ours.lookup is not None and theirs.lookup is not None:
        limit = 0 if dtype == "float32" else 0.2
        assert np.abs(ours.lookup.weights - theirs.lookup.weights).max() <= limit
        text = replace(ours.lookup.text, tokenizer_file=theirs.lookup.text.tokenizer_file)
        assert text == theirs.lookup.text
