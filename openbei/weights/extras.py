"""What bge-m3 has beside its vector: a weight for each token, of a sparse vector, and a vector for each token.

Owns the two files that hold these layers, and which tokens have no part in them. Source: FlagOpen/FlagEmbedding
(inference/embedder/encoder_only/m3.py and finetune/embedder/encoder_only/m3/modeling.py).
"""

import importlib.util
import logging
from dataclasses import dataclass, field
from pathlib import Path

from openbei.model.spec import HeadLayer, Linear
from openbei.weights.checkpoint import ByToken, TextSpec
from openbei.weights.fill import Taker
from openbei.weights.tensors import read_safetensors_file, read_torch_file
from openbei.weights.verdict import token_ids

SPARSE_FILE, MULTI_FILE = "sparse_linear.pt", "colbert_linear.pt"
_UNWEIGHED_ROLES = ("cls_token", "eos_token", "pad_token", "unk_token")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Extras:
    """The layers, each () where its file is not there, and the rules of tokens that come with them."""

    weigher: tuple[HeadLayer, ...] = ()
    multi: tuple[HeadLayer, ...] = ()
    by_token: ByToken = field(default_factory=ByToken)


def read_extras(body: Path, width: int, text: TextSpec) -> Extras:
    """The folder of a network, the width of its states -> its Extras. Raises WeightsError for layers that do not fit.

    The files are PyTorch's; where PyTorch is not installed the model is served without them, and the log says so.
    """
    files = [name for name in (SPARSE_FILE, MULTI_FILE) if _there(body / name) is not None]
    if not files:
        return Extras()
    pickled = any((body / name).exists() for name in files)
    if pickled and importlib.util.find_spec("torch") is None:
        log.warning("served without %s, which PyTorch alone can read: pip install torch", " and ".join(files))
        return Extras()
    weigher = (HeadLayer(_linear(body / SPARSE_FILE, 1, width), "relu"),) if SPARSE_FILE in files else ()
    multi = (HeadLayer(_linear(body / MULTI_FILE, None, width)),) if MULTI_FILE in files else ()
    return Extras(weigher, multi, ByToken(_unweighed(body, text), num_dropped=1))


def _there(file: Path) -> Path | None:
    """PyTorch's file, or the safetensors that an artifact has in its place."""
    return next((path for path in (file, file.with_suffix(".safetensors")) if path.exists()), None)


def _linear(file: Path, rows: int | None, width: int) -> Linear:
    """weight (rows, width), as many rows as there are if None, and bias."""
    path = _there(file)
    assert path is not None
    read = read_safetensors_file if path.suffix == ".safetensors" else read_torch_file
    tensors = {f"linear.{name}": tensor for name, tensor in read(path).items()}
    taker = Taker(tensors, {"linear": "linear"})
    linear = taker.linear("linear", taker.rows("linear") if rows is None else rows, width)
    taker.finish()
    return linear


def _unweighed(body: Path, text: TextSpec) -> frozenset[int]:
    tokens = {text.special_tokens[role] for role in _UNWEIGHED_ROLES if role in text.special_tokens}
    return frozenset(token_ids(body, tuple(tokens)))
