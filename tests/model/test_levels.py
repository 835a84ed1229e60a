"""The maths of every family on every backend: levels 1 (against transformers), 3 (invariance) and 4 (seeded bugs)."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from openbei.model import positions
from openbei.model.positions import bucketed_bias
from openbei.model.spec import Pooling, pack
from openbei.weights.load import load
from tests import families
from tests.model import oracles
from tests.model.bugs import BUGS, SEEDED
from tests.model.oracles import BACKENDS, Case, error, pooled, states_of, vectors_of

POOLINGS: tuple[Pooling, ...] = ("cls", "mean", "last_token")
TOLERANCE = 1e-4
LENGTHS = (3, 17, 1, 9, 30, 2)
EACH_BLOCK = (
    "modernbert",
    "jina-code",
    "qwen3",
    "gemma2",
)  # each has its own norms


@pytest.fixture(scope="session")
def cases(tiny_folder: Callable[[str], Path]) -> Callable[..., Case]:
    """(family, lengths) -> its Case, made once."""
    return cache(lambda family, lengths=LENGTHS: oracles.case(family, tiny_folder(family), lengths))


@pytest.fixture(params=families.ALL)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# --- level 1: against transformers


@pytest.mark.parametrize("backend", BACKENDS)
def test_states_match_transformers(family: str, backend: str, cases: Callable[..., Case]) -> None:
    run = states_of(backend, cases(family).model)
    limit = cases(family).model.spec.max_length
    for lengths in (LENGTHS, (5, limit, 1), tuple(1 + number % 13 for number in range(40))):
        case = cases(family, lengths)
        assert error(run(case.batch), case.states) <= TOLERANCE, lengths


@pytest.mark.parametrize("kind", POOLINGS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", [*families.FAMILIES, *EACH_BLOCK])
def test_pooled_vectors_match_transformers(
    family: str, backend: str, kind: Pooling, cases: Callable[..., Case]
) -> None:
    case = cases(family)
    vectors = vectors_of(backend, replace(case.model, pooling=kind))(case.batch)
    assert error(vectors, pooled(case.states, case.batch, kind)) <= TOLERANCE


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["roberta", "xlm-roberta", "mpnet"])
def test_a_literal_pad_token_takes_its_own_position(family: str, backend: str, cases: Callable[..., Case]) -> None:
    model = cases(family).model
    ids = [[0, 7, 1, 8, 9, 2], [0, 5, 2], [0, 1, 1, 6, 1]]
    types = [[0] * len(sequence) for sequence in ids]
    wanted = families.transformers_states(families.network(family), ids, types)
    assert error(states_of(backend, model)(pack(model.spec, ids)), wanted) <= TOLERANCE


@pytest.mark.parametrize("hidden_act", ["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu"])
def test_every_activation_matches_transformers(hidden_act: str, tmp_path: Path) -> None:
    judge = families.network("bert", hidden_act=hidden_act)
    model = load(str(families.save(tmp_path, "bert", judge))).model
    ids, types = oracles.sequences(model, LENGTHS)
    wanted = families.transformers_states(judge, ids, types)
    for backend in BACKENDS:
        assert error(states_of(backend, model)(pack(model.spec, ids, types)), wanted) <= TOLERANCE, backend


@pytest.mark.parametrize("num_buckets", [32, 16, 64])
def test_relative_buckets_are_those_of_transformers(num_buckets: int) -> None:
    distance = np.arange(-511, 512)
    bucket = MPNetEncoder.relative_position_bucket(torch.from_numpy(distance), num_buckets=num_buckets)
    table = np.arange(num_buckets, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(bucketed_bias(table, 512)[0], bucket.numpy())


# --- level 3: a text's answer does not depend on its neighbours


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_text_has_one_answer_alone_in_a_batch_and_at_any_position(
    family: str, backend: str, cases: Callable[..., Case]
) -> None:
    case = cases(family)
    spec, run = case.model.spec, vectors_of(backend, case.model)
    together = run(case.batch)
    backwards = run(pack(spec, case.ids[::-1], case.types[::-1]))
    alone = np.concatenate([run(pack(spec, [ids], [types])) for ids, types in zip(case.ids, case.types, strict=True)])
    assert error(together, alone) <= 1e-5
    assert error(together, backwards[::-1]) <= 1e-5


# --- level 4: mistakes that must be seen


@pytest.mark.parametrize(("name", "bug"), SEEDED)
def test_a_seeded_bug_is_seen(name: str, bug: str, cases: Callable[..., Case]) -> None:
    case = cases(name)
    broken = BUGS[name][bug](case.model)
    batch = pack(broken.spec, case.ids, case.types)
    assert error(states_of("numpy", broken)(batch), case.states) > TOLERANCE


def test_alibi_of_the_other_sign_is_seen(cases: Callable[..., Case], monkeypatch: pytest.MonkeyPatch) -> None:
    case = cases("jina-en")
    right = positions.alibi_slopes
    monkeypatch.setattr(positions, "alibi_slopes", lambda num_heads: -right(num_heads))
    assert error(states_of("numpy", case.model)(case.batch), case.states) > TOLERANCE


@pytest.mark.parametrize("family", families.FAMILIES)
@pytest.mark.parametrize(("wanted", "wrong"), [("cls", "last_token"), ("mean", "cls"), ("last_token", "mean")])
def test_pooling_at_the_wrong_token_is_seen(
    family: str, wanted: Pooling, wrong: Pooling, cases: Callable[..., Case]
) -> None:
    case = cases(family)
    vectors = vectors_of("numpy", replace(case.model, pooling=wrong))(case.batch)
    assert error(vectors, pooled(case.states, case.batch, wanted)) > TOLERANCE
