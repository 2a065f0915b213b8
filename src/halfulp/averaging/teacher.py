"""Teachers whose weights are averages of a student's: BYOL, DINO, JEPA, mean teacher, and alternating teachers."""

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
    """A network whose weights are the average of a student's, stored in any format and decoded when they are read.

    A weight exists only while a ``forward`` uses it: an 8-bit teacher costs one additional byte per parameter. Weights
    that are not averaged (frozen ones, ``ignore``) are the student's own tensors. The teacher takes no gradients. The
    forwards of student and teacher may come in any order.

    Parameters
    ----------
    student
        The network to follow.
    decay
        Momentum: a number, or a schedule such as ``Cosine(0.996, 1.0, steps)`` (BYOL, DINO, I-JEPA). Under nearest
        rounding, a momentum that rises to 1 freezes any low-precision copy.
    state, rounding, seed, options
        As for :class:`~halfulp.averaging.ema.EMA`.
    module
        A second network of the same form to use as the teacher, for networks that cannot be copied. Default: a copy of
        the student.
    buffers
        ``"copy"``: the student's buffers are copied at each update. ``"own"``: the teacher's forwards update its own
        buffers (batch norm statistics of a teacher in training mode, as in BYOL).

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
            raise ValueError("a teacher stores the average itself, so difference=True cannot be used")
        self.buffers = buffers
        self.ema = EMA(student, Cosine() if decay is None else decay, **options)
        self._second = Skeleton(self.ema, module)

    @property
    def module(self) -> nn.Module:
        """The teacher's modules. Their weights are decoded whenever they are read."""
        return self._second.module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the teacher's forward without gradients."""
        with torch.no_grad():
            return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> Teacher:
        """Set the training mode of the teacher's modules."""
        self.module.train(mode)
        return self

    def eval(self) -> Teacher:
        """Set the evaluation mode of the teacher's modules."""
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
        """Return a weight of the teacher in fp32."""
        return self.ema.value(name)

    def memory(self) -> MemoryReport:
        """Return the bytes of the teacher's weights."""
        return self.ema.memory()

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the teacher's buffers."""
        return {"ema": self.ema.state_dict(), "buffers": {n: b.clone() for n, b in self.module.named_buffers()}}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the result of :meth:`state_dict`."""
        mine, saved = dict(self.module.named_buffers()), state_dict["buffers"]
        if set(saved) != set(mine):
            raise ValueError(f"the state_dict has buffers {sorted(saved)}, this teacher {sorted(mine)}")
        self.ema.load_state_dict(state_dict["ema"])
        for name, buffer in mine.items():
            buffer.copy_(saved[name])


class TemporaryTeachers:
    """Teachers that take turns (Na et al., Switching Temporary Teachers, arXiv 2310.18640).

    One teacher at a time follows the student. At a switch, usually each epoch, the next one takes over and starts as a
    copy of the student. Its decay is ``min(1 - 1 / n, decay)``, where ``n`` starts at 1 at each switch.

    Parameters
    ----------
    student, decay, options
        As for :class:`Teacher`.
    count
        Number of teachers.

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
        """Update the active teacher."""
        self.active.update(student)

    def switch(self) -> None:
        """Switch to the next teacher. Its first update copies the student."""
        self.turn = (self.turn + 1) % len(self.teachers)
        self.active.ema.updates = 0

    def __call__(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Run the forward of every teacher, in order."""
        return [teacher(*args, **kwargs) for teacher in self.teachers]

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all teachers and the index of the active one."""
        return {"turn": self.turn, "teachers": {str(k): t.state_dict() for k, t in enumerate(self.teachers)}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the result of :meth:`state_dict`."""
        saved = state_dict["teachers"]
        if len(saved) != len(self.teachers):
            raise ValueError(f"the state_dict has {len(saved)} teachers, this one {len(self.teachers)}")
        for k, teacher in enumerate(self.teachers):
            teacher.load_state_dict(saved[str(k)])
        self.turn = int(state_dict["turn"])
