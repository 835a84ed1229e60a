"""Tokens that see the others and that none sees, as ColBERT fills queries up: level 1 of every way to mask keys."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from openbei.model.spec import HIDDEN, Batch, pack
from openbei.weights.load import load
from tests import families
from tests.model import oracles
from tests.model.oracles import error, states_of

LENGTHS = (5, 2, 4, 5)
NUM_HIDDEN = (0, 3, 1, 2)  # at the ends; the windows of the tiny ModernBERT reach 4 tokens
FAMILIES = ("bert", "mpnet", "roberta", "modernbert", "gte-native")


def judged(judge: PreTrainedModel, ids: oracles.Ids, types: oracles.Ids) -> NDArray[np.float32]:
    """Each sequence alone through transformers, whose attention mask hides the keys (T, C)."""
    states = []
    for sequence, its_types in zip(ids, types, strict=True):
        seen = torch.tensor([[one != HIDDEN for one in its_types]], dtype=torch.long)
        extra = {}
        if getattr(judge.config, "type_vocab_size", 0) > 1:
            extra["token_type_ids"] = torch.tensor([its_types]).clamp(min=0)
        with torch.inference_mode():
            output = copy.deepcopy(judge)(input_ids=torch.tensor([sequence]), attention_mask=seen, **extra)
        states.append(output.last_hidden_state[0].numpy())
    return np.concatenate(states)


def filled_up(ids: oracles.Ids, types: oracles.Ids) -> tuple[oracles.Ids, oracles.Ids]:
    ids = [one + [7] * num for one, num in zip(ids, NUM_HIDDEN, strict=True)]
    return ids, [one + [HIDDEN] * num for one, num in zip(types, NUM_HIDDEN, strict=True)]


@pytest.mark.parametrize("backend", oracles.BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_tokens_see_and_are_not_seen(family: str, backend: str, tmp_path: Path) -> None:
    judge = families.network(family)
    model = load(str(families.save(tmp_path, family, judge))).model
    plain = oracles.sequences(model, LENGTHS)
    ids, types = filled_up(*plain)
    run, batch = states_of(backend, model), pack(model.spec, ids, types)
    together = run(batch)
    assert error(together, judged(judge, ids, types)) <= 1e-4
    own = np.concatenate([np.arange(n) < n - hidden for n, hidden in zip(batch.lengths, NUM_HIDDEN, strict=True)])
    assert error(together[own], run(pack(model.spec, *plain))) <= 1e-5
    seen = run(Batch(batch.input_ids, batch.position_ids, batch.token_type_ids, batch.cu_seqlens))
    assert error(seen[own], together[own]) > 1e-3


def test_pack_counts_what_is_seen(tmp_path: Path) -> None:
    spec = load(str(families.save(tmp_path, "bert"))).model.spec
    batch = pack(spec, [[5, 6, 7], [8], [9, 9]], [[1, HIDDEN, HIDDEN], [0], [0, HIDDEN]])
    assert batch.num_keys is not None
    assert (batch.num_keys.tolist(), batch.num_keys.dtype) == ([1, 1, 1], np.int32)
    assert batch.token_type_ids.tolist() == [1, 0, 0, 0, 0, 0]
    assert pack(spec, [[5, 6]], [[0, 1]]).num_keys is None
    assert pack(spec, [[5, 6]]).num_keys is None
