"""Sparse vectors of words and vectors of tokens: every backend against transformers, and what must be seen if wrong."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from transformers import PreTrainedModel

from openbei.engine.finish import activated
from openbei.model import ops
from openbei.model.ops import LastProduct, cuda, openvino_words
from openbei.model.ops.cuda import Placement
from openbei.model.ops.openvino_graph import CompileOptions
from openbei.model.spec import HeadLayer, Linear, Model, Pooling, pack
from openbei.weights.load import load
from tests import families, splade
from tests.model import oracles
from tests.model.cuda_cases import DEVICES
from tests.model.oracles import BACKENDS, CudaRun, Floats, error, run_of, vectors_of

LENGTHS = (3, 17, 1, 9, 30, 2)


@dataclass(frozen=True)
class Case:
    """A loaded SPLADE model, sequences for it, and the weights that the definition gives to all words (B, V)."""

    model: Model
    ids: oracles.Ids
    types: oracles.Ids
    weights: Floats

    def run(self, backend: str, model: Model | None = None) -> Floats:
        model = model or self.model
        rows = vectors_of(backend, model)(pack(model.spec, self.ids, self.types))
        return rows if model.pooling == "sum" else activated(rows, "log1p_relu")


def loaded(family: str, judge: PreTrainedModel, folder: object) -> Case:
    model = load(str(folder)).model
    ids, types = oracles.sequences(model, LENGTHS)
    return Case(model, ids, types, splade.definition(judge, ids, types))


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Family -> its Case, made once."""

    @cache
    def make(family: str) -> Case:
        judge = splade.network(family)
        return loaded(family, judge, splade.save(tmp_path_factory.mktemp(family), family, judge))

    return make


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", splade.FAMILIES)
def test_words_have_the_weights_that_transformers_gives_them(
    family: str, backend: str, cases: Callable[[str], Case]
) -> None:
    case = cases(family)
    assert (case.weights == 0).any()
    assert case.model.embedding_dim == case.weights.shape[1] == case.model.spec.vocab_size
    assert error(case.run(backend), case.weights) <= 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("num_logs", [1, 2])
def test_the_sum_of_what_each_token_gives(num_logs: int, backend: str, cases: Callable[[str], Case]) -> None:
    case = cases("bert")
    logits = families.transformers_logits(splade.network("bert"), case.ids, case.types)
    words = np.log1p(np.maximum(logits.astype(np.float64), 0))
    words = words if num_logs == 1 else np.log1p(words)
    wanted = np.add.reduceat(words, np.cumsum([0, *LENGTHS[:-1]]), axis=0).astype(np.float32)
    rows = case.run(backend, replace(case.model, pooling="sum", num_logs=num_logs))
    assert error(rows, wanted) <= 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pooling", ["max", "sum"])
def test_words_are_the_same_in_pieces(
    pooling: Pooling, backend: str, cases: Callable[[str], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replace(cases("roberta").model, pooling=pooling)
    whole = cases("roberta").run(backend, model)
    assert model.spec.vocab_size % 50
    for module in (ops, cuda):
        monkeypatch.setattr(module, "PIECE", 50)
    monkeypatch.setattr(openvino_words, "MAX_VALUES", 0)
    assert len(list(ops.pieces(model.before_pooling[-1].linear))) == model.spec.vocab_size // 50 + 1 > 2
    assert error(cases("roberta").run(backend, model), whole) <= 1e-5


@pytest.mark.parametrize("lengths", [LENGTHS, (1,), (64, 1, 1, 1), (3,) * 40, (16, 15, 40)])
def test_a_grid_of_words_never_holds_more_than_its_cells(
    lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_words, "MAX_VALUES", 0)
    random = np.random.default_rng(1)
    rows = random.normal(size=(sum(lengths) + 5, 6)).astype(np.float32)  # with rows of padding, as a batch has them
    linear = Linear(random.normal(size=(9, 6)).astype(np.float32))
    words = openvino_words.Words(LastProduct(linear, "max", 1), CompileOptions("float32", 1, 1))
    sizes = []
    infer = words._graph.infer
    monkeypatch.setattr(words._graph, "infer", lambda x, size: sizes.append(x[0].shape) or infer(x, size))
    ends = np.cumsum([0, *lengths]).astype(np.int32)
    wanted = np.stack([part.max(0) for part in np.split(rows @ linear.weight.T, ends[1:])[:-1]])
    assert error(words.pool(rows, ends), wanted) <= 1e-5
    assert all(b * s <= words.num_cells == 16 for b, s, _ in sizes)
    assert len(sizes) <= 2 * -(-sum(lengths) // 16) + 3


UNTIED = {
    "bert": {"tie_word_embeddings": False},
    "roberta": {"tie_word_embeddings": False, "hidden_act": "relu"},
    "distilbert": {"tie_word_embeddings": False, "activation": "relu"},
    "modernbert": {
        "tie_word_embeddings": False,
        "classifier_activation": "silu",
        "classifier_bias": True,
        "norm_bias": True,
        "decoder_bias": False,
    },
}


@pytest.mark.parametrize("family", UNTIED)
def test_a_matrix_of_its_own_and_other_settings(family: str, tmp_path: object) -> None:
    judge = splade.network(family, **UNTIED[family])
    case = loaded(family, judge, splade.save(tmp_path, family, judge))
    assert not np.shares_memory(case.model.before_pooling[-1].linear.weight, case.model.weights.embedding.word)
    assert error(case.run("numpy"), case.weights) <= 1e-4


def changed(number: int, **changes: object) -> Callable[[Model], Model]:
    def change(model: Model) -> Model:
        layers = list(model.before_pooling)
        layers[number] = replace(layers[number], **changes)
        return replace(model, before_pooling=tuple(layers))

    return change


def without_bias(model: Model) -> Model:
    return changed(-1, linear=replace(model.before_pooling[-1].linear, bias=None))(model)


BUGS: dict[str, Callable[[Model], Model]] = {
    "no norm": changed(0, norm=None),
    "tanh gelu": changed(0, activation="gelu_tanh"),
    "no activation": changed(0, activation="identity"),
    "no bias": without_bias,
    "no transform": lambda model: replace(model, before_pooling=model.before_pooling[1:]),
    "the mean": lambda model: replace(model, pooling="mean"),
    "the first token": lambda model: replace(model, pooling="cls"),
}


@pytest.mark.parametrize("bug", BUGS)
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "modernbert"])
def test_a_seeded_bug_is_seen(family: str, bug: str, cases: Callable[[str], Case]) -> None:
    case = cases(family)
    assert error(case.run("numpy", BUGS[bug](case.model)), case.weights) > 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sequence_has_the_same_words_alone_and_beside_others(backend: str, cases: Callable[[str], Case]) -> None:
    case = cases("bert")
    run = vectors_of(backend, case.model)
    together = run(pack(case.model.spec, case.ids, case.types))
    reversed_ = run(pack(case.model.spec, case.ids[::-1], case.types[::-1]))[::-1]
    alone = [run(pack(case.model.spec, [ids], [types])) for ids, types in zip(case.ids, case.types, strict=True)]
    assert error(np.concatenate(alone), together) <= 1e-5
    assert error(reversed_, together) <= 1e-5


@pytest.mark.parametrize("device", DEVICES)
def test_16_bit_words_are_near_those_of_float32(device: str, cases: Callable[[str], Case]) -> None:
    case = cases("bert")
    rows = CudaRun(case.model, Placement(device, "bfloat16"), "vectors")(pack(case.model.spec, case.ids, case.types))
    assert error(activated(rows, "log1p_relu"), case.weights) <= 0.1


# --- the largest value of each column, of the states themselves


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_max_pooling_takes_the_largest_of_each_column(family: str, backend: str, tmp_path: object) -> None:
    judge = families.network(family)
    model = load(str(families.save(tmp_path, family, judge, pooling="max_tokens"))).model
    assert model.pooling == "max"
    ids, types = oracles.sequences(model, LENGTHS)
    states = families.transformers_states(judge, ids, types)
    wanted = np.stack([rows.max(0) for rows in np.split(states, np.cumsum(LENGTHS)[:-1])])
    assert (wanted < 0).any()  # so that a pad of zeros would be seen
    assert error(vectors_of(backend, model)(pack(model.spec, ids, types)), wanted) <= 1e-4


# --- something of every token


def layer(rows: int, width: int, seed: int, **how: object) -> HeadLayer:
    random = np.random.default_rng(seed)
    weight, bias = (random.normal(0, 0.2, shape).astype(np.float32) for shape in ((rows, width), rows))
    return HeadLayer(Linear(weight, bias), **how)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["xlm-roberta", "modernbert"])
def test_weights_and_vectors_of_tokens(family: str, backend: str, tmp_path: object) -> None:
    judge = families.network(family)
    model = load(str(families.save(tmp_path, family, judge))).model
    first, second, weigher = layer(20, 48, 1, activation="tanh"), layer(7, 20, 2), layer(1, 48, 3, activation="relu")
    model = replace(model, multi=(first, second), weigher=(weigher,))
    ids, types = oracles.sequences(model, LENGTHS)
    states = families.transformers_states(judge, ids, types)
    vectors = np.tanh(states @ first.linear.weight.T + first.linear.bias) @ second.linear.weight.T + second.linear.bias
    weights = np.maximum(states @ weigher.linear.weight.T + weigher.linear.bias, 0)
    assert 0 < (weights == 0).mean() < 1
    for output, wanted in (("multi", vectors), ("weights", weights)):
        assert error(run_of(backend, model, output)(pack(model.spec, ids, types)), wanted) <= 1e-4
    assert (model.multi_dim, model.embedding_dim, replace(model, pooling=None).embedding_dim) == (7, 48, 7)
