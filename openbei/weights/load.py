"""MODEL -> Checkpoint: find its folder, read its files, fill its network. The story of the weights room.

Owns the order of the steps and the checks between them; never touches requests.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from openbei.errors import UnsupportedModel, WeightsError
from openbei.model.spec import Dense, HeadLayer, Model
from openbei.weights.checkpoint import ByToken, Checkpoint, TextSpec
from openbei.weights.extras import Extras, read_extras
from openbei.weights.families import Family, read_config
from openbei.weights.families.causal import as_classifier
from openbei.weights.files import read_object
from openbei.weights.fill import Taker, fill
from openbei.weights.labels import HeadFacts, read_labels
from openbei.weights.manifest import check_files, read_manifest
from openbei.weights.masked import with_masked_head
from openbei.weights.module_files import DenseModule
from openbei.weights.modules import Modules, PoolingChoice, check_classifier, read_modules, read_outline
from openbei.weights.repo import HubOptions, locate
from openbei.weights.tensors import read_tensors
from openbei.weights.text import read_text
from openbei.weights.verdict import Verdict, known_ids, read_pair_template, read_verdict, score_row


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to load a model. pooling: wins over the model's own files, see read_modules; the others: see HubOptions."""

    revision: str | None = None
    pooling: PoolingChoice | None = None
    hf_token: str | None = None
    cache_dir: Path | None = None


def load(model: str | None = None, options: LoadOptions | None = None) -> Checkpoint:
    """None (the embedded default), a folder or a hub id -> a Checkpoint.

    Matrices stay in their files, memory-mapped, as stored; vectors are float32. An artifact's files are checked against
    its manifest, as far as check_files does unless it is told to be full. Raises ModelNotFound,
    UnsupportedModel or WeightsError.
    """
    options = options or LoadOptions()
    hub = HubOptions(revision=options.revision, token=options.hf_token, cache_dir=options.cache_dir)
    source = locate(model, hub)
    artifact = read_manifest(source.folder)
    if artifact is not None:
        check_files(source.folder, artifact, full=False)
        source = replace(source, model_id=artifact.source, revision=artifact.revision)
        options = replace(options, pooling=options.pooling or artifact.pooling)
    outline = read_outline(source.folder)
    body = source.folder / outline.transformer
    _refuse_adapter(body)
    config = read_object(body / "config.json")
    tensors = read_tensors(body)
    embeds = outline.pools or options.pooling is not None
    verdict = None if embeds else read_verdict(source, config, outline, tensors)
    if verdict is not None:
        tensors |= score_row(verdict, config, tensors)
        config = as_classifier(config)
    spec, family = read_config(config, tensors, with_head=not outline.pools and options.pooling != "splade")
    modules = _modules(source.folder, family, options.pooling)
    if modules.num_logs:
        family, tensors = with_masked_head(config, family, tensors)
    text = read_text(source.folder, body, spec.max_length)
    if family.head is not None and not family.head.per_token and not modules.num_logs:
        text = replace(text, pair_template=read_pair_template(source, config, outline))
    if modules.pooling is None:
        text = _limits(text, modules, spec.max_length)
    dense = _read_dense(source.folder, modules.dense, spec.width)
    weights, head = fill(spec, family, tensors)
    network = Model(spec, weights, modules.pooling, dense if modules.pooling else (), modules.normalize, head)
    labels, extras = None, Extras()
    if modules.num_logs:
        network = _splade(network, modules.num_logs)
    elif head is not None:
        labels = read_labels(config, network.num_labels, _head_facts(source.folder, family, verdict, text))
    else:
        extras = read_extras(body, spec.width, text) if modules.pooling else _multi_vector(body, dense, modules)
        network = replace(network, weigher=extras.weigher, multi=extras.multi)
    if artifact is not None:
        text = replace(text, probes=tuple((probe.texts, probe.ids) for probe in artifact.probes))
    return Checkpoint(source.model_id, source.revision, source.folder, network, text, labels, extras.by_token, artifact)


def _limits(text: TextSpec, modules: Modules, limit: int) -> TextSpec:
    """The lengths of documents and queries; a limit of its own may be above that of other texts."""
    document, query = modules.max_document_tokens, modules.max_query_tokens
    return replace(
        text,
        max_length=text.max_length if document is None else min(document, limit),
        max_query_length=text.max_length if query is None else min(query, limit),
    )


def _multi_vector(body: Path, dense: tuple[Dense, ...], modules: Modules) -> Extras:
    """Words of the skiplist that are no tokens are left out, as sentence-transformers does."""
    layers = tuple(HeadLayer(one.linear, one.activation) for one in dense)
    skipped = frozenset(known_ids(body, modules.skiplist).values())
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


def _read_dense(folder: Path, modules: tuple[DenseModule, ...], width: int) -> tuple[Dense, ...]:
    dense = []
    for module in modules:
        if module.in_features != width:
            raise WeightsError(f"{module.path} takes vectors {module.in_features} wide, it is given {width}")
        taker = Taker(read_tensors(folder / module.path), {"linear": "linear"}, {"linear": module.bias})
        linear = taker.linear("linear", module.out_features, module.in_features)
        taker.finish()
        dense.append(Dense(linear, module.activation))
        width = module.out_features
    return tuple(dense)
