"""Base class of optimizers that wrap another one and share everything but its step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor
from torch.optim.optimizer import Optimizer

from halfulp.libraries import check_wrappable
from halfulp.numbers.log import warn_once

__all__ = ["Wrapper"]


class Wrapper(Optimizer):
    """Base class of an optimizer around another one.

    It is a ``torch.optim.Optimizer`` with the groups, states and defaults of the inner one, so schedulers, gradient
    scalers and trainers accept it. Its ``state_dict`` is that of the inner optimizer plus one entry, :attr:`entry`.

    Parameters
    ----------
    optimizer
        Any ``torch.optim.Optimizer``.

    Raises
    ------
    TypeError
        If `optimizer` is not an optimizer, or one without hooks, such as Accelerate's.

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
        check_wrappable(type(self).__name__, optimizer)
        self.__setstate__({"optimizer": optimizer})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the result of :meth:`__getstate__`, and torch's hooks."""
        super().__setstate__(state)
        self._inside = False
        self.optimizer.register_step_pre_hook(self._passed_by)

    def _step_inside(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step the inner optimizer, and return the loss."""
        self._inside = True
        try:
            return self.optimizer.step() if closure is None else self.optimizer.step(closure)
        finally:
            self._inside = False

    def _passed_by(self, *_: Any) -> None:
        if not self._inside:
            warn_once(
                f"{type(self).__name__}: the optimizer inside makes a step that this one does not see, and takes no "
                "part in: the training loop has to call step() of the wrapper"
            )

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """Groups of the inner optimizer."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        """States of the inner optimizer."""
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        """Defaults of the inner optimizer."""
        return self.optimizer.defaults

    @property
    def named(self) -> dict[str, Tensor]:
        """Parameters by name, or by number if they have none."""
        found: dict[str, Tensor] = {}
        for group in self.param_groups:
            names = group.get("param_names")
            for i, param in enumerate(group["params"]):
                found[names[i] if names else str(len(found))] = param
        return found

    @property
    def trained(self) -> dict[str, Tensor]:
        """The parameters of :attr:`named` that take gradients."""
        return {name: param for name, param in self.named.items() if param.requires_grad}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the inner optimizer."""
        self.optimizer.add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        """Return this wrapper's own attributes, including the inner optimizer, without hooks."""
        return {k: v for k, v in self.__dict__.items() if not k.startswith("_") and k != "step"}

    # ---------------------------------------------------------------- checkpoints

    @property
    def entry(self) -> str:
        """The name of the own entry: :attr:`key`, numbered from the inside if a wrapper of the same kind is inside."""
        number = 1
        inside: Any = self.optimizer
        while isinstance(inside, Optimizer):
            number += getattr(inside, "key", None) == self.key
            inside = getattr(inside, "optimizer", None)
        return self.key if number == 1 else f"{self.key}_{number}"

    def own_state(self) -> dict[str, Any]:
        """Return the own entry: plain tensors and numbers."""
        raise NotImplementedError

    def check_own(self, saved: Mapping[str, Any], own: Mapping[str, Any]) -> Any:
        """Check a saved result of :meth:`own_state`, which has the keys of the present one, for :meth:`take_own`.

        Raise ``ValueError`` if it does not fit.
        """
        raise NotImplementedError

    def take_own(self, checked: Any) -> None:
        """Continue from the result of :meth:`check_own`."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state dictionary, with this wrapper's own entry under :attr:`entry`."""
        return {**self.optimizer.state_dict(), self.entry: self.own_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the result of :meth:`state_dict`.

        Raises
        ------
        ValueError
            If it belongs to the inner optimizer alone or to another wrapper. Errors of the inner optimizer are raised
            too. Nothing is changed in these cases.
        """
        key = self.entry
        if not isinstance(state_dict.get(key), Mapping):
            raise ValueError(
                f"the state_dict has no {key!r}: it does not belong to {type(self).__name__}. Load one of the "
                "inner optimizer alone with wrapper.optimizer.load_state_dict"
            )
        saved, own = state_dict[key], self.own_state()
        if set(saved) != set(own):
            raise ValueError(f"{key}: saved are {sorted(saved)}, expected {sorted(own)}")
        checked = self.check_own(saved, own)
        self.optimizer.load_state_dict({k: v for k, v in state_dict.items() if k != key})
        self.take_own(checked)
