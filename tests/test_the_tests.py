"""The tests themselves: none imports another, each asserts something, and every assertion can fail."""

from __future__ import annotations

import ast
import itertools
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
MODULES = {p: ast.parse(p.read_text()) for p in sorted(TESTS.rglob("*.py"))}
RUNNING_IS_THE_TEST = {"test_python_blocks_run", "test_the_examples_of_the_page_run"}
"""Tests of code that raises where it fails, and of nothing else."""
CHECKS = {"raises", "warns", "fail"}
"""Functions of pytest that end a test which does not see what it should."""
VERDICTS = {"equal", "allclose", "isclose", "all", "any", "isinstance", "startswith", "endswith", "array_equal"}
"""Functions that only return whether something holds: called as a statement they check nothing."""
ZERO = ast.dump(ast.Constant(0))


@cache
def called(tree: ast.AST) -> set[str]:
    """Names of what is called anywhere in a tree, without the modules or objects they belong to."""
    functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in functions}


@cache
def checks(tree: ast.AST) -> bool:
    """Whether anything in a tree asserts, or runs a process that must end well."""
    return any(
        isinstance(node, ast.Assert) or (isinstance(node, ast.keyword) and ast.unparse(node) == "check=True")
        for node in ast.walk(tree)
    )


def asserting(path: Path) -> set[str]:
    """Names of functions that assert, directly or through each other: those of a module, and what it may share."""
    shared = [tree for p, tree in MODULES.items() if p.parent != TESTS]
    bodies = {n.name: n for t in (*shared, MODULES[path]) for n in ast.walk(t) if isinstance(n, ast.FunctionDef)}
    found = {name for name, body in bodies.items() if checks(body)} | CHECKS
    while more := {name for name, body in bodies.items() if name not in found and called(body) & found}:
        found |= more
    return found


def why_it_cannot_fail(test: ast.expr) -> str | None:
    """What is wrong with an assertion, if anything."""
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        return why_it_cannot_fail(test.operand)
    if isinstance(test, ast.IfExp) and any(isinstance(branch, ast.Constant) for branch in (test.body, test.orelse)):
        return "one branch is a constant"
    if isinstance(test, ast.Constant | ast.JoinedStr | ast.Lambda | ast.GeneratorExp):
        return "a constant"
    if isinstance(test, ast.Tuple | ast.List | ast.Set | ast.Dict):
        return "a literal"
    if isinstance(test, ast.Compare):
        sides = [ast.dump(side) for side in (test.left, *test.comparators)]
        if any(a == b for a, b in itertools.pairwise(sides)):
            return "both sides are the same"
        if isinstance(test.ops[0], ast.GtE) and "len" in called(test.left) and ast.dump(test.comparators[0]) == ZERO:
            return "a length is never negative"
    if isinstance(test, ast.BoolOp):
        texts = [ast.unparse(value) for value in test.values]
        if len(set(texts)) < len(texts):
            return "an operand is repeated"
        if isinstance(test.op, ast.Or) and any(of_an_item(b, a) for a, b in itertools.permutations(test.values, 2)):
            return "one operand holds wherever the other does"
        return next((why for value in test.values if (why := why_it_cannot_fail(value))), None)
    return None


def of_an_item(test: ast.expr, whole: ast.expr) -> bool:
    """Whether `whole` says what something equals, and `test` what an item of it does."""
    return (
        isinstance(test, ast.Compare)
        and isinstance(whole, ast.Compare)
        and isinstance(whole.ops[0], ast.Eq)
        and isinstance(test.left, ast.Subscript)
        and ast.unparse(test.left.value) == ast.unparse(whole.left)
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(TESTS)))
def test_no_assertion_is_one_that_cannot_fail(path: Path) -> None:
    for node in ast.walk(MODULES[path]):
        if isinstance(node, ast.Assert):
            why = why_it_cannot_fail(node.test)
            assert why is None, f"line {node.lineno}: {ast.unparse(node)}: {why}"
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            f = node.value.func
            name = f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "")
            assert name not in VERDICTS, f"line {node.lineno}: nobody looks at {ast.unparse(node)}"


def test_every_test_asserts() -> None:
    for path, tree in MODULES.items():
        good = asserting(path) if path.parent == TESTS else set()
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                asserts = checks(node) or any(name in good or name.startswith("assert_") for name in called(node))
                assert asserts or node.name in RUNNING_IS_THE_TEST, f"{path.name}: {node.name} asserts nothing"


def test_no_test_module_imports_another() -> None:
    """What they share is in ``support``, which is imported by its name."""
    for path, tree in MODULES.items():
        for node in ast.walk(tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            taken = [n for n in names if n.split(".")[-1].startswith("test_")]
            assert not taken, f"{path.name} imports {taken}"
            if isinstance(node, ast.Call) and path.name.startswith("test_"):
                changed = ast.unparse(node.func).startswith("sys.path.")
                assert not changed, f"{path.name}, line {node.lineno}: imports are found by pytest's pythonpath"


@pytest.mark.parametrize(
    "text",
    [
        "x < 1 if y else 2", "1", "(x, y)", "f'{x}'", "x == x", "len(x) >= 0", "x or y or x", "not [x]",
        "f(x) == [1, 2] or f(x)[0] == 1", "x and (y or y)",
    ],
)  # fmt: skip
def test_what_cannot_fail_is_found(text: str) -> None:
    tree = ast.parse(text, mode="eval")
    assert why_it_cannot_fail(tree.body) is not None


@pytest.mark.parametrize("text", ["x == 1 or y", "a.equal(b) if c else d == e", "x <= (y or 1)", "x in y or x == z"])
def test_what_may_fail_is_not(text: str) -> None:
    tree = ast.parse(text, mode="eval")
    assert why_it_cannot_fail(tree.body) is None
