"""Shapes of launches: which few sizes a batch is rounded up to, and how many tokens a batch should have.

A CUDA graph is recorded for one shape, so batches are rounded up to a bucket: some tokens, some sequences. Owns these
numbers; never touches a device.
"""

from collections.abc import Mapping, Sequence

from openbei.model.spec import Size

NUM_TOKENS = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
NUM_SEQUENCES = (1, 8, 32, 128, 512)
SHORTEST_MEAN = 4  # tokens a sequence, below which no bucket is made
STEP = 256  # past the largest bucket, tokens are rounded up to a multiple of this
PATIENCE_S = 0.016
ENOUGH = 0.9  # of the best rate


def buckets(max_length: int) -> list[Size]:
    """All sizes that batches of sequences of up to max_length tokens may need, the smallest first."""
    below = (0, *NUM_TOKENS)
    return [
        Size(tokens, sequences)
        for fewer, tokens in zip(below, NUM_TOKENS, strict=False)
        for sequences in NUM_SEQUENCES
        if (sequences == 1 or sequences * SHORTEST_MEAN <= tokens) and fewer < sequences * max_length
    ]


def bucket_of(sizes: Sequence[Size], num_tokens: int, num_sequences: int) -> Size | None:
    """The first of the sizes, smallest first, that holds a batch; None if none does."""
    return next((size for size in sizes if size.num_tokens >= num_tokens and size.num_sequences >= num_sequences), None)


def loose_size(num_tokens: int, num_sequences: int) -> Size:
    """The size of a batch that no bucket holds: its tokens rounded up, its sequences as they are."""
    return Size(-(-num_tokens // STEP) * STEP, num_sequences)


def best_tokens(seconds: Mapping[int, float]) -> int:
    """Seconds that batches of so many tokens take -> the size to aim at.

    The largest that keeps the next request waiting no longer than PATIENCE_S; where even the smallest takes longer,
    the fewest tokens that come near the best rate.
    """
    patient = [tokens for tokens, taken in seconds.items() if taken <= PATIENCE_S]
    if patient:
        return max(patient)
    enough = ENOUGH * max(tokens / taken for tokens, taken in seconds.items())
    return min(tokens for tokens, taken in seconds.items() if tokens / taken >= enough)
