"""Averages of any width, reconstructed after training from stored snapshots of two averages.

Karras et al., Analyzing and Improving the Training Dynamics of Diffusion Models, arXiv 2312.02696, section 3 and
appendix C. The weight profiles of power-law averages at different times nearly span those of other widths. So a linear
combination of snapshots, fitted to the profiles by least squares, gives an average that was never tracked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from halfulp.averaging.decay import PowerLaw, power_exponent
from halfulp.averaging.ema import EMA
from halfulp.averaging.source import Model
from halfulp.checkpoint.files import read_file, write_file
from halfulp.engine.loading import count
from halfulp.engine.sharding import local_part

__all__ = ["PostHocEMA", "Profile", "Reconstruction", "profile_product", "reconstruct_weights"]

Profile = tuple[float, float]
"""``(gamma, time)``: exponent of a power-law average, and the step at which it was stored."""


def profile_product(a: Profile, b: Profile) -> float:
    """Inner product of the continuous weight profiles of two power-law averages.

    The profile of ``(gamma, T)`` is ``(gamma + 1) * t ** gamma / T ** (gamma + 1)`` on ``[0, T]``.

    Parameters
    ----------
    a, b
        Exponent and time of each profile.

    Examples
    --------
    >>> profile_product((0.0, 2.0), (0.0, 4.0))
    0.25
    """
    (ga, ta), (gb, tb) = a, b
    exponent = gb if ta < tb else -ga
    return (ga + 1) * (gb + 1) * (ta / tb) ** exponent / ((ga + gb + 1) * max(ta, tb))


@dataclass(frozen=True)
class Reconstruction:
    """Weights that combine snapshots into an average.

    Parameters
    ----------
    weights
        Weight of each snapshot. They sum to 1.
    profiles
        Exponent and time of each snapshot.
    error
        L2 distance between the combined and the wanted profile, relative to the norm of the latter.

    Examples
    --------
    >>> Reconstruction((1.5, -0.5), ((0.0, 1.0), (0.0, 2.0)), 0.1).norm1
    2.0
    """

    weights: tuple[float, ...]
    profiles: tuple[Profile, ...]
    error: float

    @property
    def norm1(self) -> float:
        """Largest factor by which rounding errors of the snapshots can grow: ``sum |w|``.

        1 if no weight is negative.
        """
        return float(sum(abs(w) for w in self.weights))

    @property
    def norm2(self) -> float:
        """Factor by which independent rounding errors of the snapshots grow: the root of ``sum w ** 2``."""
        return math.sqrt(sum(w * w for w in self.weights))


def reconstruct_weights(profiles: Sequence[Profile], wanted: Profile) -> Reconstruction:
    """Return the weights of snapshots that best fit a wanted profile, scaled to sum to 1.

    Parameters
    ----------
    profiles
        Exponent and time of each snapshot. Snapshots later than the wanted time have weight 0.
    wanted
        Exponent and time.

    Raises
    ------
    ValueError
        If no snapshot is early enough.

    Examples
    --------
    >>> found = reconstruct_weights([(16.97, 1000.0), (6.94, 1000.0)], (6.94, 1000.0))
    >>> [abs(round(w, 6)) for w in found.weights]
    [0.0, 1.0]
    """
    used = [i for i, (_, t) in enumerate(profiles) if t <= wanted[1]]
    if not used:
        raise ValueError(f"there is no snapshot of step {wanted[1]:g} or before")
    chosen = [profiles[i] for i in used]
    products = np.array([[profile_product(a, b) for b in chosen] for a in chosen])
    target = np.array([profile_product(a, wanted) for a in chosen])
    solved = np.linalg.lstsq(products, target, rcond=1e-12)[0]
    solved = solved / solved.sum()
    norm = profile_product(wanted, wanted)
    squared = float(norm - 2 * solved @ target + solved @ products @ solved)
    weights = np.zeros(len(profiles))
    weights[used] = solved
    return Reconstruction(tuple(weights.tolist()), tuple(profiles), math.sqrt(max(squared, 0.0) / norm))


class PostHocEMA:
    """Two power-law averages with snapshots, from which any other width can be reconstructed.

    Parameters
    ----------
    model
        A module, or its named parameters.
    sigmas
        Relative widths to track.
    every
        Steps between snapshots. With 0, call :meth:`snapshot`.
    state, rounding, seed
        Storage of the averages. A snapshot copies the stored codes, so it adds no rounding.
    folder
        Folder for snapshots, one safetensors file each. Default: they are kept in memory.
    options
        As for :class:`~halfulp.averaging.ema.EMA`.

    Examples
    --------
    >>> import torch, halfulp.averaging
    >>> model = torch.nn.Linear(4, 4)
    >>> tracked = halfulp.averaging.PostHocEMA(model, every=10)
    >>> for _ in range(40):
    ...     tracked.update()
    >>> plan = tracked.plan(sigma=0.15)
    >>> round(sum(plan.weights), 6), len(plan.weights)
    (1.0, 8)
    >>> tracked.reconstruct(sigma=0.15)["weight"].shape
    torch.Size([4, 4])
    """

    def __init__(
        self,
        model: Model,
        sigmas: Sequence[float] = (0.05, 0.10),
        *,
        every: int = 0,
        folder: str | Path | None = None,
        **options: Any,
    ) -> None:
        if len(set(sigmas)) != len(sigmas) or not sigmas:
            raise ValueError(f"sigmas are one or more different widths, got {tuple(sigmas)}")
        if every < 0:
            raise ValueError(f"every is at least 0, got {every}")
        self.every, self.folder = every, None if folder is None else Path(folder)
        self.averages = {s: EMA(model, PowerLaw.of_width(s), label=f"average/{s:g}", **options) for s in sigmas}
        self.snapshots: list[tuple[float, int]] = []
        """``(sigma, step)`` of each snapshot, in order."""
        self._kept: dict[tuple[float, int], dict[str, Any]] = {}
        """The snapshots themselves, unless they are in files."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)

    @property
    def step(self) -> int:
        """Number of calls of :meth:`update`."""
        return next(iter(self.averages.values())).step

    def update(self, model: Model | None = None) -> None:
        """Update every average, and take snapshots if they are due. Call this after the optimizer's step."""
        for average in self.averages.values():
            average.update(model)
        if self.every and self.step % self.every == 0:
            self.snapshot()

    def snapshot(self) -> None:
        """Keep a snapshot of every average."""
        if self.step == 0:
            raise RuntimeError("there is nothing to keep before the first update")
        for sigma, average in self.averages.items():
            key = (sigma, self.step)
            if key in self.snapshots:
                raise RuntimeError(f"there is a snapshot of step {self.step} already")
            if self.folder is None:
                self._kept[key] = average.store.snapshot()
            else:
                write_file({"averages": average.store.state_dict()}, self._path(key))
            self.snapshots.append(key)

    def _path(self, key: tuple[float, int]) -> Path:
        assert self.folder is not None
        return self.folder / f"average-{key[0]:g}-{key[1]:08d}.safetensors"

    def plan(self, sigma: float, step: int | None = None) -> Reconstruction:
        """Return the combination of snapshots for relative width `sigma` at a step (default: the last snapshot)."""
        if not self.snapshots:
            raise RuntimeError("there are no snapshots yet: give every= or call snapshot()")
        profiles = [(power_exponent(s), float(t)) for s, t in self.snapshots]
        return reconstruct_weights(profiles, (power_exponent(sigma), float(step or self.snapshots[-1][1])))

    @torch.no_grad()
    def reconstruct(self, sigma: float, step: int | None = None) -> dict[str, Tensor]:
        """Return the average of relative width `sigma` at a step (default: the last snapshot), in fp32, by name."""
        plan = self.plan(sigma, step)
        total: dict[str, Tensor] = {}
        for key, weight in zip(self.snapshots, plan.weights, strict=True):
            if weight == 0.0:
                continue
            for name, value in self._values(key):
                total[name] = value * weight if name not in total else total[name] + value * weight
        return total

    def _values(self, key: tuple[float, int]) -> Iterator[tuple[str, Tensor]]:
        store = self.averages[key[0]].store
        saved = self._kept[key] if self.folder is None else store.validate(read_file(self._path(key))["averages"])
        if set(saved) != set(store):
            raise ValueError(
                f"the snapshot of step {key[1]} is of other tensors than the averages are now: they differ in "
                f"{sorted(set(saved) ^ set(store))}. Give the step= of a snapshot taken since the model changed"
            )
        for name in store:
            yield name, store.read_from(name, saved[name])

    @torch.no_grad()
    def copy_to(self, model: Model, sigma: float, step: int | None = None) -> None:
        """Copy a reconstructed average into a model."""
        target = next(iter(self.averages.values())).pick(model)
        for name, value in self.reconstruct(sigma, step).items():
            local_part(target[name]).tensor.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages and snapshots. Snapshots in files are listed by name."""
        return {
            "averages": {f"{s:g}": average.state_dict() for s, average in self.averages.items()},
            "snapshots": [[s, t] for s, t in self.snapshots],
            "kept": {f"{s:g}@{t}": self._kept[s, t] for s, t in self.snapshots if (s, t) in self._kept},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the result of :meth:`state_dict`."""
        wanted = {f"{s:g}" for s in self.averages}
        if set(state_dict["averages"]) != wanted:
            raise ValueError(f"the state_dict has widths {sorted(state_dict['averages'])}, this one {sorted(wanted)}")
        snapshots = [(float(s), count("snapshot", "step", t)) for s, t in state_dict["snapshots"]]
        here = snapshots if self.folder is None else []
        kept = {(s, t): self.averages[s].store.validate(state_dict["kept"][f"{s:g}@{t}"]) for s, t in here}
        for s, average in self.averages.items():
            average.load_state_dict(state_dict["averages"][f"{s:g}"])
        self.snapshots, self._kept = snapshots, kept
