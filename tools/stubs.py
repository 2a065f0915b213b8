"""Generate type stubs of ``halfulp`` and ``halfulp.optim`` from the declarations of the optimizers.

Both modules create their names on import, which type checkers and editors cannot follow. The stubs are committed, and a
test checks that they are up to date:

    python tools/stubs.py
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import halfulp
from halfulp.optim import OPTIMIZERS, HyperOptimizer

PACKAGE = Path(halfulp.__file__).parent
HEAD = "# Written by tools/stubs.py from the declarations in rules/.\n"


def optim() -> str:
    """Return the text of ``halfulp/optim/__init__.pyi``: each optimizer with its arguments."""
    written = [cls for cls in OPTIMIZERS if cls.__module__ != "halfulp.optim"]
    lines = [
        "from typing import Any",
        "",
        "from torch import Tensor",
        "from typing_extensions import Unpack",
        "",
        "from halfulp.engine.options import TorchOptions",
        *(f"from {cls.__module__} import {cls.__name__} as _{cls.__name__}" for cls in written),
        "from halfulp.optim.base import HyperOptimizer as HyperOptimizer",
        "from halfulp.optim.base import optimizer as optimizer",
        "",
        "__all__: list[str]",
        "OPTIMIZERS: tuple[type[HyperOptimizer], ...]",
    ]
    for cls in OPTIMIZERS:
        lines += ["", *_class(cls, f"_{cls.__name__}" if cls in written else "HyperOptimizer")]
    return HEAD + "\n".join(lines) + "\n"


def _class(cls: type[HyperOptimizer], base: str) -> list[str]:
    given = inspect.signature(cls.hyper).parameters.values()
    by_name = [p for p in given if p.kind is p.KEYWORD_ONLY]
    return [
        f"class {cls.__name__}({base}):",
        f'    """{cls.rule.title}: {cls.rule.summary}."""',
        "",
        "    def __init__(",
        "        self,",
        "        params: Any,",
        *(_argument(p) for p in given if p not in by_name),
        *(["        *,"] if by_name else []),
        *(_argument(p) for p in by_name),
        "        **options: Unpack[TorchOptions],",
        "    ) -> None: ...",
    ]


def _argument(parameter: inspect.Parameter) -> str:
    default = repr(parameter.default).replace("'", '"')
    return f"        {parameter.name}: {parameter.annotation} = {default},"


def package() -> str:
    """Return the text of ``halfulp/__init__.pyi``: where each public name is defined."""
    lines = [f"from halfulp.{home} import {name} as {name}" for name, home in halfulp._HOME.items()]
    lines += [f"from halfulp.optim import {name} as {name}" for name in halfulp.optim.__all__]
    aliases = []
    for name, module in halfulp._MODULES.items():
        parent, _, last = f"halfulp.{module}".rpartition(".")
        if name == last:
            lines.append(f"from {parent} import {last} as {name}")
        else:
            aliases.append(f"{name} = {last}")
    names = [f'    "{name}",' for name in sorted(halfulp.__all__)]
    return HEAD + "\n".join([*sorted(lines), "", *aliases, "__version__: str", "__all__ = [", *names, "]"]) + "\n"


STUBS = {PACKAGE / "__init__.pyi": package, PACKAGE / "optim" / "__init__.pyi": optim}


def main() -> None:
    """Write both stubs."""
    for path, text in STUBS.items():
        made = text()
        ast.parse(made)
        path.write_text(made)


if __name__ == "__main__":
    main()
