# Written by tools/stubs.py from the declarations in rules/.
from halfulp import averaging as averaging
from halfulp import checkpoint as checkpoint
from halfulp import kernels as kernels
from halfulp import monitor as monitor
from halfulp import numbers as numbers
from halfulp import optim as optim
from halfulp import testing as testing
from halfulp import theory as theory
from halfulp import training as training
from halfulp import workers as workers
from halfulp.checkpoint.convert import convert_state_dict as convert_state_dict
from halfulp.checkpoint.files import load_optimizer as load_optimizer
from halfulp.checkpoint.files import save_optimizer as save_optimizer
from halfulp.checkpoint.fp32 import fp32_params as fp32_params
from halfulp.checkpoint.fp32 import fp32_state_dict as fp32_state_dict
from halfulp.checkpoint.fp32 import fp32_weights as fp32_weights
from halfulp.checkpoint.fp32 import load_fp32_state_dict as load_fp32_state_dict
from halfulp.checkpoint.selftest import check_roundtrip as check_roundtrip
from halfulp.engine.resets import Every as Every
from halfulp.engine.resets import Planned as Planned
from halfulp.engine.resets import ResetSchedule as ResetSchedule
from halfulp.engine.resets import Staggered as Staggered
from halfulp.engine.rows import resize_states as resize_states
from halfulp.monitor import GradientSample as GradientSample
from halfulp.monitor import StallMonitor as StallMonitor
from halfulp.numbers import formats as formats
from halfulp.numbers.formats import Format as Format
from halfulp.numbers.formats import get_format as get_format
from halfulp.numbers.formats import register_format as register_format
from halfulp.numbers.quantizer import Quantizer as Quantizer
from halfulp.numbers.rounding import round_to as round_to
from halfulp.numbers.scaling import Scaling as Scaling
from halfulp.optim import ADOPT as ADOPT
from halfulp.optim import AMAdamW as AMAdamW
from halfulp.optim import AMSGD as AMSGD
from halfulp.optim import AdEMAMix as AdEMAMix
from halfulp.optim import AdaBelief as AdaBelief
from halfulp.optim import AdaBound as AdaBound
from halfulp.optim import AdaLomo as AdaLomo
from halfulp.optim import AdaMod as AdaMod
from halfulp.optim import AdaMomentum as AdaMomentum
from halfulp.optim import Adafactor as Adafactor
from halfulp.optim import Adam as Adam
from halfulp.optim import AdamP as AdamP
from halfulp.optim import AdamW as AdamW
from halfulp.optim import BAdam as BAdam
from halfulp.optim import CAME as CAME
from halfulp.optim import CoRe as CoRe
from halfulp.optim import ComplexMomentum as ComplexMomentum
from halfulp.optim import Conda as Conda
from halfulp.optim import DiffGrad as DiffGrad
from halfulp.optim import EXAdam as EXAdam
from halfulp.optim import FRUGAL as FRUGAL
from halfulp.optim import Gravity as Gravity
from halfulp.optim import HyperOptimizer as HyperOptimizer
from halfulp.optim import LAMB as LAMB
from halfulp.optim import LARS as LARS
from halfulp.optim import Lion as Lion
from halfulp.optim import MADGRAD as MADGRAD
from halfulp.optim import MicroAdam as MicroAdam
from halfulp.optim import Muon as Muon
from halfulp.optim import OPTIMIZERS as OPTIMIZERS
from halfulp.optim import SGD as SGD
from halfulp.optim import SMMF as SMMF
from halfulp.optim import SOAP as SOAP
from halfulp.optim import SPAM as SPAM
from halfulp.optim import SWATS as SWATS
from halfulp.optim import SubsetNorm as SubsetNorm
from halfulp.optim import SubspaceMomentum as SubspaceMomentum
from halfulp.optim import optimizer as optimizer
from halfulp.rules.transforms import adagc as adagc
from halfulp.rules.transforms import clip_coordinates as clip_coordinates
from halfulp.rules.transforms import clip_global as clip_global
from halfulp.theory.closed_loop import Measured as Measured
from halfulp.theory.planner import plan_reset as plan_reset
from halfulp.theory.predict import stall_curve as stall_curve
from halfulp.theory.predict import stall_probability as stall_probability
from halfulp.training import Lookahead as Lookahead
from halfulp.training import LowPass as LowPass
from halfulp.training import schedules as schedules
from halfulp.training import trainers as trainers
from halfulp.training.autodrop import AutoDrop as AutoDrop
from halfulp.training.schedules import linear_to_zero as linear_to_zero
from halfulp.training.schedules import refined as refined
from halfulp.training.schedules import scale_adam as scale_adam
from halfulp.training.schedules import warmup_stable_decay as warmup_stable_decay

wrappers = training
__version__: str
__all__ = [
    "ADOPT",
    "AMAdamW",
    "AMSGD",
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
    "AutoDrop",
    "BAdam",
    "CAME",
    "CoRe",
    "ComplexMomentum",
    "Conda",
    "DiffGrad",
    "EXAdam",
    "Every",
    "FRUGAL",
    "Format",
    "GradientSample",
    "Gravity",
    "HyperOptimizer",
    "LAMB",
    "LARS",
    "Lion",
    "Lookahead",
    "LowPass",
    "MADGRAD",
    "Measured",
    "MicroAdam",
    "Muon",
    "OPTIMIZERS",
    "Planned",
    "Quantizer",
    "ResetSchedule",
    "SGD",
    "SMMF",
    "SOAP",
    "SPAM",
    "SWATS",
    "Scaling",
    "Staggered",
    "StallMonitor",
    "SubsetNorm",
    "SubspaceMomentum",
    "adagc",
    "check_roundtrip",
    "clip_coordinates",
    "clip_global",
    "convert_state_dict",
    "fp32_params",
    "fp32_state_dict",
    "fp32_weights",
    "get_format",
    "linear_to_zero",
    "load_fp32_state_dict",
    "load_optimizer",
    "optimizer",
    "plan_reset",
    "refined",
    "register_format",
    "resize_states",
    "round_to",
    "save_optimizer",
    "scale_adam",
    "stall_curve",
    "stall_probability",
    "warmup_stable_decay",
]
