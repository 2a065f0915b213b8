"""Optimizers that look at a whole tensor: layer-wise, factored, matrices, subspaces."""

from __future__ import annotations

from halfulp.optim.base import HyperOptimizer
from halfulp.rules import factored, layerwise, matrix, subspace

__all__ = [
    "CAME",
    "FRUGAL",
    "LAMB",
    "LARS",
    "SMMF",
    "SOAP",
    "AdaLomo",
    "Adafactor",
    "AdamP",
    "Conda",
    "SubsetNorm",
    "SubspaceMomentum",
]


class AdamP(HyperOptimizer):
    """AdamP: no step along weights that a normalisation layer follows.

    Heo et al., arXiv 2006.08217. Arguments: :class:`~halfulp.rules.layerwise.AdamPHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.AdamP(model.parameters(), lr=1e-3, state="8bit")
    """

    rule = layerwise.ADAMP
    hyper = layerwise.AdamPHyper


class LAMB(HyperOptimizer):
    """LAMB: Adam's update, scaled to the norm of the weights.

    You et al., arXiv 1904.00962. Arguments: :class:`~halfulp.rules.layerwise.LAMBHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.LAMB(model.parameters(), lr=1e-3, state="8bit")
    """

    rule = layerwise.LAMB
    hyper = layerwise.LAMBHyper


class LARS(HyperOptimizer):
    """LARS: momentum on gradients scaled to the norm of the weights.

    You et al., arXiv 1708.03888. Arguments: :class:`~halfulp.rules.layerwise.LARSHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.LARS(model.parameters(), lr=1.0, state="8bit")
    """

    rule = layerwise.LARS
    hyper = layerwise.LARSHyper


class Adafactor(HyperOptimizer):
    """Adafactor: second moments by rows and columns.

    Shazeer & Stern, arXiv 1804.04235; as ``torch.optim.Adafactor``, whose ``beta2_decay=-0.8``,
    ``eps=(None, 1e-3)`` and ``d`` are ``decay_power=0.8``, ``eps`` and ``min_scale``, and ``clip`` here. Arguments:
    :class:`~halfulp.rules.factored.AdafactorHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.Adafactor(model.parameters(), lr=1e-2, momentum=0.9, state="8bit")
    """

    rule = factored.ADAFACTOR
    hyper = factored.AdafactorHyper


class AdaLomo(HyperOptimizer):
    """AdaLomo: Adafactor with a given rate, made to run during the backward pass.

    Lv et al., arXiv 2310.10195. See :func:`~halfulp.training.trainers.release_gradients`. Arguments:
    :class:`~halfulp.rules.factored.AdaLomoHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.AdaLomo(model.parameters(), lr=1e-3, state="fp32")
    """

    rule = factored.ADAFACTOR
    hyper = factored.AdaLomoHyper


class CAME(HyperOptimizer):
    """CAME: Adafactor's update, divided by how far it strays from its average.

    Luo et al., arXiv 2307.02047. No bias correction: the first steps are large. Arguments:
    :class:`~halfulp.rules.factored.CAMEHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.CAME(model.parameters(), lr=2e-4, state="8bit")
    """

    rule = factored.CAME
    hyper = factored.CAMEHyper


class SMMF(HyperOptimizer):
    """SMMF: both moments factored over the nearest square.

    Park & Lee, arXiv 2412.08894. Signs of the first moment take 1.33 bits a weight. Arguments:
    :class:`~halfulp.rules.factored.SMMFHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.SMMF(model.parameters(), lr=1e-3, state="bf16")
    """

    rule = factored.SMMF
    hyper = factored.SMMFHyper


class SOAP(HyperOptimizer):
    """SOAP: Adam in the eigenbases of Shampoo's two matrices.

    Vyas et al., arXiv 2409.11321. The bases stay in fp32. Arguments: :class:`~halfulp.rules.matrix.SOAPHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.SOAP(model.parameters(), lr=3e-3, state="8bit")
    """

    rule = matrix.SOAP
    hyper = matrix.SOAPHyper


class Conda(HyperOptimizer):
    """Conda: Adam in the singular basis of the first moment.

    arXiv 2509.24218. The basis stays in fp32. Arguments: :class:`~halfulp.rules.matrix.CondaHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.Conda(model.parameters(), lr=1e-3, state="8bit")
    """

    rule = matrix.CONDA
    hyper = matrix.CondaHyper


class SubsetNorm(HyperOptimizer):
    """AdamW with Subset-Norm: one second moment for each row or column.

    Nguyen & Nguyen, arXiv 2411.07120. Arguments: :class:`~halfulp.rules.subspace.SubsetNormHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.SubsetNorm(model.parameters(), lr=1e-2, state="8bit")
    """

    rule = subspace.SUBSET_NORM
    hyper = subspace.SubsetNormHyper


class SubspaceMomentum(HyperOptimizer):
    """AdamW with Subset-Norm and Subspace-Momentum: few second moments, and a first in a subspace alone.

    Nguyen & Nguyen, arXiv 2411.07120. Arguments: :class:`~halfulp.rules.subspace.SubspaceMomentumHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.SubspaceMomentum(model.parameters(), lr=1e-2, rank=16, state="8bit")
    """

    rule = subspace.SUBSPACE_MOMENTUM
    hyper = subspace.SubspaceMomentumHyper


class FRUGAL(HyperOptimizer):
    """FRUGAL: AdamW on some columns, signSGD on the rest.

    Zmushko et al., arXiv 2411.07837, with random columns. Arguments: :class:`~halfulp.rules.subspace.FRUGALHyper`.

    Examples
    --------
    >>> import torch, halfulp
    >>> model = torch.nn.Linear(64, 64)
    >>> optimizer = halfulp.FRUGAL(model.parameters(), lr=1e-3, density=0.25, state="8bit")
    """

    rule = subspace.FRUGAL
    hyper = subspace.FRUGALHyper
