"""Templates of the pages, filled in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["fill"]


def fill(template: str, filters: dict[str, Callable[..., str]], **values: Any) -> str:
    """A page from a template of this folder. A name that the template asks for and nobody gives is an error.

    Parameters
    ----------
    template
        Name of its file.
    filters
        Functions that the template writes values by.
    values
        What it shows.

    Raises
    ------
    ModuleNotFoundError
        Without jinja2.
    """
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the report needs the jinja2 package: pip install 'halfulp[lab]'") from error
    loader = jinja2.PackageLoader("halfulp.lab", ".")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters.update(filters)
    return environment.get_template(template).render(**values)
