"""Checks for your own optimizer: the conventions of torch.optim, training in every format, and exact bits.

Examples
--------
>>> import halfulp
>>> report = halfulp.testing.check_optimizer(halfulp.Lion, skip=["trains", "same_bits", "resume"])
>>> report.passed[:3]
('declaration', 'pure_update', 'elementwise')
"""

from halfulp.testing.check import CONVENTIONS, CheckReport, ConventionError, check_optimizer

__all__ = ["CONVENTIONS", "CheckReport", "ConventionError", "check_optimizer"]
