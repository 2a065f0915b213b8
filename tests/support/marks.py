"""Marks of files of tests."""

import importlib.util

import pytest

NEEDS_TRITON = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
INTERPRETED = [NEEDS_TRITON, pytest.mark.filterwarnings("ignore::RuntimeWarning")]
"""Of files that run Triton's kernels: the interpreter uses numpy, which warns of infinities and NaNs."""
