"""Base of optimizers that wrap another one and share everything but its step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import Optimizer

from halfulp.numbers.log import log_once

__all__ = ["Wrapper"]


class Wrapper(Optimizer):
    """Base of an optimizer around another one.

    It *is* a ``torch.optim.Optimizer``, with the groups, states and defaults of the one inside: schedulers, gradient
    scalers and trainers take it like any other. Its ``state_dict`` is that of the one inside, with one more entry
    under :attr:`key`.

    Parameters
    ----------
    optimizer
        Any ``torch.optim.Optimizer``.

    Raises
    ------
    TypeError
        If `optimizer` is none.

    Examples
    --------
    >>> import torch, halfulp
    >>> inside = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    >>> around = halfulp.Lookahead(inside)
    >>> isinstance(around, Wrapper), around.param_groups is inside.param_groups
    (True, True)
    """

    key: ClassVar[str]
    optimizer: Optimizer

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"{type(self).__name__} goes around a torch.optim.Optimizer, got {type(optimizer).__name__}"
            )
        self.__setstate__({"optimizer": optimizer})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """What :meth:`__getstate__` gave, and torch's hooks."""
        super().__setstate__(state)
        self._inside = False
        self.optimizer.register_step_pre_hook(self._passed_by)

    @contextmanager
    def _stepping(self) -> Iterator[Optimizer]:
        """The optimizer inside, for a step of this one."""
        self._inside = True
        try:
            yield self.optimizer
        finally:
            self._inside = False

    def _passed_by(self, *_: Any) -> None:
        if not self._inside:
            log_once(
                f"{type(self).__name__}: the optimizer inside makes a step that this one does not see, and takes no "
                "part in: the training loop has to call step() of the wrapper",
                30,
            )

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Groups of the optimizer inside."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """States of the optimizer inside."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """Defaults of the optimizer inside."""
        return self.optimizer.defaults

    @property
    def named(self) -> dict[str, Tensor]:
        """Parameters by name, by number where they have none."""
        found: dict[str, Tensor] = {}
        for group in self.param_groups:
            names = group.get("param_names")
            for i, param in enumerate(group["params"]):
                found[names[i] if names else str(len(found))] = param
        return found

    @property
    def trained(self) -> dict[str, Tensor]:
        """Those among :attr:`named` that take gradients."""
        return {name: param for name, param in self.named.items() if param.requires_grad}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the optimizer inside."""
        self.optimizer.add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        """What is this wrapper's own, the optimizer inside included; no hooks."""
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_") and k != "step"}

    # ---------------------------------------------------------------- checkpoints

    def own_state(self) -> dict[str, Any]:
        """What goes under :attr:`key`: plain tensors and numbers."""
        raise NotImplementedError

    def check_own(self, saved: Mapping[str, Any]) -> Any:
        """What :meth:`take_own` needs, from what :meth:`own_state` gave; ``ValueError`` where it does not fit."""
        raise NotImplementedError

    def take_own(self, checked: Any) -> None:
        """Go on from what :meth:`check_own` gave."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """As the optimizer inside, with this wrapper's own under :attr:`key`."""
        return {**self.optimizer.state_dict(), self.key: self.own_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` gave.

        Raises
        ------
        ValueError
            If it is of the optimizer inside alone, or of another wrapper; or what that optimizer raises. Nothing is
            changed then.
        """
        if not isinstance(state_dict.get(self.key), Mapping):
            raise ValueError(
                f"the state_dict has no {self.key!r}: it is not of {type(self).__name__}. One of the optimizer inside "
                "alone is loaded by wrapper.optimizer.load_state_dict"
            )
        checked = self.check_own(state_dict[self.key])
        self.optimizer.load_state_dict({k: v for k, v in state_dict.items() if k != self.key})
        self.take_own(checked)
