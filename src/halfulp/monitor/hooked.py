"""Base of everything that watches an optimizer through hooks on its step and leaves it unchanged."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from halfulp.numbers.log import log_once

__all__ = ["Hooked", "harmless"]


@contextmanager
def harmless(what: str, stop: Callable[[], None] = lambda: None) -> Iterator[None]:
    """No error within reaches the training: it is reported once, with the traceback's last line, after a ``stop``.

    Parameters
    ----------
    what
        What ends with the error, for the message.
    stop
        Called after an error.
    """
    try:
        yield
    except Exception as error:
        stop()
        last = traceback.extract_tb(error.__traceback__)[-1]
        log_once(
            f"{what} ended with {type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno}: "
            f"{last.line}); the training goes on, and what was counted stays",
            level=30,
        )


class Hooked:
    """A context that holds hooks; they are gone when it is left or closed, and what was seen stays."""

    _hooks: list[Any]
    stopped = False
    """Whether it looks no more; its hooks stay until it is closed, since torch walks over them."""

    def stop(self) -> None:
        """Look no more; what was seen stays."""
        self.stopped = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching; what was measured stays."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
