"""MODEL -> Checkpoint: find its folder, read its files, fill its network. The story of the weights room.

Owns the order of the steps and the checks between them; never touches requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from openbei.errors import ConfigError, UnsupportedModel, WeightsError
from openbei.model.spec import Array, HeadLayer, Linear, Model, ModelSpec
from openbei.weights.checkpoint import ByToken, Checkpoint, Expansion, TextSpec
from openbei.weights.extras import Extras, read_extras
from openbei.weights.families import Family, read_config
from openbei.weights.families.causal import as_classifier
from openbei.weights.files import read_object
from openbei.weights.fill import Taker, fill
from openbei.weights.labels import HeadFacts, read_labels
from openbei.weights.late import Expanding, Late
from openbei.weights.manifest import Probe, check_files, read_manifest
from openbei.weights.masked import with_masked_head
from openbei.weights.module_files import DenseModule
from openbei.weights.modules import Modules, Outline, PoolingChoice, check_classifier, read_modules, read_outline
from openbei.weights.repo import HubOptions, Source, locate
from openbei.weights.router import read_lookup
from openbei.weights.scheme import plain_config
from openbei.weights.tensors import read_tensors
from openbei.weights.text import read_text
from openbei.weights.verdict import Verdict, known_ids, read_pair_template, read_verdict, score_row, token_ids


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to load a model. pooling: wins over the model's own files, see read_modules. verify: hash all of an artifact.

    The others: see HubOptions.
    """

    revision: str | None = None
    pooling: PoolingChoice | None = None
    hf_token: str | None = None
    cache_dir: Path | None = None
    verify: bool = False


class Network(NamedTuple):
    """The files of a network, understood but not yet filled. body: the folder that holds its config.json.

    tensors: those of body by their names there, and what verdict.py or masked.py made of them. inline: the projection
    that a ColBERT model has among them, taken out.
    """

    body: Path
    config: dict[str, Any]
    outline: Outline
    tensors: dict[str, Array]
    verdict: Verdict | None
    spec: ModelSpec
    family: Family
    modules: Modules
    inline: Linear | None


def load(model: str | None = None, options: LoadOptions | None = None) -> Checkpoint:
    """None (the embedded default), a folder or a hub id -> a Checkpoint.

    An artifact's files are checked against its manifest, as far as check_files does unless options.verify says that all
    are. Raises ModelNotFound, UnsupportedModel or WeightsError, ConfigError if what is to be verified is no artifact.
    """
    options = options or LoadOptions()
    hub = HubOptions(revision=options.revision, token=options.hf_token, cache_dir=options.cache_dir)
    source = locate(model, hub)
    artifact = read_manifest(source.folder)
    if artifact is not None:
        check_files(source.folder, artifact, full=options.verify)
        source = replace(source, model_id=artifact.source, revision=artifact.revision)
    elif options.verify:
        raise ConfigError(f"--verify needs an artifact, and {source.model_id} is none: bei build it first")
    pooling = options.pooling or (artifact.pooling if artifact else None)
    return replace(read(source, pooling, artifact.probes if artifact else ()), artifact=artifact)


def read(source: Source, pooling: PoolingChoice | None, probes: Sequence[Probe] = ()) -> Checkpoint:
    """A model's folder -> a Checkpoint, whatever manifest lies there. pooling: as LoadOptions has it; probes: its own.

    Matrices stay in their files, memory-mapped, as stored; vectors are float32. Raises UnsupportedModel, WeightsError.
    """
    network = read_network(source, pooling)
    body, config, outline, verdict = network.body, network.config, network.outline, network.verdict
    spec, family, modules = network.spec, network.family, network.modules
    text = read_text(source.folder, body, spec.max_length)
    if family.head is not None and not family.head.per_token and not modules.num_logs:
        text = replace(text, pair_template=read_pair_template(source, config, outline))
    if modules.late is not None:
        text = _late_text(body, text, modules.late, spec)
    dense = _read_dense(source.folder, modules.dense, spec.width)
    if network.inline is not None:
        dense = (HeadLayer(network.inline),)
    weights, head = fill(spec, family, network.tensors)
    model = Model(spec, weights, modules.pooling, dense if modules.pooling else (), modules.normalize, head)
    labels, extras = None, Extras()
    if modules.num_logs:
        model = _splade(model, modules.num_logs)
    elif head is not None:
        labels = read_labels(config, model.num_labels, _head_facts(source.folder, family, verdict, text))
    else:
        late = modules.late
        extras = read_extras(body, spec.width, text) if late is None else _multi_vector(body, dense, late)
        model = replace(model, weigher=extras.weigher, multi=extras.multi)
    text = replace(text, probes=tuple((probe.texts, probe.ids) for probe in probes))
    lookup = None if modules.query is None else read_lookup(source.folder, modules.query, model.embedding_dim)
    return Checkpoint(
        source.model_id, source.revision, source.folder, model, text, labels, extras.by_token, lookup=lookup
    )


def read_network(source: Source, pooling: PoolingChoice | None) -> Network:
    """A model's folder -> its Network. pooling: as LoadOptions has it. Raises as load does."""
    outline = read_outline(source.folder)
    body = source.folder / outline.transformer
    _refuse_adapter(body)
    config = plain_config(read_object(body / "config.json"))
    tensors = read_tensors(body)
    embeds = outline.pools or pooling is not None
    verdict = None if embeds else read_verdict(source, config, outline, tensors)
    if verdict is not None:
        tensors |= score_row(verdict, config, tensors)
        config = as_classifier(config)
    spec, family = read_config(config, tensors, with_head=not outline.pools and pooling != "splade")
    modules = _modules(source.folder, family, pooling)
    if modules.num_logs:
        family, tensors = with_masked_head(config, family, tensors)
    inline = _inline(tensors, spec.width) if modules.late is not None and modules.late.inline else None
    return Network(body, config, outline, tensors, verdict, spec, family, modules, inline)


def _late_text(body: Path, text: TextSpec, late: Late, spec: ModelSpec) -> TextSpec:
    """The lengths of documents and queries; a limit of its own may be above that of other texts."""
    document, query = late.max_document_tokens, late.max_query_tokens
    marked = {role: marker + text.prompts.get(role, "").removeprefix(marker) for role, marker in late.markers.items()}
    return replace(
        text,
        max_length=text.max_length if document is None else min(document, spec.max_length),
        max_query_length=text.max_length if query is None else min(query, spec.max_length),
        prompts=text.prompts | marked,
        markers=tuple(late.markers.values()),
        expansion=None if late.expanding is None else _expansion(body, text, late.expanding, spec),
    )


def _expansion(body: Path, text: TextSpec, wanted: Expanding, spec: ModelSpec) -> Expansion:
    """Raises UnsupportedModel where a token would see none of its query's own, or there is no token to fill up with."""
    roles = ("mask_token", "eos_token")
    token = wanted.token or next((text.special_tokens[role] for role in roles if role in text.special_tokens), None)
    if token is None:
        raise UnsupportedModel("queries are to be filled up, but the tokenizer has neither mask_token nor eos_token")
    if wanted.length > spec.max_length:
        raise UnsupportedModel(f"queries are filled up to {wanted.length} tokens, the model has {spec.max_length}")
    if not wanted.attended and spec.causal:
        raise UnsupportedModel("queries are filled up with tokens that no other sees, in a causal model")
    if not wanted.attended and spec.window is not None and wanted.length > spec.window // 2 + 1:
        raise UnsupportedModel(
            f"queries are filled up to {wanted.length} tokens that no other sees; "
            f"with the model's window at most {spec.window // 2 + 1} see a token of the query"
        )
    return Expansion(wanted.length, token_ids(body, (token,))[0], wanted.attended)


def _inline(tensors: dict[str, Array], width: int) -> Linear:
    """Stanford's projection, taken out of the network's tensors."""
    weight = tensors.pop("linear.weight", np.empty((0, 0), np.float32))
    if weight.ndim != 2 or weight.shape[1] != width:
        raise WeightsError(f"the weights lack linear.weight of {width} columns, the projection of a ColBERT model")
    return Linear(weight)


def _multi_vector(body: Path, layers: tuple[HeadLayer, ...], late: Late) -> Extras:
    """Words of the skiplist that are no tokens are left out, as sentence-transformers does."""
    skipped = frozenset(known_ids(body, late.skiplist).values())
    return Extras(multi=layers, by_token=ByToken(skipped=skipped))


def _splade(network: Model, num_logs: int) -> Model:
    """A network whose head gives a row of words to a sequence -> the one that gives a row to every token, and pools."""
    assert network.head is not None
    return replace(network, head=None, before_pooling=network.head.layers, num_logs=num_logs)


def _modules(folder: Path, family: Family, pooling: PoolingChoice | None) -> Modules:
    """A head says itself which state it reads; an embedder's files, or the caller, say how to pool."""
    if family.head is None:
        return read_modules(folder, pooling)
    check_classifier(folder)
    return Modules("", family.head.pooling)


def _head_facts(folder: Path, family: Family, verdict: Verdict | None, text: TextSpec) -> HeadFacts:
    assert family.head is not None
    declared = read_object(folder / "config_sentence_transformers.json", optional=True)
    scores_pairs = verdict is not None or text.pair_template is not None or declared.get("model_type") == "CrossEncoder"
    both = verdict is not None and verdict.no is not None
    return HeadFacts(family.head.per_token, family.decoder, declared.get("activation_fn"), scores_pairs, both)


def _refuse_adapter(body: Path) -> None:
    if (body / "adapter_config.json").exists():
        raise UnsupportedModel(f"{body} holds an adapter (adapter_config.json): merge it into its base model first")


def _read_dense(folder: Path, modules: tuple[DenseModule, ...], width: int) -> tuple[HeadLayer, ...]:
    dense = []
    for module in modules:
        if module.in_features != width:
            raise WeightsError(f"{module.path} takes vectors {module.in_features} wide, it is given {width}")
        taker = Taker(read_tensors(folder / module.path), {"linear": "linear"}, {"linear": module.bias})
        linear = taker.linear("linear", module.out_features, module.in_features)
        taker.finish()
        dense.append(HeadLayer(linear, module.activation))
        width = module.out_features
    return tuple(dense)
