"""The heads of all families, config.json -> HeadRow, keyed in the rows by the end of an architecture's name.

Sources: the ForSequenceClassification and ForTokenClassification classes of transformers.
"""

from dataclasses import replace

from openbei.errors import UnsupportedModel
from openbei.model.spec import Pooling
from openbei.weights.families.row import Config, HeadPart, HeadRow, activation

SEQUENCE, TOKEN = "ForSequenceClassification", "ForTokenClassification"
_LLAMA_POOLINGS: dict[str, Pooling] = {"avg": "mean", "cls": "cls", "last": "last_token"}


def pooler_head(config: Config) -> HeadRow:
    """BERT's pooler and a classifier, on the first token."""
    return HeadRow((HeadPart("pooler.dense", "tanh"), HeadPart("classifier")))


def roberta_head(config: Config) -> HeadRow:
    """RoBERTa's two layers, on the first token."""
    return HeadRow((HeadPart("classifier.dense", "tanh"), HeadPart("classifier.out_proj")))


def distilbert_head(config: Config) -> HeadRow:
    """DistilBERT's two layers, on the first token."""
    return HeadRow((HeadPart("pre_classifier", "relu"), HeadPart("classifier")))


def token_head(config: Config) -> HeadRow:
    """One classifier on every token."""
    return HeadRow((HeadPart("classifier"),), per_token=True)


def modern_head(config: Config) -> HeadRow:
    """ModernBERT's dense layer, activation and norm, then a classifier; on the first token or on the mean."""
    pooling = config.get("classifier_pooling", "cls")
    if pooling not in ("cls", "mean"):
        raise UnsupportedModel(f"config.json has classifier_pooling {pooling!r}; supported: cls, mean")
    dense = HeadPart(
        "head.dense",
        activation("classifier_activation", config.get("classifier_activation", "gelu")),
        norm="head.norm",
        bias=bool(config.get("classifier_bias")),
        norm_bias=bool(config.get("norm_bias")),
    )
    return HeadRow((dense, HeadPart("classifier")), pooling)


def modern_token_head(config: Config) -> HeadRow:
    """The same layers on every token."""
    return replace(modern_head(config), pooling="cls", per_token=True)


def score_head(config: Config) -> HeadRow:
    """The state of the last token, by position, through one matrix.

    transformers takes the last token whose id is not the pad id. The two differ only where a text itself ends in the
    pad id (a pad id that is also the end of a turn): there transformers scores the token before.
    """
    return HeadRow((HeadPart("score", bias=False),), pooling="last_token")


def score_token_head(config: Config) -> HeadRow:
    """The decoders' matrix on every token, with a bias unless the config says otherwise."""
    bias = config.get("token_classification_bias", True)
    return HeadRow((HeadPart("score", bias=bool(bias)),), per_token=True)


def bidirectional_llama_head(config: Config) -> HeadRow:
    """NVIDIA's: one matrix, on the mean of the states unless the config names another of them.

    Source: NVIDIA-NeMo/Automodel, nemo_automodel/components/models/llama_bidirectional/model.py.
    """
    pooling, temperature = config.get("pooling", "avg"), config.get("temperature", 1.0)
    if pooling not in _LLAMA_POOLINGS:
        raise UnsupportedModel(f"config.json has pooling {pooling!r}; supported: {', '.join(_LLAMA_POOLINGS)}")
    if temperature != 1.0:
        raise UnsupportedModel(f"config.json has temperature {temperature!r}; supported: 1.0")
    return HeadRow((HeadPart("score", bias=False),), _LLAMA_POOLINGS[pooling])
