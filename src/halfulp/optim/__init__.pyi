# Written by tools/stubs.py from the declarations in rules/.
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from halfulp.engine.options import TorchOptions
from halfulp.optim.badam import BAdam as _BAdam
from halfulp.optim.muon import Muon as _Muon
from halfulp.optim.base import HyperOptimizer as HyperOptimizer
from halfulp.optim.base import optimizer as optimizer

__all__: list[str]
OPTIMIZERS: tuple[type[HyperOptimizer], ...]

class ADOPT(HyperOptimizer):
    """ADOPT: Adam that converges with any beta2."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-06,
        clip: bool = True,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class AMAdamW(HyperOptimizer):
    """AMAdamW: AdamW in which each tensor sets its momentum coefficient in each step."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.01,
        decoupled_weight_decay: bool = True,
        betas: tuple[float, float] = (0.89, 0.999),
        eps: float = 1e-08,
        lam: float = 0.1,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class AMSGD(HyperOptimizer):
    """AMSGD: SGD whose momentum coefficient is set in each step."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.1,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        lam: float = 0.1,
        max_momentum: float = 0.9,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class AdEMAMix(HyperOptimizer):
    """AdEMAMix: a fast and a slow average of the gradient."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.01,
        decoupled_weight_decay: bool = True,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: float = 1e-08,
        alpha: float = 5.0,
        warmup: int = 0,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class AdaBelief(HyperOptimizer):
    """AdaBelief: Adam with the second moment of the gradient's deviation from its average."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class AdaBound(HyperOptimizer):
    """AdaBound: Adam that turns into SGD through bounds on each coordinate's rate."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        final_lr: float = 0.1,
        gamma: float = 0.001,
        amsbound: bool = False,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class AdaLomo(HyperOptimizer):
    """AdaLomo: Adafactor with a given learning rate, made to run during the backward pass."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        decay_power: float = 0.8,
        momentum: float = 0.0,
        clip: float = 1.0,
        eps: float = 1e-30,
        min_scale: float = 0.001,
        relative_step: bool = False,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class AdaMod(HyperOptimizer):
    """AdaMod: Adam with each coordinate's rate capped by its long-term average."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        betas: tuple[float, float, float] = (0.9, 0.99, 0.9999),
        eps: float = 1e-08,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class AdaMomentum(HyperOptimizer):
    """AdaMomentum: Adam with the second moment of the first moment."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.0005,
        decoupled_weight_decay: bool = False,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class Adafactor(HyperOptimizer):
    """Adafactor: Adam with a second moment factored into rows and columns."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.01,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        decay_power: float = 0.8,
        momentum: float = 0.0,
        clip: float = 1.0,
        eps: float = 1e-30,
        min_scale: float = 0.001,
        relative_step: bool = True,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class Adam(HyperOptimizer):
    """Adam: two moments of the gradient, bias-corrected."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        decoupled_weight_decay: bool = False,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class AdamP(HyperOptimizer):
    """AdamP: Adam without the step component along weights that a normalization layer follows."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class AdamW(HyperOptimizer):
    """AdamW: Adam with decoupled weight decay."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class BAdam(_BAdam):
    """BAdam: Adam on one block of layers at a time; the other blocks have no states and no gradients."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        period: int = 50,
        order: str = "descending",
        block_seed: int = 0,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class CAME(HyperOptimizer):
    """CAME: Adafactor with updates divided by their deviation from their average."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.0002,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: tuple[float, float] = (1e-30, 1e-16),
        clip: float = 1.0,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class CoRe(HyperOptimizer):
    """CoRe: Rprop's step sizes on Adam's direction."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.1,
        decoupled_weight_decay: bool = True,
        betas: tuple[float, float, float, float] = (0.7375, 0.8125, 250.0, 0.99),
        steps: tuple[float, float] = (1e-06, 0.01),
        etas: tuple[float, float] = (0.7375, 1.2),
        eps: float = 1e-08,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class ComplexMomentum(HyperOptimizer):
    """ComplexMomentum: a complex momentum coefficient, for games."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.01,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        momentum: float = 0.9,
        phase: float = 0.39269908169872414,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class Conda(HyperOptimizer):
    """Conda: Adam in the singular basis of the first moment, on the shorter side."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        period: int = 2000,
        update_scale: float = 1.0,
        *,
        split: str | None = None,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class DiffGrad(HyperOptimizer):
    """DiffGrad: Adam with steps damped where the gradient hardly changes."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class EXAdam(HyperOptimizer):
    """EXAdam: Adam with joint bias corrections and an extra gradient term."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class FRUGAL(HyperOptimizer):
    """FRUGAL: AdamW on some columns, signSGD on the rest."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        density: float = 0.25,
        period: int = 200,
        sign_scale: float = 1.0,
        column_seed: int = 0,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class Gravity(HyperOptimizer):
    """Gravity: momentum on gradients that are damped where they are large."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.1,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        momentum: float = 0.9,
        alpha: float = 0.01,
        init_seed: int = 0,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class LAMB(HyperOptimizer):
    """LAMB: Adam with updates scaled to the norm of the weights."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-06,
        max_norm: float | None = None,
        bias_correction: str = "moments",
        **options: Unpack[TorchOptions],
    ) -> None: ...

class LARS(HyperOptimizer):
    """LARS: SGD with momentum on gradients scaled to the norm of the weights."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class Lion(HyperOptimizer):
    """Lion: the sign of a momentum, with decoupled weight decay."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.0001,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class MADGRAD(HyperOptimizer):
    """MADGRAD: dual averaging, with sums instead of moving averages."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.01,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
        momentum: float = 0.9,
        eps: float = 1e-06,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class MicroAdam(HyperOptimizer):
    """MicroAdam: Adam over a window of sparse gradients, with error feedback."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        window: int = 10,
        density: float = 0.01,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class Muon(_Muon):
    """Muon: orthogonalized momentum of each matrix; AdamW for vectors, embeddings and output layers."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.1,
        decoupled_weight_decay: bool = True,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315),
        ns_steps: int = 5,
        ns_eps: float = 1e-07,
        adjust_lr_fn: str = "match_rms_adamw",
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-08,
        fallback: tuple[str, ...] = ("*emb*", "*w[tp]e*", "*lm_head*", "*head.weight", "*shared.weight", "*_bias.w*"),
        *,
        split: str | None = None,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class SGD(HyperOptimizer):
    """SGD: heavy-ball or Nesterov momentum, with dampening and weight decay."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class SMMF(HyperOptimizer):
    """SMMF: Adam with both moments factored after reshaping to a near square."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        eps: float = 1e-08,
        momentum: float = 0.9,
        growth: float = 0.999,
        decay_power: float = 0.8,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class SOAP(HyperOptimizer):
    """SOAP: Adam in the eigenbases of Shampoo's two matrices."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.003,
        weight_decay: float = 0.01,
        decoupled_weight_decay: bool = True,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-08,
        period: int = 10,
        max_dim: int = 10000,
        *,
        split: str | None = None,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class SPAM(HyperOptimizer):
    """SPAM: Adam with clipped gradient spikes and periodic resets."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-06,
        threshold: float = 5000.0,
        period: int = 500,
        warmup: int = 150,
        patience: int = 20,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class SWATS(HyperOptimizer):
    """SWATS: Adam that switches to SGD with momentum, at a learning rate estimated from its steps."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.001,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-09,
        tolerance: float = 1e-09,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class SubsetNorm(HyperOptimizer):
    """SubsetNorm: AdamW with one second moment per row or per column, whichever are fewer."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.01,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        **options: Unpack[TorchOptions],
    ) -> None: ...

class SubspaceMomentum(HyperOptimizer):
    """SubspaceMomentum: SubsetNorm with a first moment in a subspace only."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 0.01,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-08,
        rank: int = 128,
        period: int = 200,
        *,
        split: str | None = None,
        **options: Unpack[TorchOptions],
    ) -> None: ...
