"""Resources: exact accounting, GPUs, environment variables, where tasks may run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import framework as fw
from framework.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from support.leaks import wait_until

pytestmark = pytest.mark.integration

STORE = 64 * 1024 * 1024
TOTAL = {
    "CPU": 4.0,
    "GPU": 2.0,
    "memory": 1_000_000.0,
    "object_store_memory": float(STORE),
    "tape": 1.0,
    "fine": 0.3,
}


@pytest.fixture(scope="module")
def cluster(session_root: Path) -> Iterator[object]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        patch.delenv("OMP_NUM_THREADS", raising=False)
        with fw.init(
            object_store_memory=STORE,
            num_cpus=4,
            num_gpus=2,
            memory=1_000_000,
            resources={"tape": 1, "fine": 0.3},
            log_to_driver=False,
        ) as context:
            yield context


def free() -> dict[str, float]:
    return {name: amount for name, amount in fw.available_resources().items() if not name.startswith("node:")}


def all_free() -> bool:
    return free() == TOTAL


class Gate:
    """Tasks that hold their resources until told to end."""

    def __init__(self, directory: Path) -> None:
        self.path = str(directory / "gate")
        self.started = str(directory / "started")
        os.mkdir(self.started)

    def task(self, **options: Any) -> Any:
        path, started = self.path, self.started

        @fw.remote
        def hold(index: int) -> int:
            import time

            Path(started, str(index)).touch()
            while not os.path.exists(path):
                time.sleep(0.005)
            return index

        return hold.options(**options)

    def running(self) -> int:
        return len(os.listdir(self.started))

    def open(self) -> None:
        Path(self.path).touch()


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.open()


# ---- accounting --------------------------------------------------------------------------------------


def test_totals(cluster: object) -> None:
    found = fw.cluster_resources()
    assert {name: found[name] for name in TOTAL} == TOTAL
    assert fw.nodes()[0]["Resources"]["tape"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "most", "left"),
    [
        ({}, 4, {"CPU": 0.0}),
        ({"num_cpus": 2}, 2, {"CPU": 0.0}),
        ({"num_cpus": 1.5}, 2, {"CPU": 1.0}),
        ({"num_cpus": 0, "resources": {"fine": 0.1}}, 3, {"fine": 0.0, "CPU": 4.0}),
        ({"num_cpus": 0.1, "resources": {"tape": 0.35}}, 2, {"CPU": 3.8, "tape": 0.3}),
        ({"num_cpus": 0, "num_gpus": 0.5}, 4, {"GPU": 0.0}),
        ({"num_cpus": 0, "num_gpus": 0.7}, 2, {"GPU": 0.6}),
        ({"num_cpus": 0, "memory": 300_000}, 3, {"memory": 100_000.0}),
    ],
)
def test_as_many_run_at_once_as_there_is_room(
    cluster: object, gate: Gate, options: dict[str, Any], most: int, left: dict[str, float]
) -> None:
    wait_until(all_free, 10, "free resources")
    hold = gate.task(**options)
    refs = [hold.remote(i) for i in range(most + 2)]
    wait_until(lambda: gate.running() == most, 20, f"{most} running tasks")
    wait_until(
        lambda: all(free().get(name, 0.0) == amount for name, amount in left.items()), 10, "the accounts"
    )
    assert gate.running() == most
    gate.open()
    assert fw.get(refs, timeout=20) == list(range(most + 2))
    wait_until(all_free, 10, "free resources")


@pytest.mark.slow
def test_many_shapes_leave_the_accounts_exact(cluster: object) -> None:
    @fw.remote
    def nothing() -> None:
        pass

    shapes = [
        {
            "num_cpus": (i % 7 + 1) / 10,
            "resources": {"fine": (i % 3 + 1) / 10},
            "num_gpus": [0, 0.25, 1][i % 3],
        }
        for i in range(40)
    ]
    fw.get([nothing.options(**shape).remote() for shape in shapes], timeout=60)  # type: ignore[call-arg]
    wait_until(all_free, 10, "free resources")


def test_a_failed_and_a_killed_task_give_back_what_they_held(cluster: object) -> None:
    @fw.remote(num_cpus=3, max_retries=0)
    def end(kill: bool) -> None:
        if kill:
            os._exit(1)
        raise ValueError

    for kill, error in ((False, ValueError), (True, fw.exceptions.WorkerCrashedError)):
        with pytest.raises(error):
            fw.get(end.remote(kill), timeout=20)
        wait_until(all_free, 10, "free resources")


@pytest.mark.slow
def test_a_cancelled_queue_gives_back_what_it_asked_for(cluster: object, gate: Gate) -> None:
    hold = gate.task(num_cpus=4)
    refs = [hold.remote(i) for i in range(4)]
    wait_until(lambda: gate.running() == 1, 20, "a running task")
    for ref in refs:
        fw.cancel(ref)
    for ref in refs:
        with pytest.raises(fw.exceptions.TaskCancelledError):
            fw.get(ref, timeout=20)
    wait_until(all_free, 10, "free resources")


def test_assigned_resources(cluster: object) -> None:
    @fw.remote(num_cpus=0.5, resources={"tape": 0.25})
    def mine() -> Any:
        return fw.get_runtime_context().get_assigned_resources()

    assert fw.get(mine.remote(), timeout=20) == {"CPU": 0.5, "tape": 0.25}


# ---- what can never run ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"num_cpus": 5}, "not enough: CPU"),
        ({"num_gpus": 3}, "not enough: GPU"),
        ({"resources": {"unicorn": 1}}, "not enough: unicorn"),
        ({"memory": 1_000_001}, "not enough: memory"),
        ({"accelerator_type": "H100"}, "accelerator_type:H100"),
        ({"label_selector": {"zone": "a"}}, "label_selector"),
    ],
)
def test_an_impossible_request_is_an_error_at_once(
    cluster: object, options: dict[str, Any], text: str
) -> None:
    @fw.remote
    def never() -> None: ...

    refs = [never.options(**options).remote() for _ in range(3)]
    for ref in refs:
        with pytest.raises(fw.exceptions.TaskUnschedulableError, match=text) as caught:
            fw.get(ref, timeout=5)
        assert "never()" in str(caught.value)
    with pytest.raises(fw.exceptions.TaskUnschedulableError, match=text):
        fw.get(never.options(**options).remote(), timeout=5)


def test_node_affinity(cluster: object) -> None:
    @fw.remote
    def where() -> str:
        return fw.get_runtime_context().get_node_id()

    here = fw.nodes()[0]["NodeID"]
    unknown = "ab" * 28
    for node, soft in ((here, False), (here, True), (unknown, True)):
        strategy = NodeAffinitySchedulingStrategy(node, soft=soft)
        assert fw.get(where.options(scheduling_strategy=strategy).remote(), timeout=20) == here
    strategy = NodeAffinitySchedulingStrategy(unknown, soft=False)
    with pytest.raises(fw.exceptions.TaskUnschedulableError, match=unknown):
        fw.get(where.options(scheduling_strategy=strategy).remote(), timeout=5)
    assert fw.get(where.options(scheduling_strategy="SPREAD").remote(), timeout=20) == here


def test_node_affinity_of_actors(cluster: object) -> None:
    @fw.remote
    class Lonely:
        def where(self) -> str:
            return fw.get_runtime_context().get_node_id()

    here = fw.nodes()[0]["NodeID"]
    near = Lonely.options(scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=False)).remote()
    assert fw.get(near.where.remote(), timeout=20) == here
    far = Lonely.options(scheduling_strategy=NodeAffinitySchedulingStrategy("cd" * 28, soft=False)).remote()
    with pytest.raises(fw.exceptions.ActorUnschedulableError, match="cd" * 28):
        fw.get(far.where.remote(), timeout=10)


# ---- GPUs --------------------------------------------------------------------------------------------


@fw.remote
def gpus() -> tuple[list[int], str | None]:
    return fw.get_gpu_ids(), os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.slow
def test_gpus_are_numbered_and_shown(cluster: object) -> None:
    assert fw.get(gpus.remote(), timeout=20) == ([], "")
    assert fw.get(gpus.options(num_gpus=2).remote(), timeout=20) == ([0, 1], "0,1")
    ids, shown = fw.get(gpus.options(num_gpus=0.5).remote(), timeout=20)
    assert len(ids) == 1
    assert shown == str(ids[0])


@pytest.mark.slow
def test_gpu_shares(cluster: object, tmp_path: Path) -> None:
    gate = str(tmp_path / "gate")

    @fw.remote(num_cpus=0, num_gpus=0.5)
    def share(index: int) -> list[int]:
        import time

        (tmp_path / f"on-{index}").touch()
        while not os.path.exists(gate):
            time.sleep(0.005)
        return fw.get_gpu_ids()

    refs = [share.remote(i) for i in range(4)]
    try:
        wait_until(lambda: len(list(tmp_path.glob("on-*"))) == 4, 20, "four tasks on two GPUs")
    finally:
        Path(gate).touch()
    assert sorted(fw.get(refs, timeout=20)) == [[0], [0], [1], [1]]


@pytest.mark.slow
def test_gpus_that_the_driver_may_not_see_are_not_given_out(
    session_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fw.shutdown()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    with fw.init(num_cpus=1, log_to_driver=False):
        assert fw.cluster_resources()["GPU"] == 2.0
        assert fw.get(gpus.options(num_gpus=2).remote(), timeout=20) == ([5, 7], "5,7")


# ---- environment -------------------------------------------------------------------------------------


@fw.remote
def variable(name: str) -> str | None:
    return os.environ.get(name)


@pytest.fixture
def plain(session_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    fw.shutdown()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("FROM_DRIVER", "yes")
    with fw.init(num_cpus=4, log_to_driver=False) as context:
        yield context


@pytest.mark.slow
def test_omp_num_threads_follows_num_cpus(plain: object) -> None:
    name = "OMP_NUM_THREADS"
    assert fw.get(variable.remote(name), timeout=20) == "1"
    assert fw.get(variable.options(num_cpus=3).remote(name), timeout=20) == "3"
    assert fw.get(variable.options(num_cpus=0.5).remote(name), timeout=20) == "1"
    assert fw.get(variable.options(num_cpus=0).remote(name), timeout=20) == "1"
    env = {"env_vars": {name: "7"}}
    assert fw.get(variable.options(num_cpus=2, runtime_env=env).remote(name), timeout=30) == "7"
    assert fw.get(variable.remote(name), timeout=20) == "1"


@pytest.mark.slow
def test_omp_num_threads_of_the_driver_wins(session_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fw.shutdown()
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with fw.init(num_cpus=2, log_to_driver=False):
        assert fw.get(variable.options(num_cpus=2).remote("OMP_NUM_THREADS"), timeout=20) == "5"


@pytest.mark.slow
def test_environment_variables(plain: object) -> None:
    assert fw.get(variable.remote("FROM_DRIVER"), timeout=20) == "yes"
    mine = variable.options(runtime_env={"env_vars": {"MINE": "a=b c", "FROM_DRIVER": "no"}})
    assert fw.get([mine.remote("MINE"), mine.remote("FROM_DRIVER")], timeout=20) == ["a=b c", "no"]
    other = variable.options(runtime_env={"env_vars": {"MINE": "other"}})
    assert fw.get([other.remote("MINE"), other.remote("FROM_DRIVER")], timeout=20) == ["other", "yes"]
    assert fw.get(variable.remote("MINE"), timeout=20) is None


@pytest.mark.slow
def test_an_environment_in_which_no_interpreter_starts(plain: object) -> None:
    broken = variable.options(runtime_env={"env_vars": {"PYTHONHOME": "/nowhere"}})
    for _ in range(2):  # it may be tried again, with the same end
        with pytest.raises(fw.exceptions.RuntimeEnvSetupError, match=r"variable\(\).*PYTHONHOME"):
            fw.get(broken.remote("X"), timeout=30)
    assert fw.get(variable.remote("FROM_DRIVER"), timeout=20) == "yes"
