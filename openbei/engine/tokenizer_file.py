"""tokenizer.json, and what the model's other files say beside it -> the tokenizers library, ready to encode.

Owns all that is ever changed in the library: normalizer, added tokens, and the specials around every text; never
touches an input.
"""

from collections.abc import Sequence
from dataclasses import asdict

import tokenizers
from tokenizers import processors
from tokenizers.normalizers import BertNormalizer, Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence

from openbei.errors import ModelError
from openbei.weights.checkpoint import Edge, TextSpec


def read_tokenizer(text: TextSpec) -> tokenizers.Tokenizer:
    """TextSpec -> the library's tokenizer, with its baked truncation and padding off.

    Raises ModelError if the file cannot be read, or lacks a special token that the model's other files put around
    every text.
    """
    try:
        library = tokenizers.Tokenizer.from_file(str(text.tokenizer_file))
    except Exception as error:  # the library raises bare Exception
        raise ModelError(f"{text.tokenizer_file.name} cannot be read: {error}") from error
    library.no_truncation()
    library.no_padding()
    library.encode_special_tokens = text.split_special_tokens
    _set_normalizer(library, text)
    _add_tokens(library, text)
    _set_markers(library, text.markers)
    _set_edges(library, text)
    return library


def around(library: tokenizers.Tokenizer) -> tuple[list[str], list[str]]:
    """The special tokens that it puts before a text, and after it."""
    encoding = library.encode("a")
    sides, tokens = encoding.sequence_ids, encoding.tokens
    num_before = sides.index(0) if 0 in sides else 0
    num_after = sides[::-1].index(0) if 0 in sides else 0
    return tokens[:num_before], tokens[len(tokens) - num_after :]


def _set_normalizer(library: tokenizers.Tokenizer, text: TextSpec) -> None:
    present = library.normalizer
    if isinstance(present, BertNormalizer):
        for name, value in text.bert_normalizer.items():
            setattr(present, name, value)
    if text.lower_case:  # harmless where the file lower-cases too
        library.normalizer = Lowercase() if present is None else NormalizerSequence([Lowercase(), present])


def _add_tokens(library: tokenizers.Tokenizer, text: TextSpec) -> None:
    """Added tokens that tokenizer_config.json names otherwise than tokenizer.json, as transformers adds them."""
    known = {repr(token) for token in library.get_added_tokens_decoder().values()}
    tokens = (tokenizers.AddedToken(**asdict(token)) for _, token in sorted(text.added_tokens.items()))
    if other := [token for token in tokens if repr(token) not in known]:
        library.add_tokens(other)


def _set_markers(library: tokenizers.Tokenizer, markers: Sequence[str]) -> None:
    """Make one token of each marker that the vocabulary has but a text would not become, as sentence-transformers."""
    for marker in markers:
        known = [one for one in (marker, *marker.split(maxsplit=1)[:1]) if library.token_to_id(one) is not None]
        if known and library.encode(known[0], add_special_tokens=False).tokens != known[:1]:
            library.add_special_tokens([tokenizers.AddedToken(known[0], normalized=False, special=True)])


def _set_edges(library: tokenizers.Tokenizer, text: TextSpec) -> None:
    """Make the library put around every text what TextSpec wants there, where tokenizer.json says otherwise."""
    present = around(library)
    before, after = _edge(present[0], text.first), _edge(present[1], text.last)
    if (before, after) == present:
        return
    for token in (*before, *after):
        if library.token_to_id(token) is None:
            raise ModelError(f"{text.tokenizer_file.name} has no token {token!r}, which every text needs around it")
    template = _template(library, before, after)
    given = library.post_processor
    steps = [*given] if isinstance(given, processors.Sequence) else [given]  # type: ignore[misc]
    kept = [step for step in steps if isinstance(step, processors.ByteLevel)]  # which sets offsets
    library.post_processor = processors.Sequence([*kept, template]) if kept else template


def _edge(present: list[str], edge: Edge | None) -> list[str]:
    """What stands at one end of a text now -> what shall. A wanted token is never put next to another special."""
    if edge is None:
        return present
    if edge.wanted:
        return present or [edge.token]
    return [] if present == [edge.token] else present


def _template(library: tokenizers.Tokenizer, before: list[str], after: list[str]) -> processors.TemplateProcessing:
    """Tokens around a text -> the template; a pair has them around both its parts, as transformers builds it."""
    first, second = (
        [*(f"{token}:{side}" for token in before), f"${name}:{side}", *(f"{token}:{side}" for token in after)]
        for side, name in enumerate("AB")
    )
    ids = [(token, library.token_to_id(token)) for token in {*before, *after}]
    return processors.TemplateProcessing(single=first, pair=[*first, *second], special_tokens=ids)
