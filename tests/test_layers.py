"""Imports follow the order in docs/architecture.md: no folder imports from one below it."""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "halfulp"
DRAWN = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
SPINE = re.findall(r"^(\w+)(?:\.py|/)  ", DRAWN, re.MULTILINE)
LATE = {("engine", "theory"): 'reset="auto" asks the planner'}
"""Imports within functions that go downwards, and why."""


def unit(module: str) -> str:
    """Top-level file or folder of a module of ours; empty for the package itself."""
    return (*module.split("."), "")[1]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(unit, whether it happens on import) of everything of ours that a file imports; types alone do not count."""

    def walk(node: ast.AST, at_once: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom) and node.module == "halfulp":
            yield from ((a.name, at_once) for a in node.names if a.name != "__version__")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("halfulp."):
            yield unit(node.module or ""), at_once
        elif isinstance(node, ast.Import):
            yield from ((unit(a.name), at_once) for a in node.names if a.name.startswith("halfulp."))
        at_once = at_once and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, at_once)

    return walk(ast.parse(path.read_text()), True)


def files() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if first not in ("__init__", "__main__"):  # public names, and the command line
            yield first, path


def test_the_page_names_what_there_is() -> None:
    assert set(SPINE) == {name for name, _ in files()}


def test_imports_go_upwards_only() -> None:
    wrong = []
    for name, path in files():
        above = SPINE[: SPINE.index(name) + 1]
        wrong += [
            f"{path.relative_to(ROOT)} imports {other}"
            for other, at_once in imports(path)
            if other not in above and (at_once or (name, other) not in LATE)
        ]
    assert not wrong


def test_no_circles() -> None:
    needs: dict[str, set[str]] = {}
    for name, path in files():
        needs.setdefault(name, set()).update(other for other, at_once in imports(path) if at_once and other != name)
    assert len(list(graphlib.TopologicalSorter(needs).static_order())) == len(needs)


MADE = {
    "arange",
    "as_tensor",
    "empty",
    "eye",
    "full",
    "linspace",
    "ones",
    "rand",
    "randint",
    "randn",
    "randperm",
    "tensor",
    "zeros",
}
APART = {"cli", "lab", "testing"}
"""Folders of programs that run on their own, not within somebody's loop."""


def test_tensors_are_made_on_a_device_that_is_named() -> None:
    """Others would be where ``torch.set_default_device`` says, which is not where a loop's parameters have to be."""
    wrong = []
    for name, path in files():
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        made = [n for n in calls if ast.unparse(n.func) in {f"torch.{m}" for m in MADE}]
        unnamed = [n for n in made if all(k.arg != "device" for k in n.keywords)]
        wrong += [f"{path.relative_to(ROOT)}:{n.lineno}" for n in unnamed if name not in APART]
    assert not wrong
