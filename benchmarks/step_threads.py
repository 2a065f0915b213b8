"""A step directly after torch operations, on the threads of torch's OpenMP runtime and on plain threads, interleaved.

python benchmarks/step_threads.py
"""

from __future__ import annotations

import time

import numpy as np
import torch

import halfulp
from halfulp.kernels import native


def main(elements: int = 1 << 20, rounds: int = 300, threads: int = 2) -> None:
    """Print milliseconds of both, and the ratio of plain threads to torch's, as 20th, 50th and 80th percentiles."""
    torch.set_num_threads(threads)
    library, address = native.library(), native.openmp_of_torch()
    param = torch.nn.Parameter(torch.randn(elements // 1024, 1024))
    param.grad = torch.randn_like(param)
    optimizer, other = halfulp.AdamW([param], state="fp8"), torch.randn(1 << 20)
    times: dict[str, list[float]] = {"torch's OpenMP": [], "plain threads": []}
    for _ in range(rounds):
        for name, function in zip(times, (address, None), strict=True):
            library.hu_set_parallel(function)
            for _ in range(3):
                other.add_(1.0)
            start = time.perf_counter()
            optimizer.step()
            times[name].append(time.perf_counter() - start)
    openmp, plain = (np.array(t[10:]) for t in times.values())
    for name, values in (("torch's OpenMP, ms", 1e3 * openmp), ("plain, ms", 1e3 * plain), ("ratio", plain / openmp)):
        print(f"{name:20s}", *(f"{v:8.3f}" for v in np.percentile(values, [20, 50, 80])))


if __name__ == "__main__":
    main()
