"""The table: plain text, one line per row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from framework.benchmarks import peers
from framework.benchmarks.invocation import Result
from framework.benchmarks.model import BYTES, SECONDS
from framework.benchmarks.stats import relative_spread


def figure(value: float | None, unit: str) -> str:
    """`value` with three significant digits or so, and its unit: ``12,300 /s``, ``4.2 ms``."""
    if value is None:
        return "-"
    if unit == SECONDS and abs(value) < 0.001:
        return f"{value * 1e6:.3g} µs"
    if unit == SECONDS and abs(value) < 0.1:
        return f"{value * 1000:.3g} ms"
    if unit == BYTES:
        return f"{value:,.0f} B" if abs(value) < 1e6 else f"{value / 1e6:,.1f} MB"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f} {unit}"


def percent(value: float | None) -> str:
    """A fraction as a percentage: ``25 %``; below one per cent with a decimal."""
    if value is None or value != value:
        return "-"
    return f"{value:.1%}".replace("%", " %") if abs(value) < 0.01 else f"{value:.0%}".replace("%", " %")


def columns(lines: Sequence[Sequence[str]]) -> list[str]:
    """Cells lined up: the first and the last column to the left, the others to the right."""
    if not lines:
        return []
    last = len(lines[0]) - 1
    widths = [max(len(line[index]) for line in lines) for index in range(last + 1)]
    return [
        "  ".join(
            cell.ljust(width) if index in (0, last) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def table(results: Sequence[Result]) -> str:
    """All rows, grouped, with median, spread, floor and the share of the floor that is reached."""
    lines: list[tuple[str, ...]] = [("", "median", "spread", "of floor", "floor", "")]
    group = None
    for result in results:
        if result.group != group:
            group = result.group
            lines.append((group.upper(), "", "", "", "", ""))
        spread = relative_spread(result.samples) if result.samples else None
        lines.append(
            (
                f"  {result.row.name}",
                figure(result.value, result.row.unit),
                percent(spread) if len(result.samples) > 1 else "-",
                percent(result.ratio),
                result.row.floor or "",
                result.note,
            )
        )
    return "\n".join(columns(lines))


def peer_table(results: Iterable[Result]) -> str:
    """The core rows, one column per system; empty when no peer was measured."""
    by_name = {result.row.name: result for result in results}
    shown = [
        name
        for name in peers.MODULES
        if any(peers.row_name(name, core) in by_name for core in peers.PRODUCT_ROWS)
    ]
    if not shown:
        return ""
    lines: list[tuple[str, ...]] = [("CORE ROWS", "framework", *shown, "")]
    for core, product in peers.PRODUCT_ROWS.items():
        cells = [by_name.get(product), *(by_name.get(peers.row_name(name, core)) for name in shown)]
        lines.append((core, *(figure(cell.value, cell.row.unit) if cell else "-" for cell in cells), ""))
    return "\n".join(columns(lines))


def heading(machine: Mapping[str, object], versions: Mapping[str, str], note: str) -> str:
    """What the figures depend on, in three lines."""
    memory = machine.get("memory")
    gigabytes = f"{memory / 1e9:.0f} GB" if isinstance(memory, int) else "memory unknown"
    parts = [f"{machine['system']} {machine['architecture']}", f"{machine['cpu'] or 'cpu unknown'}"]
    parts += [f"{machine['cpus']} CPUs", gigabytes, f"load {machine['load']}", str(machine["python"])]
    return "\n".join([", ".join(parts), ", ".join(f"{name} {text}" for name, text in versions.items()), note])
