"""Bytes of optimizer state, by tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from halfulp.engine.checks import PARAM_DTYPES
from halfulp.engine.master import MASTER, MasterState, storage_of
from halfulp.engine.sharding import local
from halfulp.engine.storage import fp32_reason
from halfulp.numbers.log import warn_once
from halfulp.numbers.show import Shown, count_of, html_table

if TYPE_CHECKING:
    from halfulp.engine.optimizer import RuleOptimizer

__all__ = ["MemoryReport", "MemoryRow", "memory_report", "tell_kept_fp32"]


@dataclass(frozen=True)
class MemoryRow:
    """One state of one parameter. `kept_fp32` says why it stays in fp32, if it should have been quantized."""

    parameter: str
    slot: str
    shape: tuple[int, ...]
    storage: str
    bytes: int
    kept_fp32: str | None


@dataclass(frozen=True, repr=False)
class MemoryReport(Shown):
    """The states of all parameters. ``print(report)`` shows totals by storage and what stays in fp32."""

    rows: tuple[MemoryRow, ...]
    parameters: int

    @property
    def total(self) -> int:
        """Total bytes, scales included."""
        return sum(r.bytes for r in self.rows)

    @property
    def bytes_per_parameter(self) -> float:
        """Bytes of state per parameter (8 for AdamW in fp32)."""
        return self.total / self.parameters if self.parameters else 0.0

    @property
    def by_storage(self) -> dict[str, int]:
        """Bytes by storage spec."""
        sums: dict[str, int] = {}
        for row in self.rows:
            sums[row.storage] = sums.get(row.storage, 0) + row.bytes
        return sums

    @property
    def kept_fp32(self) -> dict[str, str]:
        """A mapping from each parameter whose states stay in fp32 to the reason."""
        return {r.parameter: r.kept_fp32 for r in self.rows if r.kept_fp32 is not None}

    def in_short(self) -> str:
        """The bytes, and how many parameters stay in fp32."""
        kept = f", {count_of(len(self.kept_fp32), 'parameter')} kept in float32" if self.kept_fp32 else ""
        return f"{self.total:,} bytes, {self.bytes_per_parameter:.4f} per parameter{kept}"

    def in_html(self) -> str:
        """An HTML table of bytes by storage."""
        rows = [(storage, f"{n:,}") for storage, n in sorted(self.by_storage.items())]
        return html_table(["storage", "bytes"], [*rows, ("all", f"{self.total:,}")], self._kept())

    def __str__(self) -> str:
        lines = [f"{self.total:,} bytes of state, {self.bytes_per_parameter:.4f} per parameter"]
        lines += [f"  {storage:40} {n:>16,}" for storage, n in sorted(self.by_storage.items())]
        return "\n".join([*lines, *self._kept()])

    def _kept(self) -> list[str]:
        """Lines on what stays in fp32. Vectors share one line, since every model has them; others are named."""
        vectors = {name: why for name, why in self.kept_fp32.items() if why.endswith("-D tensor")}
        named = self.kept_fp32 if len(vectors) < 2 else {n: w for n, w in self.kept_fp32.items() if n not in vectors}
        lines = [f"  {name}: {why}" for name, why in named.items()]
        if len(vectors) > 1:
            lines.append(f"  {len(vectors)} vectors, such as {next(iter(vectors))}")
        return [f"kept in float32 ({count_of(len(self.kept_fp32), 'parameter')}):", *lines] if lines else []


def memory_report(optimizer: RuleOptimizer) -> MemoryReport:
    """See :meth:`~halfulp.engine.optimizer.RuleOptimizer.memory`."""
    rows = []
    for group in optimizer.param_groups:
        low = any(not q.format.is_float32 for q in optimizer.group_quantizers(group).values())
        for p in optimizer.active_params(group):
            if p.dtype not in PARAM_DTYPES:
                continue
            place = optimizer.place(p)
            reason = fp32_reason(p, place.name, optimizer.storage) if low else None
            for slot, shape, q in optimizer.slot_storage(group, p):
                rows.append(MemoryRow(place.label, slot.name, tuple(shape), q.spec, q.bytes(shape), reason))
            kind, rule = group["master_weights"], optimizer.active_rule(group, p)
            if p.dtype == torch.float16 and not p.requires_grad and kind != "fp32":
                continue  # remainders need bfloat16; a step would raise
            master = MasterState.of(p, kind, {}, rule, place.label)
            if master is not None:
                storage = storage_of(master.kind)
                rows.append(MemoryRow(place.label, MASTER, tuple(master.shape), storage, master.bytes(), None))
    count = sum(local(p).numel() for g in optimizer.param_groups for p in g["params"])
    return MemoryReport(tuple(rows), count)


def tell_kept_fp32(report: MemoryReport) -> None:
    """Warn if states that stay in fp32 (those of vectors and small tensors) take much memory.

    The threshold is a tenth of all bytes of state, and at least a MiB. Parameters that a library flattened (ZeRO) count
    as vectors.
    """
    kept = [row for row in report.rows if row.kept_fp32 is not None and "keep_fp32" not in row.kept_fp32]
    size = sum(row.bytes for row in kept)
    if size > max(report.total / 10, 1 << 20):
        most = max(kept, key=lambda row: row.bytes)
        warn_once(
            f"states that stay in fp32 take {size / 2**20:.1f} of {report.total / 2**20:.1f} MiB: those of "
            f"{len({row.parameter for row in kept})} parameters, such as {most.parameter} ({most.kept_fp32}). "
            "min_size=0 quantizes them too"
        )
