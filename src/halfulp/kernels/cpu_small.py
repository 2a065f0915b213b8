"""States that are numbers or vectors, read and written for several parameters at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress

import numpy as np
import torch

from halfulp.kernels import reference
from halfulp.kernels.binding import Binding, Step
from halfulp.kernels.cpu_codec import CODEC
from halfulp.rules.program import Floats

__all__ = ["SmallState"]


class SmallState:
    """A state of parameters of one shape, as a matrix with a line for each parameter."""

    def __init__(self, bindings: Sequence[Binding], name: str) -> None:
        self.places = [binding.names.index(name) for binding in bindings]
        self.states = [binding.states[k] for binding, k in zip(bindings, self.places, strict=True)]
        plain = all(state.quantizer.format.is_float32 for state in self.states)
        self.lines = [state.codes.detach().reshape(-1).numpy() for state in self.states] if plain else None
        """The memory of the states, if they are stored in fp32."""

    def read(self) -> Floats:
        """Return the states, decoded."""
        lines = self.lines or [CODEC.read(state).reshape(-1).numpy() for state in self.states]
        return np.concatenate(lines).reshape(len(lines), -1)

    def write(self, steps: Sequence[Step], values: Floats, fine: Sequence[bool]) -> None:
        """Store new states of the parameters that are fine, and count stalled updates."""
        if self.lines is not None and all(step.counts is None for step in steps):
            for line, new in compress(zip(self.lines, values, strict=True), fine):
                line[:] = new
            return
        for step, k, new in compress(zip(steps, self.places, values, strict=True), fine):
            state = step.binding.states[k]
            wide = torch.from_numpy(new.astype(np.float32)).reshape(state.shape)
            reference.store(step, k, CODEC.read(state), wide, None, CODEC)
