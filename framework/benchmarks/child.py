"""One workload, or one curve, in a process of its own: ``python -m framework.benchmarks.child``, started by
`invocation` and `curves`.

The result goes to a file, because standard output belongs to whatever is being measured.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import signal
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import framework as fw
from framework.benchmarks import curves
from framework.benchmarks.catalogue import workload_named
from framework.benchmarks.model import Settings, Workload
from framework.benchmarks.processes import adopt_orphans
from framework.benchmarks.runner import collect

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _die_with_parent() -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def sample(workload: Workload, settings: Settings) -> list[list[float]]:
    """The samples of each row of `workload`. Warmed up, except where a sample is a fresh process anyway."""
    context: AbstractContextManager[object] = nullcontext()
    if workload.product:
        context = fw.init(num_cpus=settings.cpus, log_to_driver=False)
    with context, workload.prepare(settings) as measure:
        runs = 1 if workload.once else settings.runs
        return collect(measure, runs, settings.seconds, warm_up=not workload.fresh)


def main() -> None:
    """Write ``{"samples": [[...], ...]}``, or with ``--curve`` its document, to ``--out``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", required=True)
    parser.add_argument("--runs", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--cpus", type=int, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    _die_with_parent()
    adopt_orphans()
    settings = Settings(options.runs, options.seconds, options.quick, options.cpus)
    if options.curve:
        with fw.init(num_cpus=settings.cpus, object_store_memory=curves.STORE_BYTES, log_to_driver=False):
            measured = curves.sample(curves.CURVES[options.name], settings)
        options.out.write_text(json.dumps(measured.to_json()))
        return
    samples = sample(workload_named(options.name), settings)
    options.out.write_text(json.dumps({"samples": samples}))


if __name__ == "__main__":
    main()
