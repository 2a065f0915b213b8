"""The Adam family."""

from __future__ import annotations

from halfulp.optim.base import HyperOptimizer
from halfulp.rules import adam, ademamix, adopt, micro_adam, spam, swats, variants

__all__ = [
    "ADOPT", "SPAM", "SWATS", "AdEMAMix", "AdaBelief", "AdaBound", "AdaMod", "AdaMomentum", "DiffGrad", "EXAdam",
    "MicroAdam",
]  # fmt: skip


class AdaBelief(HyperOptimizer):
    """AdaBelief: the second moment measures surprise, the distance of a gradient from its average.

    Zhuang et al., arXiv 2010.07468. Arguments: :class:`~halfulp.rules.variants.AdaBeliefHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.AdaBelief(model.parameters(), lr=1e-3, state="bf16")
    """

    rule = variants.ADABELIEF
    hyper = variants.AdaBeliefHyper


class AdaMomentum(HyperOptimizer):
    """AdaMomentum: the second moment is of the first moment.

    Wang et al., arXiv 2106.11514. The first step is ``lr / (1 - beta1)``: pair it with a warm-up. Arguments:
    :class:`~halfulp.rules.variants.AdaMomentumHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.AdaMomentum(model.parameters(), lr=1e-4, state="8bit")
    """

    rule = variants.ADAMOMENTUM
    hyper = variants.AdaMomentumHyper


class AdaMod(HyperOptimizer):
    """AdaMod: no coordinate's rate may exceed its own long average.

    Ding et al., arXiv 1910.12249. Arguments: :class:`~halfulp.rules.variants.AdaModHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.AdaMod(model.parameters(), lr=1e-3, state="8bit")
    """

    rule = variants.ADAMOD
    hyper = variants.AdaModHyper


class AdaBound(HyperOptimizer):
    """AdaBound and, with ``amsbound=True``, AMSBound: from Adam to SGD.

    Luo et al., arXiv 1902.09843. Arguments: :class:`~halfulp.rules.variants.AdaBoundHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.AdaBound(model.parameters(), lr=1e-3, final_lr=0.1, state="8bit")
    """

    rule = variants.ADABOUND
    hyper = variants.AdaBoundHyper


class DiffGrad(HyperOptimizer):
    """diffGrad: Adam's step, damped where the gradient hardly changes.

    Dubey et al., arXiv 1909.11015. Arguments: :class:`~halfulp.rules.adam.AdamHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.DiffGrad(model.parameters(), lr=1e-3, state="8bit")
    """

    rule = variants.DIFFGRAD
    hyper = adam.AdamHyper


class EXAdam(HyperOptimizer):
    """EXAdam: bias corrections that know each other, and the gradient once more.

    arXiv 2412.20302. The first step is 16 times Adam's: take a smaller `lr`. Arguments:
    :class:`~halfulp.rules.adam.AdamHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.EXAdam(model.parameters(), lr=1e-4, state="8bit")
    """

    rule = variants.EXADAM
    hyper = adam.AdamHyper


class AdEMAMix(HyperOptimizer):
    """AdEMAMix: a fast and a slow average of the gradient.

    Pagliardini et al., arXiv 2409.03137. The slow average, at 0.9999, stalls first of all (``docs/optimizers.md``).
    Arguments: :class:`~halfulp.rules.ademamix.AdEMAMixHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.AdEMAMix(model.parameters(), lr=1e-3, alpha=5.0, warmup=10_000, state="8bit")
    """

    rule = ademamix.ADEMAMIX
    hyper = ademamix.AdEMAMixHyper


class ADOPT(HyperOptimizer):
    """ADOPT: Adam that converges with any beta2.

    Taniguchi et al., arXiv 2411.02853. Arguments: :class:`~halfulp.rules.adopt.ADOPTHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.ADOPT(model.parameters(), lr=1e-3, state="8bit")
    """

    rule = adopt.ADOPT
    hyper = adopt.ADOPTHyper


class SPAM(HyperOptimizer):
    """SPAM: spikes of the gradient are clipped, moments reset at a fixed period.

    Huang et al., arXiv 2501.06842, without its sparse masks. Compare its resets with ``reset="auto"`` (``period=0``
    leaves these out). Arguments: :class:`~halfulp.rules.spam.SPAMHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.SPAM(model.parameters(), lr=1e-3, state="fp8")
    """

    rule = spam.SPAM
    hyper = spam.SPAMHyper


class SWATS(HyperOptimizer):
    """SWATS: Adam, until its steps say at which rate SGD would make them; SGD with momentum from there on.

    Keskar & Socher, arXiv 1712.07628. :meth:`~halfulp.RuleOptimizer.state_tensor` ``(p, "sgd_rate")`` is 0 before, and
    the factor of ``lr`` afterwards. Arguments: :class:`~halfulp.rules.swats.SWATSHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.SWATS(model.parameters(), lr=1e-3, state="8bit")
    """

    rule = swats.SWATS
    hyper = swats.SWATSHyper


class MicroAdam(HyperOptimizer):
    """MicroAdam: moments over a window of sparse gradients; the rest of each is fed back into the next.

    Modoranu et al., arXiv 2405.15593. With ``state="4bit"`` 0.8 bytes a weight. Arguments:
    :class:`~halfulp.rules.micro_adam.MicroAdamHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.MicroAdam(model.parameters(), lr=1e-3, state="4bit")
    """

    rule = micro_adam.MICRO_ADAM
    hyper = micro_adam.MicroAdamHyper
