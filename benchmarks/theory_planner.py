"""Cost of the planned reset periods above the best ones, by brute force.

The planner uses the chain and a small family of drifts. Here Adam's moments are simulated on the exact grid: `m` in
fp32, `v` rounded at every step, both reset at age 0. The error of `m_hat / sqrt(v_hat)` is relative to a first moment
that is never reset, over the true scale, and is averaged over coordinates. One simulated cycle gives the cost of every
period up to its length. The gradient's scale falls at rates outside the planner's family.

The regret of a plan is its cost over the least cost, minus 1. Both are the worst over the drifts, relative to the least
cost under the same drift: what a single period loses against the best single period.

``--time`` times a plan instead, for every format and several betas, without cached results of earlier plans, on one
thread (set ``OMP_NUM_THREADS=1``): processor time, best of three.

``--blocks`` does the same for formats without exponent: the cost of a cycle in simulated blocks at constant scale.

``--gains`` prints the plans of every format, beta and rounding, and what each gains: the worst regret without resets
over that of the plan, both plus 1. In brackets is what the criterion alone would plan and gain, if that cannot be
distinguished from none or resets of an exact state gain as much.

``--stochastic`` checks by brute force whether a second moment in powers of two gains from resets under stochastic
rounding at 0.9999 (four groups of coordinates give the standard error). ``--uint4`` checks this for uint4 in blocks of
128, as the library stores them.

Usage: python benchmarks/theory_planner.py [--quick] [--coordinates 8192] [--blocks | --gains | --stochastic | --uint4]
       OMP_NUM_THREADS=1 python benchmarks/theory_planner.py --time
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np

from halfulp import get_format, plan_reset
from halfulp.numbers.formats import FORMATS
from halfulp.theory import planner, predict, rising_unit, transient
from halfulp.theory.blocks import Blocks, block_law
from halfulp.theory.cost import cycle_cost, squared_error, update_parts

PLANNED = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "ufloat8_e4m4", "ufloat4_e2m2", "float4_e2m1fn")
BETAS = (
    (0.9, 0.9),
    (0.9, 0.95),
    (0.9, 0.98),
    (0.9, 0.99),
    (0.9, 0.995),
    (0.9, 0.999),
    (0.9, 0.9999),
    (0.8, 0.999),
    (0.95, 0.999),
)
TIMED_BETAS = (0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)
GAIN_BETAS = (0.9, 0.95, 0.99, 0.999, 0.9999)
DRIFTS = (0.01, 0.04, 0.07, 0.09)
"""E-folds of sigma per window: within the planner's range, but not in its own list (0, .025, .1)."""


def round_bits(x: np.ndarray, mantissa_bits: int) -> np.ndarray:
    """Round positive fp32 values to nearest even at a number of fraction bits, at any exponent."""
    keep = np.uint32(23 - mantissa_bits)
    half, bits = np.uint32(1 << (22 - mantissa_bits)), x.view(np.uint32)
    return ((bits + half - np.uint32(1) + ((bits >> keep) & np.uint32(1))) >> keep << keep).view(np.float32)


def round_bits_stochastically(x: np.ndarray, mantissa_bits: int, rng: np.random.Generator) -> np.ndarray:
    """Round up or down at random, with probabilities that preserve the mean."""
    dropped = np.uint32(23 - mantissa_bits)
    up = rng.integers(0, 1 << 32, x.shape, dtype=np.uint32) >> (np.uint32(32) - dropped)
    return ((x.view(np.uint32) + up) >> dropped << dropped).view(np.float32)


def brute_force(
    mantissa_bits: int,
    beta1: float,
    beta2: float,
    drift: float,
    steps: int,
    n: int,
    share: float = 1.0,
    *,
    rounding: str = "nearest",
    seed: int = 0,
) -> np.ndarray:
    """Return the cycle-averaged cost of every period up to `steps`.

    A coordinate has gradients in a `share` of the steps.
    """
    rng = np.random.default_rng(seed)
    sigma = (2.0 ** (rng.random(n) / 2)).astype(np.float32)
    fall = math.exp(-drift * (1 - beta2))
    m = np.zeros(n, np.float32)
    for _ in range(math.ceil(30 / (1 - beta1))):
        m = beta1 * m + (1 - beta1) * sigma * rng.standard_normal(n, dtype=np.float32) * (rng.random(n) < share)
    young, v = np.zeros(n, np.float32), np.zeros(n, np.float32)
    variance = (1 - beta1) / (1 + beta1)
    errors = np.empty(steps)
    for t in range(1, steps + 1):
        sigma = sigma * np.float32(fall)
        g = sigma * rng.standard_normal(n, dtype=np.float32)
        if share < 1:
            g *= rng.random(n, dtype=np.float32) < share
        m = np.float32(beta1) * m + np.float32(1 - beta1) * g
        young = np.float32(beta1) * young + np.float32(1 - beta1) * g
        v = np.float32(beta2) * v + np.float32(1 - beta2) * g * g
        update = (
            young / (1 - beta1**t) / np.sqrt(np.maximum(v / np.float32(1 - beta2**t), 1e-30))
        )  # before v is rounded for storage
        errors[t - 1] = np.mean((update - m / (sigma * share**0.5)) ** 2) / variance
        if rounding == "stochastic":
            v = round_bits_stochastically(v, mantissa_bits, rng)
        elif rounding == "nearest":
            v = round_bits(v, mantissa_bits)
    return np.cumsum(errors) / np.arange(1, steps + 1)


def compare_with_blocks() -> None:
    """Compare plans of formats without exponent with simulated blocks at power-of-two scales and constant gradients."""
    print(f"{'format':14} {'beta2':>6} {'plan':>6} {'best':>6} {'regret':>7} {'cost':>7} {'of plan':>7}")
    regrets = []
    for fmt in FORMATS.values():
        if fmt.kind == "float":
            continue
        for beta in (0.9, 0.95, 0.98, 0.99, 0.995, 0.999):
            plan = plan_reset(fmt, beta=beta, rounding="nearest", criterion="total")
            horizon = plan.costs.shape[1]
            law = block_law(Blocks(fmt, beta, "nearest"), horizon, paths=32)
            costs = cycle_cost(squared_error(update_parts(law, 0.9, horizon)))
            chosen, best = (plan.period or horizon) - 1, int(costs.argmin()) + 1
            regrets.append(costs[chosen] / costs.min() - 1)
            print(
                f"{fmt.name:14} {beta:6g} {plan.period or 'never':>6} {best if best < horizon else 'never':>6} "
                f"{regrets[-1]:7.3f} {costs[chosen]:7.4f} {plan.costs[0, chosen]:7.4f}",
                flush=True,
            )
    print(f"{len(regrets)} cells: mean regret {np.mean(regrets):.3f}, worst {np.max(regrets):.3f}")


def gains() -> None:
    """Print the gain of every plan over no reset."""
    for how in ("nearest", "stochastic"):
        print(f"{how:16}" + "".join(f"{beta:>22g}" for beta in GAIN_BETAS))
        for fmt in FORMATS.values():
            cells = []
            for beta in GAIN_BETAS:
                plan = plan_reset(fmt, beta=beta, rounding=how, criterion="total")
                best = int(plan.regret.argmin())
                gain = f"x{(1 + plan.regret[-1]) / (1 + plan.regret[best]):.3g}"
                word = "never" if plan.period is None else f"{plan.period} {gain}"
                if plan.period is None and best + 1 < len(plan.regret) and len(plan.costs):
                    word += f" ({best + 1} {gain})"
                cells.append(f"{word:>22}")
            print(f"{fmt.name:16}" + "".join(cells), flush=True)


def stochastic_gain(n: int) -> None:
    """Compare the planned period and none for powers of two under stochastic rounding at 0.9999."""
    period = plan_reset("ufloat4_e4m0", beta=0.9999, rounding="stochastic", criterion="total").period
    assert period is not None
    print(f"cost with resets every {period} steps and without, and the difference (standard error)")
    for drift in (0.0, 0.025, 0.1):
        for how in ("stochastic", "exact"):
            costs = np.stack([
                brute_force(0, 0.9, 0.9999, drift, 60_000, n // 4, rounding=how, seed=s)[[period - 1, -1]]
                for s in range(4)
            ])  # fmt: skip
            apart = costs[:, 1] - costs[:, 0]
            print(
                f"{drift:6g} {how:10} {costs[:, 0].mean():8.5f} {costs[:, 1].mean():8.5f} {apart.mean():+8.5f} "
                f"({apart.std(ddof=1) / 2:.5f})",
                flush=True,
            )


def uint4_gain(n: int) -> None:
    """Compare the planned period and none for uint4 under stochastic rounding at 0.9999."""
    import torch

    from halfulp.numbers.quantizer import Quantizer
    from halfulp.rules.adam import max_ratio

    torch.set_num_threads(1)
    beta1, beta2, steps = 0.9, 0.9999, 60_000
    period = plan_reset("uint4", beta=beta2, rounding="stochastic", criterion="total").period
    assert period is not None
    quantizer = Quantizer(get_format("uint4", signed=False), rounding="stochastic", zero_floor=True)
    print(f"cost with resets every {period} steps and without, and the difference (standard error)")
    for drift in (0.0, 0.025, 0.1):
        generator = torch.Generator().manual_seed(0)
        scale = torch.exp2(torch.rand(n // 128, 1, generator=generator).expand(-1, 128).clone())
        fall = math.exp(-drift * (1 - beta2))
        m = torch.zeros(n // 128, 128)
        for _ in range(300):
            m = beta1 * m + (1 - beta1) * scale * torch.randn(m.shape, generator=generator)
        young, states = torch.zeros_like(m), {"uint4": torch.zeros_like(m), "exact": torch.zeros_like(m)}
        total = {how: torch.zeros(n // 128, dtype=torch.float64) for how in states}
        at_period = {}
        for t in range(1, steps + 1):
            scale *= fall
            g = scale * torch.randn(m.shape, generator=generator)
            m, young = (beta1 * x + (1 - beta1) * g for x in (m, young))
            for how, v in states.items():
                new = beta2 * v + (1 - beta2) * g * g
                bound = max_ratio(beta1, beta2, t)  # a state rounded to zero would allow updates of any size
                update = (young / (1 - beta1**t) / (new / (1 - beta2**t)).sqrt()).clamp(-bound, bound)
                total[how] += ((update - m / scale) ** 2).mean(1) * (1 + beta1) / (1 - beta1)
                if how == "uint4":
                    words = torch.randint(0, 1 << 32, new.shape, generator=generator)
                    new = quantizer.dequantize(*quantizer.quantize(new, words), new.shape)
                states[how] = new
            if t == period:
                at_period = {how: x / t for how, x in total.items()}
        for how, x in total.items():
            apart = x / steps - at_period[how]
            print(
                f"{drift:6g} {how:10} {at_period[how].mean():8.5f} {x.mean() / steps:8.5f} {apart.mean():+8.5f} "
                f"({apart.std() / len(apart) ** 0.5:.5f})",
                flush=True,
            )


def time_plans() -> None:
    print(f"{'':16}" + "".join(f"{beta:>14g}" for beta in TIMED_BETAS))
    worst = 0.0
    for fmt in FORMATS.values():
        if fmt.is_float32:
            continue
        cells = []
        for beta in TIMED_BETAS:
            seconds = []
            for _ in range(3):
                forget()
                started = time.process_time()
                plan = plan_reset(fmt, beta=beta, rounding="nearest", criterion="total")
                seconds.append(time.process_time() - started)
            worst = max(worst, min(seconds))
            cells.append(f"{plan.period or 'never':>8} {min(seconds):4.2f}s")
        print(f"{fmt.name:16}" + "".join(cells), flush=True)
    print(f"worst: {worst:.2f} s")


def forget() -> None:
    """Clear everything that plans cache."""
    for module in (planner, predict, transient, rising_unit):
        for cached in vars(module).values():
            if hasattr(cached, "cache_clear"):
                cached.cache_clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coordinates", type=int, default=8192)
    parser.add_argument("--quick", action="store_true", help="betas (0.9, 0.999) and (0.9, 0.99) only")
    parser.add_argument("--blocks", action="store_true", help="formats without exponent, against simulated blocks")
    parser.add_argument("--time", action="store_true", help="processor time of a plan")
    parser.add_argument("--gains", action="store_true", help="plans of every format, beta and rounding")
    parser.add_argument("--stochastic", action="store_true", help="powers of two under stochastic rounding at 0.9999")
    parser.add_argument("--uint4", action="store_true", help="uint4 under stochastic rounding at 0.9999")
    args = parser.parse_args()
    for chosen, run in ((args.time, time_plans), (args.blocks, compare_with_blocks), (args.gains, gains)):
        if chosen:
            run()
            return
    if args.stochastic or args.uint4:
        (stochastic_gain if args.stochastic else uint4_gain)(args.coordinates)
        return
    print(
        f"{'format':14} {'beta1':>5} {'beta2':>6} {'plan':>6} {'best':>6} "
        f"{'regret':>7} {'worst single drift':>19} {'s':>5}"
    )
    regrets = []
    for beta1, beta2 in BETAS if not args.quick else BETAS[3:6:2]:
        horizon = math.ceil(max(6 / (1 - beta2), 3000))
        for name in PLANNED:
            fmt = get_format(name)
            started = time.perf_counter()
            plan = plan_reset(fmt, beta=beta2, rounding="nearest", beta1=beta1, criterion="total").period
            seconds = time.perf_counter() - started
            n = max(1024, args.coordinates if horizon <= 6000 else args.coordinates // 8)
            costs = np.stack([brute_force(fmt.mantissa_bits, beta1, beta2, r, horizon, n) for r in DRIFTS])
            ratio = costs / costs.min(axis=1, keepdims=True)
            worst = ratio.max(axis=0)
            chosen = (plan or horizon) - 1
            regret = worst[chosen] / worst.min() - 1
            regrets.append(regret)
            best = int(worst.argmin()) + 1
            print(
                f"{name:14} {beta1:5g} {beta2:6g} {plan or 'never':>6} {best if best < horizon else 'never':>6} "
                f"{regret:7.3f} {ratio[:, chosen].max() - 1:19.3f} {seconds:5.2f}",
                flush=True,
            )
    print(f"{len(regrets)} cells: mean regret {np.mean(regrets):.3f}, worst {np.max(regrets):.3f}")


if __name__ == "__main__":
    main()
