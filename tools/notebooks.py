"""Run the site's notebooks, store their outputs, and write them as Markdown.

``python tools/notebooks.py`` runs all of them and stores what they print and show. It supports only what they use:
text, reports with ``_repr_html_``, and matplotlib figures.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "notebooks"


def shown(value: Any) -> dict[str, Any]:
    """Return the representations of a cell's last value, by media type."""
    if type(value).__module__ == "matplotlib.figure":
        picture = io.BytesIO()
        value.savefig(picture, format="png", dpi=100)
        return {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": "<Figure>"}
    data: dict[str, Any] = {"text/plain": repr(value)}
    if hasattr(value, "_repr_html_"):
        data["text/html"] = value._repr_html_()
    return data


def run(notebook: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a notebook with its code cells run in order in one namespace, and their outputs."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    cells = []
    for number, cell in enumerate(notebook["cells"], 1):
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]), f"cell {number}")
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            printed, outputs = io.StringIO(), []
            with contextlib.redirect_stdout(printed):
                exec(compile(tree, f"cell {number}", "exec"), namespace)
                value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), namespace) if last else None
            if printed.getvalue():
                outputs.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue()})
            if value is not None:
                data = {"data": shown(value), "metadata": {}, "execution_count": number}
                outputs.append({"output_type": "execute_result", **data})
            cell = {**cell, "outputs": outputs, "execution_count": number}
        cells.append(cell)
    return {**notebook, "cells": cells}


def markdown(notebook: dict[str, Any]) -> str:
    """Return a notebook as a page of text, code and outputs."""
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f'<img alt="The picture of this cell" src="data:image/png;base64,{data["image/png"]}">')
            elif "text/html" in data:
                parts.append(data["text/html"])
            else:
                parts.append(f"```text\n{(output.get('text') or data['text/plain']).rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Run every notebook, and store it with its outputs."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        done = run(json.loads(path.read_text()))
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(done, indent=1, ensure_ascii=False) + "\n")
        partial.replace(path)
        print(path.name)


if __name__ == "__main__":
    main()
