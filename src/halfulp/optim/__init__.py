"""The optimizers: thin classes that name a rule and its hyper-parameters."""

from halfulp.optim.base import HyperOptimizer
from halfulp.optim.classic import SGD, Adam, AdamW, Lion
from halfulp.optim.family import ADOPT, SPAM, AdaBelief, AdaBound, AdaMod, AdaMomentum, AdEMAMix, DiffGrad, EXAdam
from halfulp.optim.layers import CAME, FRUGAL, LAMB, LARS, SMMF, SOAP, Adafactor, AdaLomo, AdamP, Conda, SubsetNorm
from halfulp.optim.momentum import AMSGD, MADGRAD, AMAdamW, ComplexMomentum, CoRe, Gravity
from halfulp.optim.muon import Muon

__all__ = [
    "ADOPT",
    "AMSGD",
    "CAME",
    "FRUGAL",
    "LAMB",
    "LARS",
    "MADGRAD",
    "OPTIMIZERS",
    "SGD",
    "SMMF",
    "SOAP",
    "SPAM",
    "AMAdamW",
    "AdEMAMix",
    "AdaBelief",
    "AdaBound",
    "AdaLomo",
    "AdaMod",
    "AdaMomentum",
    "Adafactor",
    "Adam",
    "AdamP",
    "AdamW",
    "CoRe",
    "ComplexMomentum",
    "Conda",
    "DiffGrad",
    "EXAdam",
    "Gravity",
    "HyperOptimizer",
    "Lion",
    "Muon",
    "SubsetNorm",
]

OPTIMIZERS = (
    ADOPT,
    AMAdamW,
    AMSGD,
    AdEMAMix,
    AdaBelief,
    AdaBound,
    AdaLomo,
    AdaMod,
    AdaMomentum,
    Adafactor,
    Adam,
    AdamP,
    AdamW,
    CAME,
    CoRe,
    ComplexMomentum,
    Conda,
    DiffGrad,
    EXAdam,
    FRUGAL,
    Gravity,
    LAMB,
    LARS,
    Lion,
    MADGRAD,
    Muon,
    SGD,
    SMMF,
    SOAP,
    SPAM,
    SubsetNorm,
)
"""Every optimizer: what the matrix of tests runs over."""
