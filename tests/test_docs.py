"""The documentation runs: every python block of README and docs, and every docstring's example."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import types
from pathlib import Path

import pytest

import halfulp

ROOT = Path(__file__).resolve().parents[1]
PAGES = [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))) if p.exists()]
FENCE = re.compile(r"^(?P<indent> *)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)
OPTIONAL = {"triton"}
"""Modules that may be missing: no wheel exists for every platform."""


def modules() -> list[str]:
    found = pkgutil.walk_packages(halfulp.__path__, "halfulp.")
    not_python = ("__main__", "_cpu")  # the second is a plain shared library
    return ["halfulp", *(m.name for m in found if m.name.rpartition(".")[2] not in not_python)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run in order, in one namespace, in an empty folder."""
    text = page.read_text()
    monkeypatch.chdir(tmp_path)
    namespace = types.ModuleType("page").__dict__
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        indent = len(match["indent"])
        code = "\n".join(row[indent:] for row in match["code"].splitlines())
        exec(compile("\n" * line + code, str(page), "exec", dont_inherit=True), namespace)


def test_every_python_block_is_found() -> None:
    """The pattern misses no fence that says python."""
    for page in PAGES:
        assert len(FENCE.findall(page.read_text())) == len(re.findall(r"^ *```python", page.read_text(), re.MULTILINE))


@pytest.mark.parametrize("name", modules())
def test_docstrings(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"{error.name} is not installed")
    results = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert results.failed == 0


def test_relative_links_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if not re.match(r"[a-z]+:", target):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
