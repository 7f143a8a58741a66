"""Accelerators that a machine pretends to have."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import framework as fw
from framework.util.placement_group import placement_group
from framework.util.scheduling_strategies import PlacementGroupSchedulingStrategy

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def pretended(session_root: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        patch.setenv("FRAMEWORK_MOCK_ACCELERATORS", "GPU=2:A100,TPU=4")
        with fw.init(num_cpus=2, log_to_driver=False):
            yield


@fw.remote(num_cpus=0)
def devices() -> tuple[list[int], str | None, dict[str, float]]:
    resources = fw.get_runtime_context().get_assigned_resources()
    return fw.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES"), resources


def test_they_are_resources() -> None:
    total = fw.cluster_resources()
    assert (total["GPU"], total["TPU"], total["accelerator_type:A100"]) == (2.0, 4.0, 1.0)


def test_tasks_ask_for_them() -> None:
    gpus, visible, _ = fw.get(devices.options(num_gpus=2, accelerator_type="A100").remote(), timeout=20)
    assert (gpus, visible) == ([0, 1], "0,1")
    gpus, visible, resources = fw.get(devices.options(resources={"TPU": 3}).remote(), timeout=20)
    assert (gpus, visible, resources) == ([], "", {"TPU": 3.0})
    with pytest.raises(fw.exceptions.TaskUnschedulableError, match="accelerator_type:H100"):
        fw.get(devices.options(accelerator_type="H100").remote(), timeout=20)


def test_bundles_hold_them() -> None:
    group = placement_group([{"TPU": 4, "accelerator_type:A100": 0.5, "GPU": 1}])
    assert group.wait(10)
    inside = devices.options(
        resources={"TPU": 4},
        num_gpus=0.5,
        accelerator_type="A100",
        scheduling_strategy=PlacementGroupSchedulingStrategy(group),
    )
    gpus, visible, resources = fw.get(inside.remote(), timeout=20)
    assert len(gpus) == 1 and visible == str(gpus[0])
    assert resources == {"TPU": 4.0, "GPU": 0.5, "accelerator_type:A100": 0.001}
