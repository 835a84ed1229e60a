"""A PyTorch for CPUs brings no Triton: the modules must import, and the twins run, without it."""

import importlib
import pkgutil
import sys

import pytest
import torch

import openbei.model
from openbei.model import kernels


def test_every_module_imports_and_a_twin_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [kernels.__name__, *(f"{kernels.__name__}.{each.name}" for each in pkgutil.iter_modules(kernels.__path__))]
    monkeypatch.setattr(openbei.model, "kernels", kernels)  # importing again sets it: put it back
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    modules = [importlib.import_module(name) for name in names]
    assert len(modules) > 4
    assert not modules[0].HAS_TRITON
    pooled = importlib.import_module(f"{kernels.__name__}.pool").pool(
        torch.ones(3, 2), torch.tensor([0, 3], dtype=torch.int32), "mean"
    )
    assert pooled.tolist() == [[1.0, 1.0]]
    for name in names:
        sys.modules.pop(name)  # what was imported before comes back
