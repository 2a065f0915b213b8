"""Signatures and docstrings of method classes, generated from their declarations."""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import fields
from typing import Any

from halfulp.optim.described import parameters, section

__all__ = ["described"]


def described(cls: type[Any], base: type[Any]) -> None:
    """Give a class the signature and docstring that its method declares.

    `base` describes the arguments that all methods have.
    """
    method = cls.method
    own = {f.name: f for f in fields(method.hyper)}
    given = inspect.signature(base.__init__).parameters
    options = [p for n, p in given.items() if n not in ("self", "optimizer", "arguments", "more")]
    kind = inspect.Parameter
    cls.__signature__ = inspect.Signature(
        [
            given["optimizer"],
            *(kind(n, kind.POSITIONAL_OR_KEYWORD, default=f.default, annotation=f.type) for n, f in own.items()),
            *(p.replace(default=method.every) if p.name == "every" else p for p in options),
            kind("more", kind.VAR_KEYWORD, annotation=Any),
        ]
    )
    known: dict[str, str] = {}
    for source in (base, *reversed(method.hyper.__mro__)):
        known.update(parameters(source.__dict__.get("__doc__")))
    notes = textwrap.fill(" ".join(f"{method.source}. {method.notes}".split()), 110)
    example = f"""\
>>> import torch, halfulp
>>> from halfulp.workers import Alone, {method.title}  # Alone: this process is the only worker
>>> model = torch.nn.Linear(64, 64)
>>> inside = halfulp.AdamW(model.parameters(), lr=1e-3, state="8bit")
>>> optimizer = {method.title}(inside, {method.example}{", " if method.example else ""}group=Alone())"""
    cls.__doc__ = "\n\n".join([
        f"{method.title}: {method.summary}.", notes, section(cls.__signature__.parameters, known),
        f"Examples\n--------\n{example}\n",
    ])  # fmt: skip
