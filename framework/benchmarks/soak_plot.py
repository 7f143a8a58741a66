"""The picture of a soak. Takes matplotlib (extra `plot`), which is loaded when it is needed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from framework.benchmarks.soak_samples import Sample, lasting
from framework.benchmarks.soak_verdict import condensed

_POINTS = 80  #: of a line: what a reader can see, and a small file
_MIB = 1024 * 1024


def require() -> None:
    """End the process with a message when matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        sys.exit("--plot takes matplotlib: pip install 'framework[plot]'")


def line(
    samples: Sequence[Sample], value: Callable[[Sample], float | None]
) -> tuple[list[float], list[float]]:
    """Minutes and values, where there are any, condensed."""
    points = [(sample.time / 60, found) for sample in samples if (found := value(sample)) is not None]
    if not points:
        return [], []
    xs, ys = zip(*condensed(points, _POINTS), strict=True)
    return list(xs), list(ys)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def draw(samples: Sequence[Sample], path: Path) -> None:
    """Memory, descriptors, latency and the work done over time, as the format that the name of the file
    says."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "soak", "font.size": 8})
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(2, 2, figsize=(10, 6.5), sharex=True)
    memory, descriptors, latency, work = rows.flat
    for name in lasting(samples):
        _plot(memory, samples, name, _figure_of(name, "heap", 1 / _MIB))
        _plot(descriptors, samples, name, _figure_of(name, "descriptors", 1))
    for name in ("actor call p50", "actor call p99", "task p50", "task p99"):
        _plot(latency, samples, name, _latency_of(name))
    _plot(work, samples, "million operations", lambda sample: sample.operations / 1e6)
    _plot(work, samples, "files of the session, MiB", lambda sample: sample.whole["files"] / _MIB)
    _plot(work, samples, "logs, MiB", lambda sample: sample.whole["logs"] / _MIB)
    _plot(work, samples, "in the object stores, 10 MiB", lambda sample: sample.whole["store"] / _MIB / 10)
    latency.set_yscale("log")
    titles = {
        memory: "memory without a file behind it, MiB",
        descriptors: "open descriptors",
        latency: "one call at a time, µs",
        work: "work and disk",
    }
    for axes, title in titles.items():
        axes.set_title(title)
        if axes is not latency:
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6, ncols=2)
    for axes in (latency, work):
        axes.set_xlabel("minutes")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)


def _figure_of(process: str, figure: str, factor: float) -> Callable[[Sample], float | None]:
    return lambda sample: _scaled(sample.processes.get(process, {}).get(figure), factor)


def _latency_of(name: str) -> Callable[[Sample], float | None]:
    return lambda sample: _scaled(sample.latency.get(name), 1e6)


def _plot(axes: Any, samples: Sequence[Sample], name: str, value: Callable[[Sample], float | None]) -> None:
    axes.plot(*line(samples, value), label=name, linewidth=1)
