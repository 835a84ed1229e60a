"""A hub on loopback with the tiny model of true shape of any deployment, and Truss's own schema."""

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


@pytest.fixture(scope="session")
def truss() -> Any:
    """Truss's schema, without the package's top module, which imports its cloud clients."""
    found = importlib.util.find_spec("truss")
    if found is None or not found.submodule_search_locations:
        pytest.skip("truss is not installed: pip install --no-deps truss==0.18.35")
    package = ModuleType("truss")
    package.__path__ = list(found.submodule_search_locations)
    before = sys.modules.get("truss")
    sys.modules["truss"] = package
    try:
        from truss.base import trt_llm_config, truss_config
    finally:
        if before is None:
            del sys.modules["truss"]
        else:
            sys.modules["truss"] = before
    trt_llm_config.get_hf_config = lambda repo, revision: None  # it would ask the hub
    return SimpleNamespace(config=truss_config, trt_llm=trt_llm_config)
