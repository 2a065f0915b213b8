"""Base class of everything that watches an optimizer through step hooks without changing it."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from halfulp.numbers.log import warn_once

__all__ = ["Hooked", "harmless"]


@contextmanager
def harmless(what: str, stop: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Keep errors inside the block from reaching the training. The first is reported with the traceback's last line.

    `what` says in the message what ends with the error, and `stop` ends it.
    """
    try:
        yield
    except Exception as error:
        stop()
        last = traceback.extract_tb(error.__traceback__)[-1]
        warn_once(
            f"{what} ended with {type(error).__name__}: {error} ({Path(last.filename).name}, line "
            f"{last.lineno}: {last.line}); training continues, and the counts so far are kept"
        )


class Hooked:
    """A context manager that holds hooks. Leaving or closing it removes them and keeps the results."""

    _hooks: list[Any]
    stopped = False
    """Whether watching has stopped. Hooks remain until :meth:`close`, since torch iterates over them."""

    def stop(self) -> None:
        """Stop watching and keep the results. The hooks remain."""
        self.stopped = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the hooks and keep the results."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
