"""What watches an optimizer through hooks on its step, and leaves it as it was."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from typing_extensions import Self

__all__ = ["Hooked"]


class Hooked:
    """A context that holds hooks; they are gone when it is left or closed, and what was seen stays."""

    _hooks: list[Any]

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
