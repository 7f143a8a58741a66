"""Accelerators: found where they are, pretended where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from framework._node.hardware import MOCK, accelerators, default_resources, visible_gpus

VARIABLES = ("CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS", "ASCEND_RT_VISIBLE_DEVICES", MOCK)


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def machine(root: Path, model: str = "", gpus: int = 0, devices: tuple[str, ...] = ()) -> str:
    """A file system as drivers show it."""
    for number in range(gpus):
        directory = root / "proc/driver/nvidia/gpus" / f"0000:0{number}:00.0"
        directory.mkdir(parents=True)
        (directory / "information").write_text(f"Model: \t\t {model}\nIRQ:   \t\t 24\n")
    (root / "dev").mkdir(exist_ok=True)
    for name in devices:
        (root / "dev" / name).touch()
    return str(root)


def test_a_machine_without_any(tmp_path: Path) -> None:
    assert accelerators(machine(tmp_path)) == {}
    assert accelerators(str(tmp_path / "nothing")) == {}


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA GeForce RTX 4090", "4090"),
        ("Tesla T4", "T4"),
    ],
)
def test_gpus_and_their_type(tmp_path: Path, model: str, name: str) -> None:
    root = machine(tmp_path, model, gpus=2)
    assert accelerators(root) == {"GPU": 2, f"accelerator_type:{name}": 1}


def test_what_a_process_may_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = machine(tmp_path, "Tesla T4", gpus=4, devices=("accel0", "accel1", "accel2", "davinci0", "tty1"))
    assert accelerators(root) == {"GPU": 4, "accelerator_type:T4": 1, "TPU": 3, "NPU": 1}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    monkeypatch.setenv("TPU_VISIBLE_CHIPS", "0")
    assert accelerators(root) == {"GPU": 2, "accelerator_type:T4": 1, "TPU": 1, "NPU": 1}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("TPU_VISIBLE_CHIPS", "-1")
    assert accelerators(root) == {"NPU": 1}
    assert visible_gpus(root) == 0


def test_pretended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MOCK, "GPU=4:A100, TPU=8")
    assert accelerators(machine(tmp_path)) == {"GPU": 4, "accelerator_type:A100": 1, "TPU": 8}
    found = default_resources(1, None, 1, {"TPU": 2, "oven": 1})
    assert found == {
        "CPU": 10_000,
        "GPU": 40_000,
        "memory": 10_000,
        "accelerator_type:A100": 10_000,
        "TPU": 20_000,
        "oven": 10_000,
    }
    assert "accelerator_type:A100" not in default_resources(1, 0, 1, None)
    assert "GPU" not in default_resources(1, 0, 1, None)
    monkeypatch.setenv(MOCK, "")
    assert accelerators(machine(tmp_path)) == {}


@pytest.mark.parametrize("text", ["GPU", "GPU=", "GPU=x", "=4", "GPU=-1"])
def test_pretended_wrongly(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MOCK, text)
    with pytest.raises(ValueError, match=MOCK):
        accelerators()
