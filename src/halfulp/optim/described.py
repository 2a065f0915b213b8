"""Docstrings of the optimizers, built from the rule and from the classes that define the arguments.

``help(halfulp.AdamW)`` describes every argument, and each description is written only once.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from halfulp.engine.optimizer import RuleOptimizer
from halfulp.engine.options import Options, TorchOptions
from halfulp.engine.storage import StorageOptions
from halfulp.rules.base import Rule

__all__ = ["described", "parameters", "section", "with_section"]

SECTION = re.compile(r"^Parameters\n-+\n(?P<body>.*?)(?=^\w[^\n]*\n-+\n|\Z)", re.MULTILINE | re.DOTALL)
"""The Parameters section of a numpy docstring, up to the next section."""


@functools.cache
def parameters(doc: str | None) -> dict[str, str]:
    r"""Return the description of each parameter in a numpy docstring. Names that share an entry get the same text.

    Examples
    --------
    >>> parameters("Mean.\n\nParameters\n----------\na, b\n    Numbers.\n")
    {'a': 'Numbers.', 'b': 'Numbers.'}
    """
    found = SECTION.search(inspect.cleandoc(doc or ""))
    if found is None:
        return {}
    entries = re.findall(r"^(\w.*)\n((?:(?: +.*)?\n?)*)", found["body"].rstrip() + "\n", re.MULTILINE)
    return {name.strip(): inspect.cleandoc("\n" + text).strip() for names, text in entries for name in names.split(",")}


def described(cls: type[Any]) -> None:
    """Give an optimizer class a docstring that describes all of its arguments, in the order of its signature.

    Descriptions in the class itself take precedence, then those of its hyper-parameters, then those of
    :class:`~halfulp.engine.options.Options`.
    """
    text = inspect.cleandoc(cls.__dict__.get("__doc__") or _words(cls, cls.rule))
    shared = (RuleOptimizer, Options, StorageOptions, TorchOptions)
    known: dict[str, str] = {}
    for source in dict.fromkeys((*shared, *reversed(cls.hyper.__mro__), *reversed(cls.__mro__))):
        known.update(parameters(source.__dict__.get("__doc__")))
    names = [name for name in inspect.signature(cls).parameters if name in known]
    cls.__doc__ = with_section(text, names, known)


def with_section(text: str, names: Iterable[str], known: Mapping[str, str]) -> str:
    """Return a docstring with the Parameters section of these names, in place of its own if it has one."""
    before, header, after = _cut(SECTION.sub("", text))
    return f"{before.rstrip()}\n\n{section(names, known)}\n\n{header}{after}".strip() + "\n"


def section(names: Iterable[str], known: Mapping[str, str]) -> str:
    """Return the Parameters section of these names. Neighbours with the same description share an entry."""
    entries = [
        f"{', '.join(group)}\n{textwrap.indent(said, '    ')}"
        for said, group in itertools.groupby(names, known.__getitem__)
    ]
    return "\n".join(["Parameters", "----------", *entries])


def _words(cls: type[Any], rule: Rule) -> str:
    """Return a docstring made from the rule's declaration, without the Parameters section."""
    if not rule.summary:
        return f"The optimizer of the rule {rule.name!r}."
    said = " ".join(f"{rule.source + '.' if rule.source else ''} {rule.notes}".split())
    example = inspect.cleandoc(rule.example)
    if not example.startswith(">>>"):
        arguments = example or f'lr={cls.hyper.__dataclass_fields__["lr"].default}, state="8bit"'
        home = "halfulp" if cls.__module__.startswith("halfulp.") else cls.__module__
        example = f"""\
>>> import torch
>>> from {home} import {cls.__name__}
>>> model = torch.nn.Linear(64, 64)
>>> optimizer = {cls.__name__}(model.parameters(), {arguments})"""
    return f"{rule.title}: {rule.summary}.\n\n{textwrap.fill(said, 100)}\n\nExamples\n--------\n{example}\n"


def _cut(text: str) -> tuple[str, str, str]:
    """Split a docstring before and after the heading of its first section."""
    found = re.search(r"^\w[^\n]*\n-+\n", text, re.MULTILINE)
    if found is None:
        return text, "", ""
    return text[: found.start()], found[0], text[found.end() :]
