"""What a figure depends on: the machine, the interpreter, the versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

from framework.benchmarks.model import usable_cpus

_DISTRIBUTIONS = (
    "framework",
    "uvloop",
    "msgpack",
    "cloudpickle",
    "numpy",
    "loky",
    "ray",
    "distributed",
    "xoscar",
)


def cpu_model(cpuinfo: str) -> str | None:
    """The processor's name from the text of /proc/cpuinfo, if it is there."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"model name", "Model"} and value.strip():
            return value.strip()
    return None


def memory_bytes() -> int | None:
    """Physical memory, where the system tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None


def machine() -> dict[str, object]:
    """Facts of the machine. `load` is the load average of the last minute when the benchmarks started."""
    try:
        model = cpu_model(Path("/proc/cpuinfo").read_text())
    except OSError:
        model = None
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "cpu": model,
        "cpus": usable_cpus(),
        "memory": memory_bytes(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def versions() -> dict[str, str]:
    """Versions of the framework, its dependencies and the peers, as far as they are installed."""
    found: dict[str, str] = {}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
