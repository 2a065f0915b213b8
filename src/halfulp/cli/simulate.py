"""``halfulp simulate``: controlled simulations of stored states, drawn as they run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from halfulp.lab.tables import needed, output, sparkline

__all__ = ["command"]

CURVE = 32
"""Width of a curve if there is room."""


@dataclass
class _Arm:
    """One format and rounding, and its results."""

    name: str
    rounding: str
    run: Any
    steps: list[int] = field(default_factory=list)
    stalled: list[float] = field(default_factory=list)
    stored: list[float] = field(default_factory=list)
    exact: list[float] = field(default_factory=list)
    last: Any = None


def command(
    formats: Annotated[
        list[str] | None, typer.Option("--format", "-f", help="State format; repeat for several.")
    ] = None,
    roundings: Annotated[
        list[str] | None, typer.Option("--rounding", "-r", help="nearest or stochastic; repeat for both.")
    ] = None,
    scenario: Annotated[str, typer.Option(help="stationary, drop, decay or spike.")] = "drop",
    beta: Annotated[float, typer.Option("--beta", "-b", help="Decay of the state.")] = 0.999,
    steps: Annotated[int, typer.Option(help="Steps to simulate.")] = 4000,
    slot: Annotated[str, typer.Option(help="exp_avg_sq (second moment) or exp_avg (first).")] = "exp_avg_sq",
    coordinates: Annotated[int, typer.Option(help="Number of simulated coordinates.")] = 4096,
    spread: Annotated[
        float, typer.Option(help="Standard deviation of the log of the gradient's scale within a block.")
    ] = 0.0,
    scale: Annotated[str, typer.Option(help="Scales of 8-bit and 4-bit formats: pow2 or fp32.")] = "pow2",
    reset: Annotated[int, typer.Option(help="Steps between resets; 0 for none.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the gradients and of the rounding.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Also plot the curves (.png, .svg, .pdf).")] = None,
) -> None:
    """Simulate stored states under a gradient scale that is constant, drops, decays or spikes.

    Every format and rounding gets the same gradients, and rounding is the library's own. The defaults show the
    published effect: under nearest rounding, a bf16 second moment can only rise.
    """
    from rich.live import Live

    from halfulp.theory.simulation import SCENARIOS

    formats, roundings = formats or ["fp32", "bf16"], roundings or ["nearest", "stochastic"]
    if scenario not in SCENARIOS:
        raise ValueError(f"--scenario must be one of {', '.join(SCENARIOS)}; got {scenario!r}")
    if steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")
    if reset < 0:
        raise ValueError(f"--reset must be a number of steps, or 0 for none; got {reset}")
    if plot is not None:
        from halfulp.lab.canvas import check_figure_path

        check_figure_path(plot)
    options = {
        "beta": beta, "steps": steps, "slot": slot, "sigma": SCENARIOS[scenario], "coordinates": coordinates,
        "spread": spread, "reset_every": reset or None, "seed": seed,
    }  # fmt: skip
    arms = _arms(formats, roundings, slot, scale, options)
    console = output()
    keep = max(1, steps // 400)
    with Live(console=console, refresh_per_second=8, transient=not console.is_terminal) as live:
        for step in range(1, steps + 1):
            for arm in arms:
                arm.last = next(arm.run)
                if step % keep == 0 or step == steps or step == 1:
                    arm.steps.append(step)
                    arm.stalled.append(arm.last.stalled)
                    arm.stored.append(arm.last.mean)
                    arm.exact.append(arm.last.exact)
            if console.is_terminal and step % keep == 0:
                live.update(_screen(console, arms, scenario, step, steps, slot))
        live.update(_screen(console, arms, scenario, steps, steps, slot))
    if not console.is_terminal:
        console.print(_screen(console, arms, scenario, steps, steps, slot))
    if plot is not None:
        _draw(arms, scenario, beta, slot, plot)
        console.print(f"wrote {plot}", markup=False, soft_wrap=True)


def _arms(formats: list[str], roundings: list[str], slot: str, scale: str, options: dict[str, Any]) -> list[_Arm]:
    from halfulp.numbers.formats import get_format
    from halfulp.numbers.quantizer import Quantizer
    from halfulp.numbers.scaling import Scaling
    from halfulp.theory.simulation import simulate

    arms = []
    for name in formats:
        fmt = get_format(name, signed=slot == "exp_avg")
        for how in roundings if not fmt.is_float32 else roundings[:1]:
            quantizer = Quantizer(fmt, Scaling(scale), how, zero_floor=slot == "exp_avg_sq")  # type: ignore[arg-type]
            arms.append(_Arm(name, how if not fmt.is_float32 else "exact", simulate(quantizer, **options)))
    return arms


def _line(values: list[float], low: float, high: float, width: int) -> str:
    """Draw a curve as a line of block characters."""
    if not values:
        return ""
    picked = [values[round(i * (len(values) - 1) / max(width - 1, 1))] for i in range(min(width, len(values)))]
    return sparkline(picked, low, high)


def _screen(console: Any, arms: list[_Arm], scenario: str, step: int, steps: int, slot: str) -> Any:
    """Return title and table, as wide as the console. Curves shrink before numbers do."""
    from rich.console import Group
    from rich.text import Text

    title = f"{scenario}: step {step} of {steps}, {slot}, sigma {arms[0].last.sigma:.3g}"
    table = _table(arms, CURVE, "stored / exact", "stored value, log scale")
    if needed(console, table) > console.width:
        table = _table(arms, CURVE, "stored\n/ exact", "stored value,\nlog scale")
        table = _table(
            arms, CURVE - max(0, needed(console, table) - console.width), "stored\n/ exact", "stored value,\nlog scale"
        )
    return Group(Text(title, style="table.title"), table)


def _table(arms: list[_Arm], width: int, ratio: str, curve: str) -> Any:
    """Return the numbers and curves of every arm. Curves are omitted if there is less room than their heading needs."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    curves = width >= max(map(len, curve.split("\n")))
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("format", "rounding", "stalled", ratio, *([curve] if curves else [])):
        table.add_column(heading, justify="right" if heading in ("stalled", ratio) else "left", no_wrap=True)
    logs = [[math.log10(max(v, 1e-30)) for v in arm.stored] for arm in arms]
    everything = [v for values in logs for v in values[1:] or values]
    low, high = min(everything, default=0.0), max(everything, default=1.0)
    low = max(low, high - 4)
    for arm, values in zip(arms, logs, strict=True):
        share = arm.last.mean / arm.last.exact if arm.last.exact > 0 else math.nan
        colour = {"exact": "white", "nearest": "cyan"}.get(arm.rounding, "green")
        line = [Text(_line(values, low, high, width), style=colour)] if curves else []
        table.add_row(arm.name, arm.rounding, f"{arm.last.stalled:.1%}", f"{share:.3g}", *line)
    return table


def _draw(arms: list[_Arm], scenario: str, beta: float, slot: str, path: Path) -> None:
    from halfulp.lab.canvas import canvas

    names = list(dict.fromkeys(arm.name for arm in arms))
    with canvas(path, 2, (12.8, 4.0), grid=True) as (value, stalled):
        value.plot(arms[0].steps, arms[0].exact, color="black", lw=2.5, alpha=0.35, label="exact")
        for arm in arms:
            look = {"color": f"C{names.index(arm.name)}", "ls": "--" if arm.rounding == "stochastic" else "-"}
            label = f"{arm.name}, {arm.rounding}" if arm.rounding != "exact" else arm.name
            if arm.rounding != "exact":
                value.plot(arm.steps, arm.stored, label=label, **look)
            stalled.plot(arm.steps, arm.stalled, label=label, **look)
        what = "mean stored value" if slot == "exp_avg_sq" else "root mean square of the stored value"
        value.set(yscale="log", xlabel="step", ylabel=what, title=f"{slot}, beta {beta:g}, {scenario}")
        stalled.set(ylim=(-0.02, 1.02), xlabel="step", ylabel="share of stalled updates", title="stalling")
        value.legend()
        stalled.legend()
