"""Tiny models run fastest on one thread: with more, PyTorch waits longer for its threads than they work."""

import torch

torch.set_num_threads(1)
