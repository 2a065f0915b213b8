"""Generation of files in ``csrc/``: run ``python -m halfulp.kernels.generate`` after changing rules or constants.

``generated.h`` has the C code of every program of the library's rules, and ``constants.h`` has the constants that C
shares with Python. A test checks that both are current. Other programs run on the vector machine, with the same bits.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

from halfulp import rules
from halfulp.kernels.code import c_function
from halfulp.kernels.constants import MAX_SLOTS, MAX_SUMS, MAX_VECTORS, PARTS, header
from halfulp.rules.adam import ADAM
from halfulp.rules.base import Rule
from halfulp.rules.program import Program
from halfulp.rules.tracing import ProgramError, traced
from halfulp.rules.transforms import adagc, clip_global, compose

__all__ = ["files", "library_programs"]

FOLDER = Path(__file__).with_name("csrc")
TRANSFORMS = (clip_global(1.0), adagc())
"""Transforms that are fused into Adam. With other rules, they run on the machine."""


class _Always(dict[str, Any]):
    """Hyper-parameters that are all on or all off, to find the slots that a rule can have."""

    def __init__(self, value: float) -> None:
        super().__init__(betas=(0.9, 0.99, 0.9, 0.9))
        self.value = value

    def __missing__(self, name: str) -> float:
        return self.value

    def get(self, name: str, default: object = None) -> Any:
        return self[name]


def library_rules() -> list[Rule]:
    """Return every rule of the library."""
    found: dict[Rule, None] = {}
    for module in pkgutil.iter_modules(rules.__path__):
        values = vars(importlib.import_module(f"{rules.__name__}.{module.name}")).values()
        found.update(dict.fromkeys(x for x in values if isinstance(x, Rule)))
    return [*found, *(compose(ADAM, (transform,)) for transform in TRANSFORMS)]


def library_programs() -> dict[str, Program]:
    """Return the programs of the library's rules, by digest."""
    found: dict[str, Program] = {}
    for rule in library_rules():
        for hyper in (_Always(0.5), _Always(0.0)):
            slots = rule.slots(hyper)
            for function in (rule.update, rule.measure):
                for ndim in (1, 2):
                    there = [s for s in slots if s.shape((2, 3)[:ndim]) is not None]
                    try:
                        branches = traced(rule, function, there, ndim) if function else None
                    except ProgramError:
                        continue
                    programs = [one for p in branches.programs for one in p.programs] if branches else []
                    found.update({p.digest: p for p in programs if _fits(p)})
    return found


def _fits(program: Program) -> bool:
    """Whether a program is within the limits of C."""
    of_columns = sum(kind == "columns" for _, _, kind in program.terms)
    few = max(len(program.columns), of_columns) <= MAX_VECTORS
    return len(program.states) <= MAX_SLOTS and len(program.terms) <= MAX_SUMS and few


def files() -> dict[str, str]:
    """Return the names and contents of the generated files."""
    programs = sorted(library_programs().values(), key=lambda p: p.digest)
    lines = ["/* Written by kernels/generate.py from the rules of the library: one function for each program. */"]
    for part in range(PARTS):
        mine = programs[part::PARTS]
        lines += [f"#if HU_PART == {part}", *(f"\n{c_function(p)}" for p in mine)]
        lines += ["", "static const hu_program table[] = {"]
        lines += [*(f"    {{0x{p.digest}u, p{p.digest}}}," for p in mine), "};", "#endif", ""]
    return {"generated.h": "\n".join(lines), "constants.h": header()}


if __name__ == "__main__":
    for name, text in files().items():
        (FOLDER / name).write_text(text)
        print(FOLDER / name)
