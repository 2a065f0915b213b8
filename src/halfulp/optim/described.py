"""Docstrings of the optimizers: every argument, in the words of the class that it comes from.

``help(halfulp.AdamW)`` shows what can be passed, and none of it is written twice.
"""

from __future__ import annotations

import inspect
import itertools
import re
from typing import Any, TypeVar

from halfulp.engine.optimizer import RuleOptimizer
from halfulp.engine.options import TorchOptions
from halfulp.engine.storage import StorageOptions

__all__ = ["described", "parameters"]

SECTION = re.compile(r"^Parameters\n-+\n(?P<body>.*?)(?=^\w[^\n]*\n-+\n|\Z)", re.MULTILINE | re.DOTALL)
"""The section of a numpy docstring, up to the next one."""
Optimizer = TypeVar("Optimizer", bound=type[Any])


def parameters(doc: str | None) -> dict[str, str]:
    r"""What a numpy docstring says of each parameter, by name; the same text for names that share an entry.

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


def described(cls: Optimizer, hyper: type[Any] | None = None) -> Optimizer:
    """An optimizer class whose docstring describes all of its arguments, in the order of its signature.

    Parameters
    ----------
    cls
        The class. Its own words come first, then those of `hyper`, then those of :class:`RuleOptimizer`.
    hyper
        Class of its hyper-parameters.
    """
    own = cls.__dict__.get("__doc__")
    if own is None:  # python -OO, or nothing to add to
        return cls
    theirs = () if hyper is None else hyper.__mro__
    common = (RuleOptimizer, StorageOptions, TorchOptions)
    known: dict[str, str] = {}
    for source in (*common, *reversed(theirs), *(k for k in reversed(cls.__mro__) if k not in common)):
        known.update(parameters(source.__dict__.get("__doc__")))
    names = [n for n in _arguments(cls) if n in known]
    entries = [
        f"{', '.join(group)}\n" + "\n".join(f"    {line}".rstrip() for line in text.splitlines())
        for text, group in itertools.groupby(names, known.__getitem__)
    ]
    text = inspect.cleandoc(own)
    section = "Parameters\n----------\n" + "\n".join(entries) + "\n\n"
    text = SECTION.sub("", text)
    before, header, after = _cut(text)
    cls.__doc__ = f"{before.rstrip()}\n\n{section}{header}{after}".rstrip() + "\n"
    return cls


def _arguments(cls: type[Any]) -> list[str]:
    """Names in the signature, with those of ``**options``."""
    found: list[str] = []
    for parameter in inspect.signature(cls).parameters.values():
        options = parameter.kind is parameter.VAR_KEYWORD
        found += TorchOptions.__annotations__ if options else [parameter.name]
    return found


def _cut(text: str) -> tuple[str, str, str]:
    """What stands before the first section, its heading, and the rest."""
    found = re.search(r"^\w[^\n]*\n-+\n", text, re.MULTILINE)
    if found is None:
        return text, "", ""
    return text[: found.start()], found[0], text[found.end() :]
