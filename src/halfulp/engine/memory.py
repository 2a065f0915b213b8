"""Bytes of optimizer state, by tensor."""

from __future__ import annotations

from dataclasses import dataclass

from halfulp.numbers.show import Shown, html_table

__all__ = ["MemoryReport", "MemoryRow"]


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
        kept = f", {len(self.kept_fp32)} parameters kept in float32" if self.kept_fp32 else ""
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
        return [f"kept in float32 ({len(self.kept_fp32)} parameters):", *lines] if lines else []
