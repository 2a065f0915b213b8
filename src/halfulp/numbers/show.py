"""The display of reports: a line in a console, a table in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

__all__ = ["Shown", "count_of", "html_table"]


class Shown:
    """A report with a full ``str``, a short ``repr`` (:meth:`in_short`) and HTML for notebooks (:meth:`in_html`)."""

    def in_short(self) -> str:
        """Return the text of ``repr`` between the parentheses."""
        raise NotImplementedError

    def in_html(self) -> str:
        """Return the HTML that a notebook shows. By default, this is the printed text."""
        return f"<pre>{html.escape(str(self))}</pre>"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.in_short()})"

    def _repr_html_(self) -> str:
        return self.in_html()


def count_of(number: int, noun: str) -> str:
    """Return a number and its noun.

    Examples
    --------
    >>> count_of(1, "parameter"), count_of(2000, "parameter")
    ('1 parameter', '2,000 parameters')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def html_table(headings: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = (), left: int = 1) -> str:
    """Return an HTML table with lines of text below it. Columns after the first `left` hold numbers, which do not wrap.

    Examples
    --------
    >>> html_table(["state", "bytes"], [["m & v", "1,024"]])
    '<table><tr><th>state</th><th>bytes</th></tr><tr><td>m &amp; v</td><td style="...">1,024</td></tr></table>'
    """
    figure = ' style="text-align: right; white-space: nowrap"'
    head = "".join(f"<th>{html.escape(name)}</th>" for name in headings)
    body = "".join(
        f"<tr>{''.join(f'<td{figure if i >= left else str()}>{html.escape(c)}</td>' for i, c in enumerate(row))}</tr>"
        for row in rows
    )
    below = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return f"<table><tr>{head}</tr>{body}</table>{below}"
