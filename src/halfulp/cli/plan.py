"""``halfulp plan``: whether and when to reset a state."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from halfulp.lab.tables import output, print_table

if TYPE_CHECKING:
    from halfulp.theory.arguments import Criterion

__all__ = ["command"]


def command(
    formats: Annotated[
        list[str] | None, typer.Option("--format", "-f", help="State format; repeat for several.")
    ] = None,
    betas: Annotated[list[float] | None, typer.Option("--beta", "-b", help="Decay; repeat for several.")] = None,
    beta1: Annotated[float, typer.Option(help="Decay of the first moment.")] = 0.9,
    slot: Annotated[str, typer.Option(help="exp_avg_sq (second moment) or exp_avg (first).")] = "exp_avg_sq",
    drifts: Annotated[
        list[float] | None,
        typer.Option(
            "--drift", help="Known fall of the gradient's scale, in e-folds per window of 1/(1-beta) steps; 0 to 0.5."
        ),
    ] = None,
    criterion: Annotated[
        str, typer.Option(help="residual: the learning rate is tuned, and a common factor costs nothing; or total.")
    ] = "residual",
    parameters: Annotated[int, typer.Option(help="Number of parameters to stagger the resets over.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Also plot cost and stalling by period (.png, .svg, .pdf).")] = None,
) -> None:
    """Plan resets: find the period that minimizes the mean error of Adam's update, and say why.

    Without --format: bf16, fp8 and fp4.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from halfulp.rules.drives import as_drive
    from halfulp.theory.planner import DRIFTS, plan_reset

    formats, betas = formats or ["bf16", "fp8", "fp4"], betas or [0.999]
    as_drive(slot)
    if parameters < 0:
        raise ValueError(f"--parameters must be a number of parameters, or 0 for no staggering; got {parameters}")
    if plot is not None:
        from halfulp.lab.canvas import check_figure_path

        check_figure_path(plot)
    console = output()
    plans: dict[tuple[str, float, str], Any] = {}
    for beta in betas:
        table = Table(title=f"resets of {slot} at beta {beta:g}", title_justify="left", box=SIMPLE_HEAD)
        for heading in ("format", "rounding", "period"):
            table.add_column(heading, justify="right" if heading == "period" else "left", no_wrap=True)
        table.add_column("why")
        for name in formats:
            for how in ("nearest", "stochastic"):
                plan = plan_reset(
                    name, beta=beta, rounding=how, slot=slot, beta1=beta1, drifts=tuple(drifts or DRIFTS),
                    criterion=cast("Criterion", criterion),
                )  # fmt: skip
                plans[name, beta, how] = plan
                table.add_row(name, how, "never" if plan.period is None else str(plan.period), plan.why)
        print_table(console, table)
    if parameters > 0:
        _stagger(console, plans, parameters)
    if plot is not None:
        _draw(plans, plot)
        console.print(f"wrote {plot}", markup=False, soft_wrap=True)


def _stagger(console: Any, plans: dict[tuple[str, float, str], Any], parameters: int) -> None:
    from halfulp.engine.resets import Site, Staggered

    for (name, beta, how), plan in plans.items():
        if plan.period is None:
            continue
        offsets = [Staggered(plan.period).offset(Site(0, i, parameters, ())) for i in range(parameters)]
        busiest = max(offsets.count(o) for o in set(offsets))
        console.print(
            f"{name}, {how}, beta {beta:g}: Staggered({plan.period}) over {parameters} parameters resets at most "
            f"{busiest} of them in a step (the first at step {offsets[1] if parameters > 1 else plan.period}).",
            soft_wrap=True,
        )


def _draw(plans: dict[tuple[str, float, str], Any], path: Path) -> None:
    from halfulp.lab.canvas import canvas

    pairs = list(dict.fromkeys((name, beta) for name, beta, _ in plans))
    several = len({beta for _, beta in pairs}) > 1
    with canvas(path, 2, (12.8, 4.0), grid=True) as (cost, stall):
        for (name, beta, how), plan in plans.items():
            colour, style = f"C{pairs.index((name, beta))}", "-" if how == "nearest" else "--"
            label = f"{name}, {how}" + (f", {beta:g}" if several else "")
            stall.plot(range(1, len(plan.curve) + 1), plan.curve, color=colour, ls=style, label=label)
            if not len(plan.costs):
                continue
            worst = plan.costs.max(axis=0)
            cost.plot(range(1, len(worst) + 1), worst, color=colour, ls=style, label=label)
            if plan.period is not None:
                cost.plot(plan.period, worst[plan.period - 1], "o", color=colour)
                stall.axvline(plan.period, color=colour, lw=0.8, alpha=0.6)
        if cost.lines:
            cost.set(yscale="log")
            cost.legend()
        cost.set(xscale="log", xlabel="reset period in steps", ylabel="error of the update, worst drift",
                 title="cost of a period (dot: planned)")  # fmt: skip
        stall.set(xscale="log", ylim=(0, 1.02), xlabel="age of the state in steps", ylabel="share of stalled updates",
                  title="stalling by age (line: planned reset)")  # fmt: skip
        stall.legend()
