"""What a node offers when it is not told: found out from the machine, without loading any vendor's library.

Accelerators are logical resources: the framework counts them and says which of them a task may use; what the
task does with them is its own business. `GPU` has indices (see `framework._base.resources.IndexedResource`),
others are amounts. A machine without any can pretend: ``FRAMEWORK_MOCK_ACCELERATORS="GPU=4:A100,TPU=8"``.
"""

from __future__ import annotations

import contextlib
import os
import re

from framework._base import resources as res
from framework._base.resources import ACCELERATOR_PREFIX

MOCK = "FRAMEWORK_MOCK_ACCELERATORS"

#: resource -> the directory and the names of its device files, and the variable that allows only some of them
_DEVICES = {
    "TPU": ("dev", re.compile(r"accel\d+\Z"), "TPU_VISIBLE_CHIPS"),
    "NPU": ("dev", re.compile(r"davinci\d+\Z"), "ASCEND_RT_VISIBLE_DEVICES"),
}
_NVIDIA = "proc/driver/nvidia/gpus"
_MODEL = r"Model:\s+(?:NVIDIA\s+)?(?:Tesla\s+|GeForce\s+)?(?:RTX\s+)?([A-Za-z0-9]+)"


def default_resources(
    num_cpus: float | None, num_gpus: float | None, memory: float | None, custom: dict[str, float] | None
) -> dict[str, int]:
    """What a node offers when it is not told: the CPUs that this process may use, 70 % of memory, the GPUs
    that CUDA_VISIBLE_DEVICES or the driver's device files show, and `accelerators`. What `custom` names is as
    it says there."""
    if num_cpus is None:
        num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = accelerators()
    if num_gpus is None:
        num_gpus = found.get(res.GPU, 0)
    elif not num_gpus:
        found = {name: n for name, n in found.items() if not name.startswith(ACCELERATOR_PREFIX)}
    found.pop(res.GPU, None)
    if memory is None:
        try:
            memory = int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 0.7)
        except (ValueError, OSError):
            memory = 0
    return res.parse(num_cpus, num_gpus, memory, {**found, **(custom or {})}, default_cpus=num_cpus)


def accelerators(root: str = "/") -> dict[str, float]:
    """The accelerators of this machine: GPU, TPU, NPU, and ``accelerator_type:NAME`` (1) for the model where
    it is known. `ValueError` for a wrong ``FRAMEWORK_MOCK_ACCELERATORS``."""
    mock = os.environ.get(MOCK)
    if mock is not None:
        return _mocked(mock)
    found: dict[str, float] = {}
    gpus = visible_gpus(root)
    if gpus:
        found[res.GPU] = gpus
        model = _nvidia_model(root)
        if model:
            found[ACCELERATOR_PREFIX + model] = 1
    for name, (directory, pattern, variable) in _DEVICES.items():
        with contextlib.suppress(OSError):
            count = sum(1 for entry in os.listdir(os.path.join(root, directory)) if pattern.match(entry))
            visible = os.environ.get(variable)
            if visible is not None:
                count = min(count, len(_parts(visible)))
            if count:
                found[name] = count
    return found


def _mocked(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        name, equals, rest = part.partition("=")
        count, _, model = rest.partition(":")
        if not name.strip() or not equals or not count.strip().isdigit():
            raise ValueError(
                f"{MOCK}={text!r}: {part!r} is not NAME=COUNT or NAME=COUNT:MODEL, as in 'GPU=4:A100,TPU=8'"
            )
        found[name.strip()] = int(count)
        if model.strip() and int(count):
            found[ACCELERATOR_PREFIX + model.strip()] = 1
    return found


def _nvidia_model(root: str) -> str:
    """``V100`` of ``Model: Tesla V100-SXM2-16GB``, as Ray names types."""
    directory = os.path.join(root, _NVIDIA)
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(directory)):
            with open(os.path.join(directory, name, "information"), errors="replace") as file:
                found = re.search(_MODEL, file.read())
            if found is not None:
                return found[1]
    return ""


def _parts(visible: str) -> list[str]:
    return [part for part in map(str.strip, visible.split(",")) if part and part != "-1"]


def gpu_names(count: int) -> list[int | str]:
    """What CUDA_VISIBLE_DEVICES calls the GPUs of this node: numbers from 0, unless the variable itself
    restricts this process to some (numbers, or ids such as ``GPU-8932f937``)."""
    parts = _parts(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    names: list[int | str] = [int(part) if part.isdigit() else part for part in parts]
    return names[:count] if len(names) >= count else list(range(count))


def visible_gpus(root: str = "/") -> int:
    """GPUs that this process may use, without loading any GPU library."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len(_parts(visible))
    with contextlib.suppress(OSError):
        return sum(1 for name in os.listdir(os.path.join(root, _NVIDIA)))
    return 0
