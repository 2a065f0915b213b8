"""``halfulp predict``: how many updates of a state stall, by its age."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from halfulp.lab.tables import output, print_table, sparkline

__all__ = ["command"]

ROUNDINGS = ("nearest", "stochastic")


def command(
    formats: Annotated[
        list[str] | None, typer.Option("--format", "-f", help="State format; repeat for several.")
    ] = None,
    betas: Annotated[list[float] | None, typer.Option("--beta", "-b", help="Decay; repeat for several.")] = None,
    slot: Annotated[str, typer.Option(help="exp_avg_sq (second moment) or exp_avg (first).")] = "exp_avg_sq",
    model: Annotated[str, typer.Option(help="chain, build-up or one-step.")] = "chain",
    plot: Annotated[Path | None, typer.Option(help="Also plot the curves (.png, .svg, .pdf).")] = None,
) -> None:
    """Predict the share of updates that stall, by the age of the state.

    Without --format: bf16, fp8 and fp4. An age is the number of steps since the state was zero.
    """
    from halfulp.rules.drives import as_drive

    formats, betas = formats or ["bf16", "fp8", "fp4"], betas or [0.999]
    as_drive(slot)
    if plot is not None:
        from halfulp.lab.canvas import check_figure_path

        check_figure_path(plot)
    console = output()
    for beta in betas:
        curves = _curves(formats, beta, slot, model)
        print_table(console, _table(curves, beta, slot, model))
        console.print(_chart(curves, console.width))
        if plot is not None:
            path = plot if len(betas) == 1 else plot.with_stem(f"{plot.stem}-{beta:g}")
            _draw(curves, beta, slot, path)
            console.print(f"wrote {path}", markup=False, soft_wrap=True)


def _curves(formats: list[str], beta: float, slot: str, model: str) -> dict[tuple[str, str], Any]:
    from halfulp.theory.predict import LONGEST, stall_curve

    window = round(3 / (1 - beta), 6) if 0 < beta < 1 else 1  # 30 at 0.9, not 30.000000000000004
    steps = math.ceil(max(window, 10)) + 1
    if steps > LONGEST:
        raise ValueError(f"--beta must be at most 0.9999996: the curve is three windows long; got {beta}")
    return {
        (name, how): stall_curve(name, beta=beta, rounding=how, steps=steps, slot=slot, model=model)  # type: ignore[arg-type]
        for name in formats
        for how in ROUNDINGS
    }


def _ages(last: int) -> list[int]:
    """Return 0, then 1, 3, 10, 30 ... up to the last age."""
    ages = [0]
    power = 1
    while power <= last:
        ages += [a for a in (power, 3 * power) if a <= last]
        power *= 10
    return ages if ages[-1] == last else [*ages, last]


def _table(curves: dict[tuple[str, str], Any], beta: float, slot: str, model: str) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    last = len(next(iter(curves.values()))) - 1
    title = f"percent of stalled updates of {slot} at beta {beta:g}, by age in steps ({model})"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("format", no_wrap=True)
    table.add_column("rounding", no_wrap=True)
    for age in _ages(last):
        table.add_column(str(age), justify="right")
    for (name, how), curve in curves.items():
        table.add_row(name, how, *(f"{100 * curve[a]:.1f}" for a in _ages(last)))
    return table


def _chart(curves: dict[tuple[str, str], Any], room: int) -> Any:
    """Return a line of block characters per curve, over the logarithm of the age, in lines of `room` columns."""
    from rich.text import Text

    text = Text()
    last = len(next(iter(curves.values()))) - 1
    label = max(14, *(len(name) for name, _ in curves))
    width = max(12, min(52, room - label - 13))
    for (name, how), curve in curves.items():
        ages = [round(math.expm1(math.log1p(last) * i / (width - 1))) for i in range(width)]
        text.append(f"{name:>{label}} {how:<10} ", style="bold")
        text.append(sparkline(curve[ages], 0.0, 1.0) + "\n", style="cyan" if how == "nearest" else "green")
    middle = width - 1 - len(str(last))
    scale = "log scale" if middle >= 11 else ""
    text.append(f"{'age':>{label + 11}} 0{scale:^{middle}}{last}", style="dim")
    return text


def _draw(curves: dict[tuple[str, str], Any], beta: float, slot: str, path: Path) -> None:
    from halfulp.lab.canvas import canvas

    names = list(dict.fromkeys(name for name, _ in curves))
    with canvas(path, 1, (6.4, 4.0), grid=True) as (axes,):
        for (name, how), curve in curves.items():
            axes.plot(range(len(curve)), curve, color=f"C{names.index(name)}", ls="-" if how == "nearest" else "--",
                      label=f"{name}, {how}")  # fmt: skip
        last = len(next(iter(curves.values()))) - 1
        axes.set(xscale="log", xlim=(1, last), ylim=(0, 1.02), xlabel="age of the state in steps",
                 ylabel="share of stalled updates", title=f"{slot}, beta {beta:g}")  # fmt: skip
        axes.legend()
