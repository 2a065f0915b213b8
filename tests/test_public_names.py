"""Public names stay: what a version of the library offered can be imported from the same place later."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

STORED = (Path(__file__).parent / "data" / "public_names.txt").read_text()
"""Names by module. A name may be added here; one that goes is a change for users, with an entry in the changelog."""
NAMES: dict[str, list[str]] = {}
for line in STORED.splitlines():
    if line.endswith(":"):
        names = NAMES.setdefault(line[:-1], [])
    else:
        names += line.split()


@pytest.mark.parametrize("module", NAMES)
def test_public_names_stay(module: str) -> None:
    found = importlib.import_module(module)
    assert NAMES[module]
    assert [name for name in NAMES[module] if not hasattr(found, name)] == []
    assert set(NAMES[module]) <= set(found.__all__)
