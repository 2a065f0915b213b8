"""The site builds without warnings, has every page and public name, and fits a phone."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import halfulp
from support.processes import environment
from support.web import dump

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("mkdocstrings") is None, reason="the extra docs is missing")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built once; a link that leads nowhere, a page outside of the navigation and a missing name are errors."""
    target = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(target)],
        cwd=ROOT, env={**environment(), "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target


def test_every_page_is_there(site: Path) -> None:
    pages = {p.stem for p in (ROOT / "docs").glob("*.md")} | {"changelog", "contributing", "security"}
    missing = [page for page in pages if not (site / page / "index.html").exists()]
    assert not missing
    assert (site / "search" / "search_index.json").stat().st_size > 100_000


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    text = "".join(p.read_text() for p in (site / "reference").glob("*/index.html"))
    found = set(re.findall(r'id="halfulp\.([\w.]+)"', text))
    names = {n for n in halfulp.__all__ if n != "OPTIMIZERS"} | {f"averaging.{n}" for n in halfulp.averaging.__all__}
    assert names <= found
    assert "doc-module" not in text  # functions and classes, not the modules that hold them
    assert ":class:" not in text


PROBE = "<script>document.body.dataset.over = document.documentElement.scrollWidth - innerWidth;</script></body>"


@pytest.mark.parametrize("page", ["", "optimizers", "theory", "kernels", "reference/monitor"])
def test_a_page_fits_a_phone(site: Path, tmp_path: Path, page: str) -> None:
    """Tables scroll by themselves; the page does not go beyond its window."""
    file = site / page / "index.html"
    probed = file.with_name("probed.html")
    probed.write_text(file.read_text().replace("</body>", PROBE))
    dom, _ = dump(probed, tmp_path / "profile", "--window-size=500,900")
    over = re.search(r'data-over="(-?\d+)"', dom)
    assert over is not None
    assert int(over[1]) <= 0
