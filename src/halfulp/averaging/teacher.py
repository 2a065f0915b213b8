"""Teachers that are averages of their students: BYOL, DINO, JEPA, mean teacher; and teachers that take turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from halfulp.averaging.decay import Cosine, Decay, MeanTeacher
from halfulp.averaging.ema import EMA
from halfulp.averaging.skeleton import Skeleton
from halfulp.engine.memory import MemoryReport

__all__ = ["Teacher", "TemporaryTeachers"]


class Teacher:
    """A network whose weights are the average of a student's, stored in any format and decoded while they are read.

    A weight exists while a ``forward`` uses it, and only then: a teacher in 8 bits costs one byte a parameter beside
    the student. What is not averaged (frozen weights, ``ignore``) is the student's own tensor. No gradients. The
    forwards of student and teacher may come in any order.

    Parameters
    ----------
    student
        The network that is followed.
    decay
        Momentum: a number, or a schedule such as ``Cosine(0.996, 1.0, steps)`` (BYOL, DINO, I-JEPA). A momentum that
        rises to 1 freezes any low-precision copy under nearest rounding.
    state, rounding, seed, options
        As for :class:`~halfulp.averaging.ema.EMA`.
    module
        A second network of the same form, which becomes the teacher's; a copy of the student without. For networks
        that cannot be copied.
    buffers
        ``"copy"``: the student's, copied at each update. ``"own"``: the teacher's forwards keep their own (batch norm
        statistics of a teacher in training mode, as in BYOL).

    Examples
    --------
    >>> import torch, halfulp.averaging
    >>> student = torch.nn.Linear(8, 8)
    >>> teacher = halfulp.averaging.Teacher(student, decay=0.99)
    >>> loss = (student(torch.ones(2, 8)) - teacher(torch.zeros(2, 8))).square().mean()
    >>> loss.backward()
    >>> teacher.update()                             # after the optimizer's step
    """

    def __init__(
        self,
        student: nn.Module,
        decay: float | Decay | None = None,
        *,
        module: nn.Module | None = None,
        buffers: Literal["copy", "own"] = "copy",
        **options: Any,
    ) -> None:
        if buffers not in ("copy", "own"):
            raise ValueError(f"buffers is 'copy' or 'own', got {buffers!r}")
        if options.pop("difference", False):
            raise ValueError("a teacher keeps the average itself: difference=True does not go with it")
        self.buffers = buffers
        self.ema = EMA(student, Cosine() if decay is None else decay, **options)
        self._second = Skeleton(self.ema, module)

    @property
    def module(self) -> nn.Module:
        """The teacher's modules. Their weights are decoded whenever something reads them."""
        return self._second.module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The teacher's forward, without gradients."""
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> Teacher:
        """Training mode of the teacher's modules."""
        self.module.train(mode)
        return self

    def eval(self) -> Teacher:
        """Evaluation mode of the teacher's modules."""
        return self.train(False)

    @torch.no_grad()
    def update(self, student: nn.Module | None = None) -> None:
        """Follow the student by one step."""
        source = self.ema.model if student is None else student
        self.ema.update(student)
        self._second.follow()
        if self.buffers == "copy" and isinstance(source, nn.Module):
            self._second.copy_buffers(source)

    def value(self, name: str) -> Tensor:
        """A weight of the teacher in fp32."""
        return self.ema.value(name)

    def memory(self) -> MemoryReport:
        """Bytes of the teacher's weights."""
        return self.ema.memory()

    def state_dict(self) -> dict[str, Any]:
        """The average, and the teacher's buffers."""
        return {"ema": self.ema.state_dict(), "buffers": {n: b.clone() for n, b in self.module.named_buffers()}}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` gave."""
        mine, saved = dict(self.module.named_buffers()), state_dict["buffers"]
        if set(saved) != set(mine):
            raise ValueError(f"the state_dict has buffers {sorted(saved)}, this teacher {sorted(mine)}")
        self.ema.load_state_dict(state_dict["ema"])
        for name, buffer in mine.items():
            buffer.copy_(saved[name])


class TemporaryTeachers:
    """Teachers that take turns (Na et al., Switching Temporary Teachers, arXiv 2310.18640).

    One teacher at a time follows the student; at a switch, usually each epoch, the next takes over and begins as a copy
    of the student. Its decay is ``min(1 - 1 / n, decay)``, ``n`` from 1 at each switch.

    Parameters
    ----------
    student, decay, options
        As for :class:`Teacher`.
    count
        How many teachers.

    Examples
    --------
    >>> import torch, halfulp.averaging
    >>> teachers = halfulp.averaging.TemporaryTeachers(torch.nn.Linear(8, 8))
    >>> teachers.update(); teachers.switch(); teachers.update()
    >>> teachers.active.value("weight").shape
    torch.Size([8, 8])
    """

    def __init__(self, student: nn.Module, decay: float = 0.99, *, count: int = 2, **options: Any) -> None:
        if count < 2:
            raise ValueError(f"teachers take turns: there must be at least 2, got {count}")
        self.teachers: Sequence[Teacher] = [
            Teacher(student, MeanTeacher(decay), label=f"teacher/{k}", **options) for k in range(count)
        ]
        self.turn = 0

    @property
    def active(self) -> Teacher:
        """The teacher that follows the student now."""
        return self.teachers[self.turn]

    def update(self, student: nn.Module | None = None) -> None:
        """The active teacher follows the student by one step."""
        self.active.update(student)

    def switch(self) -> None:
        """The next teacher takes over; its first update copies the student."""
        self.turn = (self.turn + 1) % len(self.teachers)
        self.active.ema.updates = 0

    def __call__(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Forward of every teacher, in order."""
        return [teacher(*args, **kwargs) for teacher in self.teachers]

    def state_dict(self) -> dict[str, Any]:
        """All teachers, and whose turn it is."""
        return {"turn": self.turn, "teachers": {str(k): t.state_dict() for k, t in enumerate(self.teachers)}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load what :meth:`state_dict` gave."""
        saved = state_dict["teachers"]
        if len(saved) != len(self.teachers):
            raise ValueError(f"the state_dict has {len(saved)} teachers, this one {len(self.teachers)}")
        for k, teacher in enumerate(self.teachers):
            teacher.load_state_dict(saved[str(k)])
        self.turn = int(state_dict["turn"])
