"""Kernel cases and random steps on a library built with sanitizers: ``python -m support.sanitized PATH COUNT``.

A sanitizer's finding ends the process. Plain threads are used, since ThreadSanitizer does not support OpenMP's.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from halfulp.kernels import native

native.PATH = Path(sys.argv[1])

from support.cpu_runs import FEW, assert_cpu_has_the_bits  # noqa: E402 - after the library has been chosen
from support.kernel_cases import AVERAGES, CASES  # noqa: E402
from support.random_codecs import search as search_codecs  # noqa: E402
from support.random_steps import search as search_steps  # noqa: E402
from support.seeds import FIRST  # noqa: E402


def main() -> None:
    count = int(sys.argv[2])
    torch.set_num_threads(2)
    native.library().hu_set_parallel(None)
    chosen = [*FEW, *[*CASES, *AVERAGES][:: max(1, 2000 // count)]]
    for case in chosen:
        assert_cpu_has_the_bits(case)
    codecs, differed = search_codecs(FIRST, count)
    steps = search_steps(FIRST, count // 10)
    assert not differed, differed
    assert not steps.differed, steps.differed
    print(f"{len(chosen)} cases, {codecs} codecs, {steps.agreed} runs")


if __name__ == "__main__":
    main()
