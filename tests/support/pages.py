"""The python blocks of a page, and how they are run."""

from __future__ import annotations

import re
import types
from pathlib import Path

FENCE = re.compile(r"^(?P<indent> *)```python[^\n]*\n(?P<code>.*?)^(?P=indent)```", re.MULTILINE | re.DOTALL)


def run_blocks(page: Path) -> None:
    """Run the blocks of a page in order, in one namespace."""
    text = page.read_text()
    namespace = types.ModuleType("page").__dict__
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        indent = len(match["indent"])
        code = "\n".join(row[indent:] for row in match["code"].splitlines())
        exec(compile("\n" * line + code, str(page), "exec", dont_inherit=True), namespace)
