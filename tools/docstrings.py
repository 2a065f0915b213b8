"""For the site's reference: docstrings as Markdown, where the code has the roles of reStructuredText.

Attributes have none: what inspection finds there is the docstring of their type.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`(?:[^`<]*<)?~?([\w.]+)>?`")


class Roles(griffe.Extension):
    """Turns ``:class:`~a.b.C``` into code."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite one object's docstring, or drop it."""
        if obj.is_attribute and "property" not in obj.labels:
            obj.docstring = None
        elif obj.docstring is not None:
            obj.docstring.value = ROLE.sub(lambda role: f"`{role[1].rpartition('.')[2]}`", obj.docstring.value)
