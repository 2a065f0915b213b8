"""The documentation runs: every python block of README and docs, and every docstring example."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

import halfulp
from halfulp.engine.options import TorchOptions
from halfulp.optim.described import parameters
from support.pages import FENCE, run_blocks

ROOT = Path(__file__).resolve().parents[1]
PAGES = [p for p in (ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))) if p.exists()]
CLIENTS = ROOT / "docs" / "in-your-trainer.md"
"""Runs in ``test_clients.py``, beside other tests of the same packages."""
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
OPTIONAL = {"triton"}
"""Modules that may be missing: no wheel exists for every platform."""


def modules() -> list[str]:
    found = pkgutil.walk_packages(halfulp.__path__, "halfulp.")
    not_python = ("__main__", "_cpu")  # the second is a shared library
    return ["halfulp", *(m.name for m in found if m.name.rpartition(".")[2] not in not_python)]


@pytest.mark.parametrize("page", [p for p in PAGES if p != CLIENTS], ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run in order, in one namespace, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    run_blocks(page)


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


def public() -> dict[str, Any]:
    """Functions and classes that are there for users, by name."""
    packages = [
        halfulp,
        *(
            getattr(halfulp, p)
            for p in ("averaging", "formats", "monitor", "schedules", "testing", "workers", "wrappers")
        ),
    ]
    found = {f"{p.__name__}.{name}": getattr(p, name) for p in packages for name in p.__all__}
    return {name: value for name, value in found.items() if callable(value)}


def test_public_names_say_what_they_take_and_show_it() -> None:
    """Every argument of the signature is described, and no other; an example, which the test above runs."""
    holes = []
    for name, value in public().items():
        given = inspect.signature(value).parameters.values()
        rest = {p.name for p in given if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        wanted = {p.name for p in given if p.name[0] != "_"} - rest
        allowed = wanted | rest | (set(TorchOptions.__annotations__) if rest else set())
        found = set(parameters(value.__doc__))
        if ">>> " not in (value.__doc__ or "") and not name.endswith("_callback"):  # trainers have tests of their own
            holes.append(f"{name}: no example")
        if not wanted <= found <= allowed:
            holes.append(f"{name}: describes {sorted(found)}, takes {sorted(wanted)}")
    assert not holes, "\n".join(holes)


def test_arguments_of_optimizers_stand_in_the_order_of_the_signature() -> None:
    for cls in halfulp.optim.OPTIMIZERS:
        found = list(parameters(cls.__doc__))
        given = [p.name for p in inspect.signature(cls).parameters.values() if p.kind is not p.VAR_KEYWORD]
        assert found[: len(given)] == given, cls.__name__
        assert found[0] == "params"
        assert {"state", "rounding", "reset", "nonfinite", "block_size", "transforms"} <= set(found)


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ +(.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_relative_links_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]:
        for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", page.read_text()):
            if not re.match(r"[a-z]+:", target):
                there = page.parent / target if target else page
                assert there.exists(), f"{page.name}: {target}"
                assert not anchor or anchor in headings(there), f"{page.name}: {target}#{anchor}"


def test_the_glossary_is_in_the_order_of_the_alphabet() -> None:
    terms = re.findall(r"^\| \*\*([^*]+)\*\*", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    assert len(terms) > 40
    assert terms == sorted(terms, key=str.casefold)


def test_page_of_optimizers_is_what_its_figures_make(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever changes a figure or the words around it by hand, or a rule, runs ``benchmarks/optimizers_page.py``."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    writer = importlib.import_module("optimizers_page")
    page = (ROOT / "docs" / "optimizers.md").read_text()
    assert writer.BEGIN in page
    assert writer.written_anew(page, ROOT / "docs" / "results") == page
    assert writer.stalls_page(ROOT / "docs" / "results") == writer.STALLS.read_text()
    assert writer.tables_page(ROOT / "docs" / "results") == writer.TABLES.read_text()
