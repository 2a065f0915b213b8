"""Rendering of the page templates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["fill"]


def fill(template: str, filters: dict[str, Callable[..., str]], **values: Any) -> str:
    """Render a template of this folder, with filters: functions that format values in it.

    A name that the template uses but nobody provides is an error.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the report needs the jinja2 package: pip install 'halfulp[lab]'") from error
    loader = jinja2.PackageLoader("halfulp.lab", ".")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(filters)
    return environment.get_template(template).render(**values)
