"""The maths of every family on both backends: levels 1 (against transformers), 3 (invariance) and 4 (seeded bugs)."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from openbei.model.positions import bucketed_bias
from openbei.model.spec import Layer, Linear, Model, Pooling, pack
from openbei.weights.load import load
from tests import families
from tests.model import oracles
from tests.model.oracles import Case, error, pooled, states_of, vectors_of

BACKENDS = ("torch", "openvino")
POOLINGS: tuple[Pooling, ...] = ("cls", "mean", "last_token")
TOLERANCE = 1e-4
LENGTHS = (3, 17, 1, 9, 30, 2)


@pytest.fixture(scope="session")
def cases(tiny_folder: Callable[[str], Path]) -> Callable[..., Case]:
    """(family, lengths) -> its Case, made once."""
    return cache(lambda family, lengths=LENGTHS: oracles.case(family, tiny_folder(family), lengths))


@pytest.fixture(params=families.FAMILIES)
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


def _layers(model: Model, change: Callable[[Layer], Layer]) -> Model:
    weights = model.weights
    return replace(model, weights=replace(weights, layers=tuple(change(layer) for layer in weights.layers)))


def _spec(**changes: object) -> Callable[[Model], Model]:
    return lambda model: replace(model, spec=replace(model.spec, **changes))  # type: ignore[arg-type]


def _roll_relative_bias(model: Model) -> Model:
    table = model.weights.relative_bias
    assert table is not None
    return replace(model, weights=replace(model.weights, relative_bias=np.roll(table, len(table) // 2, axis=0)))


def _without_segment(model: Model) -> Model:
    embedding = replace(model.weights.embedding, segment=None)
    return replace(model, weights=replace(model.weights, embedding=embedding))


def _one_position_late(model: Model) -> Model:
    embedding = model.weights.embedding
    late = replace(embedding, position=np.roll(embedding.position, -1, axis=0))
    return replace(model, weights=replace(model.weights, embedding=late))


BUGS: dict[str, Callable[[Model], Model]] = {
    "positions start one late": _one_position_late,
    "tanh gelu for gelu": _spec(activation="gelu_tanh"),
    "eps 1e-4": _spec(norm_eps=1e-4),
    "q and k swapped": lambda model: _layers(model, lambda layer: replace(layer, q=layer.k, k=layer.q)),
    "no bias after attention": lambda model: _layers(model, lambda layer: replace(layer, out=Linear(layer.out.weight))),
    "norms swapped": lambda model: _layers(
        model, lambda layer: replace(layer, attention_norm=layer.ffn_norm, ffn_norm=layer.attention_norm)
    ),
    "layers reversed": lambda model: replace(model, weights=replace(model.weights, layers=model.weights.layers[::-1])),
}
HALF_THE_HEADS = {"half the heads": _spec(num_heads=2, num_kv_heads=2, head_dim=24)}
OWN_BUGS: dict[str, dict[str, Callable[[Model], Model]]] = {
    "bert": HALF_THE_HEADS | {"no types": _without_segment, "eps of RoBERTa": _spec(norm_eps=1e-5)},
    "roberta": HALF_THE_HEADS | {"no type row": _without_segment, "positions from 0": _spec(position_offset=0)},
    "xlm-roberta": HALF_THE_HEADS | {"no type row": _without_segment, "positions from 0": _spec(position_offset=0)},
    "distilbert": HALF_THE_HEADS | {"eps of RoBERTa": _spec(norm_eps=1e-5)},
    "mpnet": {
        "buckets of the other sign": _roll_relative_bias,
        "no relative bias": lambda model: replace(model, weights=replace(model.weights, relative_bias=None)),
        "positions from 0": _spec(position_offset=0),
    },
}
SEEDED = [(name, bug) for name in families.FAMILIES for bug in (*BUGS, *OWN_BUGS[name])]


@pytest.mark.parametrize(("name", "bug"), SEEDED)
def test_a_seeded_bug_is_seen(name: str, bug: str, cases: Callable[..., Case]) -> None:
    case = cases(name)
    broken = {**BUGS, **OWN_BUGS[name]}[bug](case.model)
    batch = pack(broken.spec, case.ids, case.types)
    assert error(states_of("torch", broken)(batch), case.states) > TOLERANCE


@pytest.mark.parametrize(("wanted", "wrong"), [("cls", "last_token"), ("mean", "cls"), ("last_token", "mean")])
def test_pooling_at_the_wrong_token_is_seen(
    family: str, wanted: Pooling, wrong: Pooling, cases: Callable[..., Case]
) -> None:
    case = cases(family)
    vectors = vectors_of("torch", replace(case.model, pooling=wrong))(case.batch)
    assert error(vectors, pooled(case.states, case.batch, wanted)) > TOLERANCE
