"""Convert docstrings to Markdown for the site's reference, where the code uses reStructuredText roles.

Attributes get no docstring: inspection would find that of their type.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`(?:[^`<]*<)?~?([\w.]+)>?`")


class Roles(griffe.Extension):
    """Convert ``:class:`~a.b.C``` to code."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite or drop one object's docstring."""
        if obj.is_attribute and "property" not in obj.labels:
            obj.docstring = None
        elif obj.docstring is not None:
            obj.docstring.value = ROLE.sub(lambda role: f"`{role[1].rpartition('.')[2]}`", obj.docstring.value)
