"""Slow imports, done once by the process that every worker is forked from."""

from __future__ import annotations

import contextlib

import halfulp.lab.train

with contextlib.suppress(ModuleNotFoundError):  # the place that uses the package reports it
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: F401

__all__ = ["halfulp"]
