"""Imported once by the process that every worker is forked from: what takes seconds to import."""

from __future__ import annotations

import contextlib

import halfulp.lab.train

with contextlib.suppress(ModuleNotFoundError):  # the message comes from where the package is used
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: F401

__all__ = ["halfulp"]
