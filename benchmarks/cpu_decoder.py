"""How fast does this CPU run a decoder as an embedder, next to transformers?

    python benchmarks/cpu_decoder.py       # a 0.6B Llama shape, about ten minutes, 8 GB of memory and 1.2 GB of disk

A Llama of random weights N(0, 0.02), with the sizes of Qwen3-0.6B (28 layers, 1024 wide, 16 heads over 8 of 128,
feed-forward 3072), stored in bfloat16. One sequence of token ids of each length goes in, the last token's vector comes
out. openbei (float32 accumulation, precision by what the CPU has) and transformers in bfloat16 take turns, each in its
own process and after one round that is not counted; the ratio is the median over rounds of that round's ratio.

It does not mean: batches, other shapes, or quality; random weights say nothing of that. `cosine` compares the two
vectors, and with random weights bfloat16 alone moves it by a few thousandths.
"""

import argparse
import contextlib
import statistics
import tempfile
from pathlib import Path

import harness
import numpy as np
from peers import Way

LENGTHS = (32, 128, 512, 2048)
SIZES = {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8}
SIZES |= {"head_dim": 128, "intermediate_size": 3072, "vocab_size": 151_936, "max_position_embeddings": 4096}
SMALL = {"num_hidden_layers": 2, "vocab_size": 1000}


def transformers_bfloat16(folder: Path) -> Way:
    """transformers' LlamaModel with bfloat16 weights."""
    import torch
    from transformers import LlamaModel

    model = LlamaModel.from_pretrained(folder, dtype=torch.bfloat16).eval()

    def embed(ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor([ids]), use_cache=False).last_hidden_state[:, -1].float().numpy()

    return Way(embed)


def openbei_in_process(folder: Path) -> Way:
    """The engine, with the defaults of a user."""
    import openbei
    from openbei.engine.request import Request

    engine = openbei.load(str(folder), pooling="last-token")
    return Way(lambda ids: engine.submit(Request(inputs=[ids])).result().rows)


def save_model(folder: Path, sizes: dict[str, int]) -> None:
    """A random model and a tokenizer that nobody asks -> a folder."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    LlamaModel(LlamaConfig(**sizes)).to(torch.bfloat16).save_pretrained(folder)
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))


WAYS = (openbei_in_process, transformers_bfloat16)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--quick", action="store_true", help="two layers, one round: does it work at all?")
    chosen = options.parse_args()
    sizes, rounds = (SIZES | SMALL, 1) if chosen.quick else (SIZES, chosen.rounds)
    rows, result = [], {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        save_model(folder, sizes)
        ours, theirs = (stack.enter_context(harness.Worker(make, folder)) for make in WAYS)
        random = np.random.default_rng(0)
        for length in LENGTHS:
            ids = random.integers(1, sizes["vocab_size"], length).tolist()
            turns = [(ours.run(ids), theirs.run(ids)) for _ in range(rounds + 1)][1:]
            seconds = [[turn[way][0] for turn in turns] for way in (0, 1)]
            ratio = statistics.median(slow / fast for fast, slow in zip(*seconds, strict=True))
            cosine = harness.least_cosine(turns[-1][0][1], turns[-1][1][1])
            medians = [statistics.median(way) * 1e3 for way in seconds]
            result[str(length)] = {"openbei_ms": medians[0], "transformers_ms": medians[1], "ratio": ratio}
            cells = {"openbei": f"{medians[0]:,.1f} ms", "transformers bf16": f"{medians[1]:,.1f} ms"}
            rows.append({"tokens": str(length), **cells, "times as fast": f"{ratio:.2f}", "cosine": f"{cosine:.5f}"})
    harness.report(
        f"One sequence, last token; {rounds} round(s)", rows, {"benchmark": "cpu_decoder", "lengths": result}
    )


if __name__ == "__main__":
    main()
