"""Shapes of launches and the size of batches: which bucket holds what, and when a batch is large enough."""

import pytest

from openbei.engine.buckets import NUM_TOKENS, best_tokens, bucket_of, buckets, loose_size
from openbei.model.spec import Size


def test_every_batch_that_could_be_recorded_has_a_bucket_that_wastes_little() -> None:
    sizes = buckets(max_length=512)
    assert sizes == sorted(sizes)
    for num_tokens in range(1, NUM_TOKENS[-1] + 1, 7):
        for length in (4, 16, 128, 512):
            num_sequences = min(-(-num_tokens // length), 512)
            size = bucket_of(sizes, num_tokens, num_sequences)
            assert size is not None, (num_tokens, num_sequences)
            assert size.num_tokens >= num_tokens
            assert size.num_sequences >= num_sequences
            if num_tokens > 256 and length >= 16:
                assert size.num_tokens <= 1.5 * num_tokens


def test_a_bucket_that_no_batch_can_fill_is_not_made() -> None:
    lone = [size.num_tokens for size in buckets(max_length=512) if size.num_sequences == 1]
    assert lone == [16, 32, 64, 96, 128, 192, 256, 384, 512]
    assert 768 in [size.num_tokens for size in buckets(max_length=513) if size.num_sequences == 1]


def test_what_no_bucket_holds_is_rounded_up_loosely() -> None:
    sizes = buckets(max_length=512)
    assert bucket_of(sizes, 4097, 9) is None
    assert bucket_of(sizes, 600, 600) is None
    assert loose_size(4097, 9) == Size(4352, 9)
    assert loose_size(4096, 9) == Size(4096, 9)


@pytest.mark.parametrize(
    ("milliseconds", "best"),
    [
        ({256: 0.96, 512: 1.16, 1024: 1.73, 2048: 2.88, 4096: 5.19, 8192: 9.79}, 8192),  # BERT-large, predicted
        ({256: 7.5, 512: 12.7, 1024: 24.4, 2048: 47.9, 4096: 94.8, 8192: 189.0}, 512),  # a 7B in bfloat16
        ({256: 4.74, 512: 7.94, 1024: 14.8, 2048: 28.6, 4096: 56.1, 8192: 111.0}, 1024),  # the same in fp8
        ({256: 35.0, 512: 65.0, 1024: 129.0, 2048: 257.0}, 256),  # a 70B
        ({256: 20.0, 512: 30.0, 1024: 58.0, 2048: 115.0}, 512),
    ],
)
def test_a_batch_is_as_large_as_nobody_minds_waiting_for(milliseconds: dict[int, float], best: int) -> None:
    assert best_tokens({tokens: taken / 1e3 for tokens, taken in milliseconds.items()}) == best
