"""What a comparison shows and what it cannot, in plain sentences built from its numbers."""

from __future__ import annotations

import math

from halfulp.lab.results import ArmResult, Comparison, interval_text

__all__ = ["averages", "cannot_show", "percent", "shows", "times"]

DEFAULT_SOURCE = "standard library of Python"
SEED_NOISE = ((0.117, 1500, 0.023), (0.468, 2500, 0.009))
"""Measured earlier: (million parameters, steps, standard deviation over seeds of the final loss, in nats)."""


def percent(value: float) -> str:
    """Format a share with enough digits near 1 to distinguish 99.7 % from 100 %."""
    if 0 < value < 0.001:
        return "under 0.1 %"
    if 0.999 < value < 1:
        return f"{value * 100:.2f} %"
    return f"{value * 100:.1f} %"


def times(ratio: float) -> str:
    """Format a ratio to the fp32 value."""
    return f"{ratio:.2f} times" if math.isfinite(ratio) else "infinitely many times"


def shows(comparison: Comparison) -> list[str]:
    """Return the findings, one or two sentences each, about the arms that exist."""
    low = [a for a in comparison.arms if not a.arm.is_fp32]
    out = []
    for rounding in ("nearest", "stochastic"):
        mine = [a for a in low if a.arm.rounding == rounding and a.arm.reset is None]
        if mine:
            out.append(_stalled(mine, rounding))
    out += [_reset(a, comparison) for a in low if _was_reset(a)]
    out += _off(low)
    prediction = _prediction(low)
    if prediction:
        out.append(prediction)
    memory = _memory(comparison)
    if memory:
        out.append(memory)
    out.append(_losses(comparison))
    return out


def _stalled(arms: list[ArmResult], rounding: str) -> str:
    parts = [f"{a.arm.formats} {percent(a.second.mean_stalled())}" for a in arms]
    text = (
        f"With {rounding} rounding, this share of all second-moment updates stalled over the run: {', '.join(parts)}."
    )
    if rounding == "stochastic":
        text += (
            " A stochastically rounded state stalls almost as often, but the steps that it takes are larger by just as "
            "much: it is right on average."
        )
    return text


def _was_reset(a: ArmResult) -> bool:
    period = a.shown.spec.period
    return period is not None and a.shown.rows[-1]["step"] > period


def _reset(a: ArmResult, comparison: Comparison) -> str:
    series, period = a.second, a.shown.spec.period
    plain = next((b.second for b in comparison.arms if b.arm.name == a.arm.name.rpartition("-reset")[0]), None)
    text = f"A reset every {period} steps brings {a.arm.formats} {a.arm.rounding} to {percent(series.mean_stalled())}"
    if plain is not None:
        text += f" (without: {percent(plain.mean_stalled())})"
    fresh = [s for s, age in zip(series.stalled, series.ages, strict=True) if 0 < age <= 10]
    if fresh:
        text += f"; within ten steps of a start it is {percent(sum(fresh) / len(fresh))}"
    return text + "."


def _off(low: list[ArmResult]) -> list[str]:
    late = [(a, a.second.late(a.second.off_2x), a.second.late(a.second.ratio)) for a in low]
    parts = [
        f"{a.arm.label} {percent(off)} (mean {times(ratio)} that of fp32)" for a, off, ratio in late if off >= 0.02
    ]
    fine = [a.arm.label for a, off, _ in late if off < 0.02]
    out = []
    if parts:
        out.append(
            "Second moments more than a factor of two away from what fp32 would hold on the same gradients, on average "
            f"over the second half of the run: {', '.join(parts)}."
        )
    if fine:
        out.append(
            "Under 2 % of second moments are more than a factor of two away from what fp32 would hold on the same "
            f"gradients in {', '.join(fine)}."
        )
    return out


def _prediction(low: list[ArmResult]) -> str:
    gaps = [(abs(p - a.second.mean_stalled()), a) for a in low if (p := a.second.mean_predicted()) is not None]
    misses = [miss for a in low if (miss := a.second.miss()) is not None]
    if not gaps or not misses:
        return ""
    worst, arm = max(gaps, key=lambda item: item[0])
    own = [miss for a in low if (miss := a.second.own_miss()) is not None]
    better = "" if not own else f" From a sample of each arm's own gradients it is {sum(own) / len(own) * 100:.1f}."
    return (
        f"Over the whole run, predicted and measured shares differ by at most {worst * 100:.1f} points "
        f"({arm.arm.label}); step by step, from age 10 on, by {sum(misses) / len(misses) * 100:.1f} on average. Theory "
        f"takes Gaussian gradients of constant scale, and these are neither.{better}"
    )


def _memory(comparison: Comparison) -> str:
    sizes: dict[str, float] = {}
    for a in comparison.arms:
        if a.shown.summary:
            sizes.setdefault(a.arm.formats, a.shown.summary["bytes_per_parameter"])
    if len(sizes) < 2:
        return ""
    parts = [f"{name} {size:.2f}" for name, size in sizes.items()]
    return (
        "Bytes of optimizer state per parameter, scales and the small tensors that stay fp32 included: "
        f"{', '.join(parts)}."
    )


def _losses(comparison: Comparison) -> str:
    finals = [(a.final.mean, a) for a in comparison.arms if a.final is not None]
    diverged = sum(a.diverged for a in comparison.arms)
    ends = f" {diverged} of all runs diverged." if diverged else " No run diverged."
    if len(finals) < 2:
        return "No losses to compare." + ends
    low, high = min(f for f, _ in finals), max(f for f, _ in finals)
    text = f"Final validation losses lie between {low:.3f} and {high:.3f} nats."
    seeds = len(comparison.config.seeds)
    if seeds == 1:
        text += f" With one seed there is no interval, and {_noise(comparison)} More seeds (--seeds 3) give one."
        return text + ends
    control = comparison.control
    clear = []
    for a in comparison.arms:
        gap = a.against(control) if control is not None and a is not control else None
        if gap is not None and gap.half is not None and abs(gap.mean) > gap.half:
            clear.append(f"{a.arm.label} ({interval_text(gap, '+.3f')})")
    if control is not None:
        text += (
            f" Against fp32, seed by seed, the 95 % interval leaves out zero for {', '.join(clear)}; one arm in twenty "
            "does so by chance."
            if clear
            else " Against fp32, seed by seed, every 95 % interval contains zero."
        )
    return text + ends


AVERAGES = {
    "live": "none (live weights)",
    "fp32": "fp32",
    "bf16": "bf16, nearest (torch AveragedModel)",
    "8bit": "8 bits, stochastic",
}
"""Descriptions of the weight averages."""


def averages(comparison: Comparison) -> str:
    """Return the results of the weight averages; empty if there are none."""
    found = comparison.averages
    if not found:
        return ""
    base, parts = found["fp32"], []
    for state in ("bf16", "8bit"):
        gap = found[state].validation - base.validation
        side = f"{'higher' if gap > 0 else 'lower'} by {abs(gap):.3f} nats" if abs(gap) >= 5e-4 else "the same to 0.001"
        parts.append(
            f"the {AVERAGES[state]} average is {percent(found[state].distance)} of the fp32 average's norm away from "
            f"it, and its loss is {side}"
        )
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _noise(comparison: Comparison) -> str:
    """Return what is known about seed noise. It was measured only on the default text."""
    source = str(comparison.environment.get("text", {}).get("source", ""))
    if not source.startswith(DEFAULT_SOURCE):
        return "how far another seed would move the losses was not measured on this text."
    sizes = [a.shown.summary["parameters"] / 1e6 for a in comparison.arms if a.shown.summary]
    size = sizes[0] if sizes else 0.117
    noise = min(SEED_NOISE, key=lambda row: abs(math.log(row[0] / size)))[2]
    return (
        f"seed noise, measured on this text at this size, is about {noise:.3f} nats: differences of less than about "
        f"{2.8 * noise:.2f} mean nothing."
    )


def cannot_show(comparison: Comparison) -> list[str]:
    """Return the limits of the run, derived from its configuration."""
    config = comparison.config
    tokens = config.steps * config.batch * config.context
    out = [
        f"Which format trains best. The model is small and saw {tokens / 1e6:.1f} million tokens; differences between "
        "formats at this scale are hardly larger than seed noise, and nothing here is ranked by the loss.",
    ]
    if len(config.lrs) == 1:
        out.append(
            f"What each arm could do at its own learning rate. All ran at {config.lrs[0]:g}; a second moment that "
            "stalls changes the effective learning rate, so that one rate for all can favour either side (--lr "
            "1e-3,3e-3 sweeps it)."
        )
    if len(config.seeds) == 1:
        out.append("How far the losses would move with another seed (--seeds 3 pairs the seeds over the arms).")
    window = round(1 / (1 - config.betas[1]))
    if config.steps < 3 * window:
        out.append(
            f"Where the states end up. The run lasts {config.steps / window:.1f} windows of the second moment "
            f"({window} steps each); under nearest rounding states still drift after it."
        )
    out.append("Speed. The arms share the machine; tokens per second here compare nothing.")
    return out
