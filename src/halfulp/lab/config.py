"""The configuration of a comparison."""

from __future__ import annotations

from dataclasses import dataclass, replace

from halfulp.lab.arms import DEFAULT_ARMS, Arm, parse_arm, reset_period
from halfulp.lab.model import MODELS
from halfulp.theory.arguments import check_beta, check_rates, check_steps

__all__ = ["CompareConfig", "RunSpec"]


@dataclass(frozen=True)
class CompareConfig:
    """Configuration of a comparison: the arms and their common settings. Most are options of ``halfulp compare``.

    Parameters
    ----------
    seeds, lrs
        Each arm runs with each seed (of initial weights, data order and random bits) and each peak learning rate.
    clip, warmup
        The largest gradient norm, and the steps of linear warm-up, after which a cosine falls to a tenth. Clipping is
        nearly always active, which keeps the gradient's scale constant, as the theory assumes.
    sample, validation
        Number of watched coordinates, and of validation sequences.
    average_decay
        Decay of the weight averages that the plain fp32 arm keeps; ``None`` for no averages. The default is a window of
        a fifth of the default run, so that the start has almost no weight.
    gradient_blocks
        Number of blocks whose gradients each low-precision arm records for its own prediction; 0 for none.
    """

    arms: tuple[str, ...] = DEFAULT_ARMS
    seeds: tuple[int, ...] = (0,)
    lrs: tuple[float, ...] = (2e-3,)
    steps: int = 1000
    batch: int = 8
    context: int = 128
    model: str = "llama"
    hidden: int = 64
    layers: int = 2
    heads: int = 4
    tokenizer: str = "bytes"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.1
    clip: float = 0.25
    warmup: int = 50
    measure_every: int = 20
    checkpoint_every: int = 100
    sample: int = 8192
    validation: int = 128
    average_decay: float | None = 0.995
    gradient_blocks: int = 32

    def __post_init__(self) -> None:
        for name in ("arms", "seeds", "lrs"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"a comparison needs at least one of its {name}")
            if len(set(values)) != len(values):
                raise ValueError(f"{name} are named once each, got {', '.join(map(str, values))}")
        counts = ("steps", "batch", "hidden", "layers", "heads", "measure_every", "checkpoint_every", "sample")
        for name in (*counts, "validation"):
            check_steps(getattr(self, name), name, least=1)
        check_steps(self.context, "context", least=2)
        check_steps(self.gradient_blocks, "gradient_blocks")
        check_rates(self.lrs)
        for beta in self.betas:
            check_beta(beta, "each of betas")
        if self.average_decay is not None:
            check_beta(self.average_decay, "average_decay (None for no averages)")
        if self.hidden % (2 * self.heads):
            raise ValueError(
                f"hidden is an even number for each head: {self.hidden} does not split over {self.heads} heads"
            )
        if self.model not in MODELS:
            raise ValueError(f"model is one of {', '.join(MODELS)}; got {self.model!r}")
        names = [arm.name for arm in self.parsed]
        if len(set(names)) != len(names):
            raise ValueError(f"arms are named once each, got {', '.join(names)}")

    @property
    def parsed(self) -> tuple[Arm, ...]:
        """The arms."""
        return tuple(parse_arm(text) for text in self.arms)

    def with_periods(self) -> CompareConfig:
        """Return the configuration with numeric reset periods."""
        arms = self.parsed
        periods = [reset_period(arm, arms) for arm in arms]
        return replace(self, arms=tuple(replace(a, reset=p).name for a, p in zip(arms, periods, strict=True)))

    def runs(self) -> tuple[RunSpec, ...]:
        """Return every run, seed by seed, so that an interrupted comparison has complete seeds."""
        arms = self.with_periods().parsed
        return tuple(RunSpec(arm, seed, lr) for seed in self.seeds for lr in self.lrs for arm in arms)


@dataclass(frozen=True)
class RunSpec:
    """One training run: an arm with a numeric reset period, a seed and a learning rate."""

    arm: Arm
    seed: int
    lr: float

    @property
    def period(self) -> int | None:
        """Steps between resets, or ``None`` for never."""
        return self.arm.reset

    @property
    def name(self) -> str:
        """Folder of the run."""
        return f"{self.arm.name}_lr{self.lr:g}_seed{self.seed}"
