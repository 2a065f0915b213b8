"""A published test battery (dieharder, `apt install dieharder`) on the random streams as the optimizers use them.

Five orders of the same words are piped into every test:

elements     one tensor of 2**22 elements, element by element, then the next step
small        16 elements of a small tensor in each step, for two alternating lanes, step by step
lanes        the alternating lanes of two states and of the parameter, element by element
parameters   the first 16 elements of one parameter after the other, in one step, then the next step
steps        a single element, step by step

The script prints one line per test and the number of weak and failed ones, and exits with 1 if any failed. A p-value is
weak below 0.005 or above 0.995, and failed below 1e-6 or above 1 - 1e-6 (dieharder's own limits). About one in a
hundred is expected to be weak.

Usage: python benchmarks/rng_battery.py [--orders elements steps] [--tests 0 1 2] [--bare-index]
``--bare-index`` leaves out the Weyl sequence, for comparison.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from halfulp.numbers.rng import GOLDEN, LANES, MULTIPLIERS, hash_elements, slot_id, stream_keys

Words = npt.NDArray[np.uint32]
TESTS = {
    0: "birthdays", 1: "overlapping permutations", 2: "rank 32x32", 3: "rank 6x8", 8: "count the 1s, stream",
    9: "count the 1s, byte", 13: "squeeze", 15: "runs", 16: "craps", 17: "greatest common divisor",
    100: "STS monobit", 101: "STS runs", 102: "STS serial", 200: "bit distribution", 203: "lagged sums",
    204: "Kolmogorov-Smirnov", 205: "byte distribution", 208: "filltree", 209: "monobit 2",
}  # fmt: skip
WITH_TUPLE = {200: "4", 203: "16"}


def words(keys: npt.NDArray[np.uint32], count: int, bare: bool, lane: int = 0) -> Words:
    """Return the words of the first `count` elements under each key, of shape ``(keys, count)``."""
    index = np.arange(count, dtype=np.uint32)
    x = (index if bare else index * np.uint32(GOLDEN)) ^ keys[:, :1]
    x = (x ^ (x >> np.uint32(16))) * np.uint32(MULTIPLIERS[0]) + keys[:, 1:]
    x = (x ^ (x >> np.uint32(15))) * np.uint32(LANES[lane])
    return x ^ (x >> np.uint32(15))


def elements(bare: bool) -> Iterator[Words]:
    for step in itertools.count(1):
        yield words(stream_keys(0, 3, slot_id("exp_avg_sq"), [step]), 1 << 22, bare)


def small(bare: bool) -> Iterator[Words]:
    for start in itertools.count(1, 1 << 14):
        keys = stream_keys(0, 3, slot_id("optimizer"), np.arange(start, start + (1 << 14)))
        yield np.concatenate([words(keys, 16, bare, lane) for lane in (1, 2)], axis=1)


def lanes(bare: bool) -> Iterator[Words]:
    for step in itertools.count(1):
        keys = stream_keys(0, 3, slot_id("optimizer"), [step])
        yield np.stack([words(keys, 1 << 21, bare, lane) for lane in (1, 2, 0)], axis=-1)


def parameters(bare: bool) -> Iterator[Words]:
    for step in itertools.count(1):
        yield words(stream_keys(0, np.arange(1 << 15), slot_id("exp_avg"), step), 16, bare)


def steps(bare: bool) -> Iterator[Words]:
    for start in itertools.count(1, 1 << 18):
        yield words(stream_keys(0, 3, slot_id("exp_avg_sq"), np.arange(start, start + (1 << 18))), 1, bare)


ORDERS = {f.__name__: f for f in (elements, small, lanes, parameters, steps)}


def run(order: str, test: int, bare: bool) -> list[tuple[str, float, str]]:
    """Return (name, p-value, dieharder's verdict) of each result of a test on a stream."""
    command = ["dieharder", "-g", "200", "-d", str(test), "-c", ",", "-D", "test_name", "-D", "ntuple"]
    command += ["-D", "pvalues", "-D", "assessment", *(["-n", WITH_TUPLE[test]] if test in WITH_TUPLE else [])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for chunk in ORDERS[order](bare):
            process.stdin.write(np.ascontiguousarray(chunk).tobytes())
    except BrokenPipeError:  # the test has read enough
        pass
    lines = process.stdout.read().decode().splitlines()
    process.wait()
    fields = [[f.strip() for f in line.split(",")] for line in lines]
    return [
        (f"{f[0]} {f[1]}", float(f[2]), f[3]) for f in fields if len(f) == 4 and f[3] in ("PASSED", "WEAK", "FAILED")
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS))
    parser.add_argument("--tests", nargs="+", type=int, choices=TESTS, default=list(TESTS))
    parser.add_argument("--bare-index", action="store_true")
    args = parser.parse_args()
    if shutil.which("dieharder") is None:
        sys.exit("dieharder is not installed: apt install dieharder")
    if not args.bare_index:
        key = stream_keys(0, 0, 1, [1])
        expected = hash_elements(key[0], torch.arange(1000)).numpy()
        assert np.array_equal(words(key, 1000, False)[0].astype(np.int64), expected)
    counts = dict.fromkeys(("PASSED", "WEAK", "FAILED"), 0)
    for order in args.orders:
        for test in args.tests:
            for name, p, verdict in run(order, test, args.bare_index):
                counts[verdict] += 1
                print(f"{order:11} {name:24} p = {p:.6f}  {verdict}", flush=True)
    print(", ".join(f"{n} {verdict.lower()}" for verdict, n in counts.items()))
    sys.exit(counts["FAILED"] > 0)


if __name__ == "__main__":
    main()
