"""Pictures of results: ``python -m framework.benchmarks plot RESULT.json ... DIRECTORY``.

Takes matplotlib (extra `plot`), which is loaded when it is needed. Of several results the rows, and the
curves, of the last that has any are drawn. Written are ``peers.svg`` (the core rows, how many times faster
than each peer), ``curves.svg`` (what work costs as it grows) and ``pythons.svg``, each only if there is
something to draw.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framework.benchmarks import peers
from framework.benchmarks.compare import Document, load
from framework.benchmarks.report import figure
from framework.benchmarks.stats import median, speed_up

_BAR = 0.8  # of the room of a group
_CURVE_COLUMNS = 4


def require() -> None:
    """End the process with a message when matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        sys.exit("plot takes matplotlib: pip install 'framework[plot]'")


def against_peers(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Core row, with the product's figure, to how many times faster than each peer the product is. Rows
    without a peer's figure are left out."""
    by_name = {row["name"]: row for row in rows}
    found: dict[str, dict[str, float]] = {}
    for core, product in peers.PRODUCT_ROWS.items():
        own = by_name.get(product)
        if not own or not own["samples"]:
            continue
        ratios = {}
        for name in peers.MODULES:
            row = by_name.get(peers.row_name(name, core))
            if row and row["samples"]:
                lower = bool(own["lower_is_better"])
                ratios[name] = speed_up(median(row["samples"]), median(own["samples"]), lower_is_better=lower)
        if ratios:
            found[f"{core}: {figure(median(own['samples']), own['unit'])}"] = ratios
    return found


def across_pythons(document: Document) -> dict[str, dict[str, float]]:
    """Row to how fast each version of Python is in it, where the version that ran the rest is 1."""
    own = {row["name"]: row for row in document["rows"] if row["samples"]}
    found: dict[str, dict[str, float]] = {}
    for run in document.get("pythons", ()):
        for row in run["rows"]:
            if row["samples"] and row["name"] in own and row["group"] != "floors":
                lower = bool(row["lower_is_better"])
                before = median(own[row["name"]]["samples"])
                ratio = speed_up(before, median(row["samples"]), lower_is_better=lower)
                found.setdefault(row["name"], {})[f"Python {run['version']}"] = ratio
    return found


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "benchmarks", "font.size": 8})
    from matplotlib import pyplot

    return pyplot


def _save(figure_: Any, path: Path) -> None:
    figure_.tight_layout()
    figure_.savefig(path, metadata={"Date": None})
    _pyplot().close(figure_)


def draw_bars(bars: Mapping[str, Mapping[str, float]], title: str, path: Path, *, log: bool) -> None:
    """A group of horizontal bars for each key, from the top; a bar of the same colour for each inner key."""
    series = list(dict.fromkeys(name for group in bars.values() for name in group))
    pyplot = _pyplot()
    figure_, axes = pyplot.subplots(
        figsize=(7.5, 0.8 + 0.13 * sum(2 + len(group) for group in bars.values()))
    )
    ticks, top = [], 0.0
    for group in bars.values():
        ticks.append(top + (len(group) - 1) / 2)
        for number, (name, ratio) in enumerate(group.items()):
            colour = f"C{series.index(name)}"
            axes.barh(top + number, ratio - 1, _BAR, left=1, color=colour, label=name)
            axes.text(max(ratio, 1), top + number, f" {ratio:.3g}", va="center", fontsize=6)
        top += len(group) + 1
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    axes.legend(unique.values(), unique.keys(), fontsize=7)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(ticks, list(bars))
    axes.invert_yaxis()
    if log:
        axes.set_xscale("log")
    axes.margins(x=0.1)
    axes.set_title(title)
    axes.grid(axis="x", alpha=0.3)
    _save(figure_, path)


def draw_curves(curves: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Time over size on logarithmic axes, one picture per curve; dotted: slope 1 through its last point."""
    shown = [curve for curve in curves if curve["points"]]
    pyplot = _pyplot()
    columns = min(_CURVE_COLUMNS, len(shown))
    lines = -(-len(shown) // columns)
    figure_, grid = pyplot.subplots(lines, columns, figsize=(2.6 * columns, 2.4 * lines), squeeze=False)
    for axes in grid.flat[len(shown) :]:
        axes.axis("off")
    for axes, curve in zip(grid.flat, shown, strict=False):
        sizes = [size for size, _ in curve["points"]]
        least = [min(samples) for _, samples in curve["points"]]
        most = [max(samples) for _, samples in curve["points"]]
        axes.fill_between(sizes, least, most, alpha=0.3, linewidth=0)
        axes.plot(sizes, least, marker=".", linewidth=1)
        axes.plot(sizes, [least[-1] * size / sizes[-1] for size in sizes], ":", color="grey", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(bottom=min(least) / 2)
        axes.minorticks_off()  # most of the file otherwise
        found = curve["slope"]
        slope = "" if found is None else f", slope {found:.2f}"
        axes.set_title(f"{curve['title']}{slope}", fontsize=7)
        axes.set_xlabel(curve["unit"], fontsize=7)
        axes.set_ylabel("s", fontsize=7)
        axes.grid(alpha=0.3)
    _save(figure_, path)


def draw(documents: Sequence[Document], directory: Path) -> list[Path]:
    """Every picture that there is something for; their paths."""
    require()
    directory.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []

    def path(name: str) -> Path:
        written.append(directory / name)
        return written[-1]

    rows: Sequence[Mapping[str, Any]] = next((d["rows"] for d in reversed(documents) if d["rows"]), ())
    if bars := against_peers(rows):
        draw_bars(bars, "times faster than ...", path("peers.svg"), log=True)
    curves = next((d["curves"] for d in reversed(documents) if d.get("curves")), ())
    if any(curve["points"] for curve in curves):
        draw_curves(curves, path("curves.svg"))
    if bars := next((found for d in reversed(documents) if (found := across_pythons(d))), {}):
        draw_bars(bars, "speed, where the Python of the other figures is 1", path("pythons.svg"), log=False)
    return written


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw; 1 when there was nothing to draw, 2 when a file cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m framework.benchmarks plot", description="Draw results.")
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT.json")
    parser.add_argument("directory", type=Path, metavar="DIRECTORY")
    options = parser.parse_args(arguments)
    try:
        documents = [load(path) for path in options.results]
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    written = draw(documents, options.directory)
    print("\n".join(map(str, written)) or "nothing to draw: no peers, curves or other Pythons in the results")
    return 0 if written else 1
