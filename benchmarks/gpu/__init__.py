"""The GPU engine, checked and timed in one run: see __main__.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the other benchmarks are scripts, and import each other plainly
