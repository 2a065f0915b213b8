"""Three open questions of the reset theory, each as a small experiment. Results: docs/results/theory-checks.md.

``sr``: resets with stochastic rounding. At which fall of the gradient's scale does the planner's cost call for them,
and does that depend on the format?

``sparse``: gradients that are mostly zero. What does the chain of a mixture predict, and what does the plan for normal
gradients cost above the best one, by brute force?

``loop``: resets triggered by the measured lag or stalled fraction, compared with the fixed plan. The measure is the
simulated error of Adam's update, at a constant scale, a falling one, and one that drops to a tenth.

Usage: python benchmarks/theory_open.py sr|sparse|loop
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import numpy as np
from theory_planner import brute_force, round_bits

from halfulp import get_format, plan_reset
from halfulp.rules.drives import Drive
from halfulp.theory.chain import Chain
from halfulp.theory.cost import cycle_cost, squared_error, update_parts
from halfulp.theory.transient import transient, transients

RATES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.8)


def stochastic() -> None:
    print("period with the least cost (gain over no reset), by e-folds of sigma per window; beta2 0.99")
    for name in ("ufloat4_e2m2", "float8_e4m3fn", "bfloat16"):
        chain = Chain(get_format(name), 0.99, "stochastic", phases=8)
        cells = []
        for law in transients(chain, RATES, 3000):
            cost = cycle_cost(squared_error(update_parts(law, 0.9, 3000)))
            best = int(cost.argmin()) + 1
            word = "never" if best == 3000 else f"{best} ({1 - cost[best - 1] / cost[-1]:.0%})"
            cells.append(f"{word:>12}")
        print(f"{name:14}", *cells)


def sparse() -> None:
    print(
        "beta2 0.999, nearest: stalled fraction at age 1000; plain plan, best period by brute force, regret of the plan"
    )
    for name in ("float8_e4m3fn", "ufloat4_e2m2"):
        fmt = get_format(name)
        plain = plan_reset(name, beta=0.999, rounding="nearest", criterion="total").period
        assert plain is not None
        for share in (1.0, 0.3, 0.1, 0.03):
            drive = Drive("square", mixture=((1 - share, 0.0), (share, 1.0)) if share < 1 else ((1.0, 1.0),))
            law = transient(Chain(fmt, 0.999, "nearest", drive), 1000)
            cost = brute_force(fmt.mantissa_bits, 0.9, 0.999, 0.0, 6000, 2048, share)
            best = int(cost.argmin()) + 1
            regret = cost[plain - 1] / cost.min() - 1
            print(f"{name:14} {share:5g} {law.stalled[1000]:7.4f} {plain:6d} {best:6d} {regret:8.3f}", flush=True)


def loop() -> None:
    scenarios: dict[str, Callable[[float], float]] = {
        "constant": lambda x: 1.0,
        "falling": lambda x: math.exp(-0.6 * x),
        "drop": lambda x: 1.0 if x < 0.5 else 0.1,
    }
    print("mean error of Adam's update over 6000 steps, beta2 0.999, nearest (resets in brackets)")
    for name in ("float8_e4m3fn", "ufloat4_e2m2", "bfloat16"):
        bits = get_format(name).mantissa_bits
        period = plan_reset(name, beta=0.999, rounding="nearest", criterion="total").period
        assert period is not None
        rules: dict[str, Callable[[int, float, float], bool]] = {
            "never": lambda age, lag, stalled: False,
            f"every {period}": lambda age, lag, stalled, k=period: age >= k,
        }
        for limit in (0.1, 0.25, 0.5, 0.8):
            rules[f"lag {limit}"] = lambda age, lag, stalled, x=limit: age >= 100 and abs(lag) >= x
        for limit in (0.95, 0.98, 0.99):
            rules[f"stalled {limit}"] = lambda age, lag, stalled, x=limit: age >= 100 and stalled >= x
        for rule, due in rules.items():
            cells = [f"{e:8.3f} ({r})" for e, r in (_adam(bits, sigma, due) for sigma in scenarios.values())]
            print(f"{name:14} {rule:13}", *cells, flush=True)


def _adam(bits: int, sigma: Callable[[float], float], due: Callable[[int, float, float], bool]) -> tuple[float, int]:
    """Return the mean relative error of the update, and the number of resets."""
    rng = np.random.default_rng(0)
    n, steps, b1, b2 = 2048, 6000, 0.9, 0.999
    own = (2.0 ** (rng.random(n) / 2)).astype(np.float32)
    m, young, v, shadow = (np.zeros(n, np.float32) for _ in range(4))
    total, resets, age, lag, stalled = 0.0, 0, 0, 0.0, 0.0
    for step in range(steps + 100):
        scale = np.float32(sigma(max(step - 100, 0) / steps)) * own
        g = scale * rng.standard_normal(n, dtype=np.float32)
        m = np.float32(b1) * m + np.float32(1 - b1) * g
        if step < 100:
            continue
        if due(age, lag, stalled):
            young, v, shadow, age, resets = 0 * young, 0 * v, 0 * shadow, 0, resets + 1
        age += 1
        young = np.float32(b1) * young + np.float32(1 - b1) * g
        exact = np.float32(b2) * v + np.float32(1 - b2) * g * g
        shadow = np.float32(b2) * shadow + np.float32(1 - b2) * g * g
        update = young / (1 - b1**age) / np.sqrt(exact / (1 - b2**age))
        total += float(np.mean((update - m / scale) ** 2)) * (1 + b1) / (1 - b1)
        new = round_bits(exact, bits)
        stalled = float(np.mean(new == v))
        v = new
        lag = float(np.median(np.log(v / shadow)))
    return total / steps, resets


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=["sr", "sparse", "loop"])
    {"sr": stochastic, "sparse": sparse, "loop": loop}[parser.parse_args().question]()


if __name__ == "__main__":
    main()
