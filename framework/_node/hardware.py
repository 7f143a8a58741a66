"""What a node offers when it is not told: found out from the machine."""

from __future__ import annotations

import contextlib
import os

from framework._base import resources as res


def default_resources(
    num_cpus: float | None, num_gpus: float | None, memory: float | None, custom: dict[str, float] | None
) -> dict[str, int]:
    """What a node offers when it is not told: the CPUs that this process may use, 70 % of memory, the GPUs
    that CUDA_VISIBLE_DEVICES or the driver's device files show."""
    if num_cpus is None:
        num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_gpus is None:
        num_gpus = visible_gpus()
    if memory is None:
        try:
            memory = int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 0.7)
        except (ValueError, OSError):
            memory = 0
    return res.parse(num_cpus, num_gpus, memory, custom or {}, default_cpus=num_cpus)


def gpu_names(count: int) -> list[int | str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs of this node: numbers from 0, unless the variable itself
    restricts this process to some (numbers, or ids such as ``GPU-8932f937``)."""
    parts = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    names: list[int | str] = [
        int(part) if part.isdigit() else part for part in parts if part and part != "-1"
    ]
    return names[:count] if len(names) >= count else list(range(count))


def visible_gpus() -> int:
    """GPUs that this process may use, without loading any GPU library."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([part for part in visible.split(",") if part.strip() and part.strip() != "-1"])
    with contextlib.suppress(OSError):
        return sum(1 for name in os.listdir("/proc/driver/nvidia/gpus"))
    return 0
