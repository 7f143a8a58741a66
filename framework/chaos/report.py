"""What a run has survived: as text, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from framework.chaos.ledger import RULES, Ledger, latencies
from framework.chaos.plan import KINDS


@dataclass(slots=True)
class Row:
    """One workload."""

    rounds: int
    asked: int
    answered: int
    permitted: dict[str, int]
    repeated: int
    notes: dict[str, int]
    latency: dict[str, float]

    @classmethod
    def of(cls, ledger: Ledger) -> Row:
        """As its ledger has it."""
        return cls(
            ledger.rounds,
            ledger.asked,
            ledger.answered,
            dict(ledger.permitted),
            ledger.repeated,
            dict(ledger.notes),
            latencies(ledger.seconds),
        )


@dataclass(slots=True)
class Report:
    """Of a run."""

    seed: int
    every: float
    nodes: int
    targets: list[str]
    command: str  #: that makes the same plan again
    seconds: float = 0.0  #: under faults
    faults: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)  #: faults for which there was no victim
    seen: dict[str, int] = field(default_factory=dict)  #: what became of nodes
    workloads: dict[str, Row] = field(default_factory=dict)
    reports: int = 0  #: calls of reporters (actors), each found in the book
    descriptors: dict[str, list[int]] = field(default_factory=dict)  #: of processes, before and at rest
    tracebacks: dict[str, int] = field(default_factory=dict)  #: in logs, by their last lines
    left: list[str] = field(default_factory=list)  #: leaks
    failures: list[str] = field(default_factory=list)
    logs: str = ""  #: the directory where they are kept

    @property
    def passed(self) -> bool:
        """Whether nothing was lost, wrong, hung or left."""
        return not self.failures and not self.left

    def to_json(self) -> dict[str, Any]:
        """All of it, with "passed"."""
        return {**asdict(self), "passed": self.passed}


def _columns(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _counts(found: Mapping[str, int], texts: Mapping[str, str]) -> list[str]:
    width = max((len(name) for name in found), default=0)
    return [f"  {name:<{width}}  {count:>6}  {texts.get(name, '')}".rstrip() for name, count in found.items()]


def _milliseconds(row: Row, name: str) -> str:
    return f"{row.latency[name] * 1000:,.0f}" if name in row.latency else "-"


def text(report: Report) -> str:
    """For people."""
    lines = [
        f"seed {report.seed}: {report.seconds:.0f} s, a fault every {report.every:g} s on average to "
        f"{', '.join(report.targets)}; the head's node and {report.nodes} others",
        "",
        f"FAULTS  {sum(report.faults.values())}, {sum(report.skipped.values())} more had no victim",
    ]
    lines += _counts(report.faults, {kind.name: kind.text for kind in KINDS})
    if report.seen:
        lines += ["", "SEEN", *_counts(report.seen, {})]
    table: list[tuple[str, ...]] = [
        ("WORKLOAD", "rounds", "asked", "answered", "permitted", "repeated", "p50 ms", "p99 ms", "max ms")
    ]
    for name, row in report.workloads.items():
        table.append(
            (
                name,
                f"{row.rounds:,}",
                f"{row.asked:,}",
                f"{row.answered:,}",
                f"{sum(row.permitted.values()):,}",
                f"{row.repeated:,}",
                *(_milliseconds(row, which) for which in ("p50", "p99", "max")),
            )
        )
    lines += ["", *_columns(table)]
    notes = {f"{name}: {what}": n for name, row in report.workloads.items() for what, n in row.notes.items()}
    if report.reports:
        notes["actors: reports, all of them in the book"] = report.reports
    if notes:
        lines += ["", *_counts(notes, {})]
    permitted: dict[str, int] = {}
    for row in report.workloads.values():
        for name, count in row.permitted.items():
            permitted[name] = permitted.get(name, 0) + count
    if permitted:
        why = {rule.name: f"{'/'.join(e.__name__ for e in rule.errors)}: {rule.why}" for rule in RULES}
        lines += ["", "PERMITTED ERRORS", *_counts(permitted, why)]
    if report.descriptors:
        told = [f"{name} {before} before, {then} then" for name, (before, then) in report.descriptors.items()]
        lines += ["", f"DESCRIPTORS AT REST  {'; '.join(told)}"]
    if report.tracebacks:
        lines += ["", "TRACEBACKS IN LOGS"]
        lines += [f"  {count:>6}  {line}" for line, count in report.tracebacks.items()]
    lines += ["", "LEFT BEHIND  " + ("nothing" if not report.left else "")]
    lines += [f"  {line}" for line in report.left]
    if report.failures:
        lines += ["", "FAILURES"]
        lines += ["  " + failure.replace("\n", "\n  ") for failure in report.failures]
    lines += ["", "survived" if report.passed else f"FAILED. The same plan again: {report.command}"]
    if report.logs:
        lines.append(f"logs: {report.logs}")
    return "\n".join(lines)
