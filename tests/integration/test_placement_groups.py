"""Placement groups in a session of one node."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import framework as fw
from framework.exceptions import (
    ActorDiedError,
    ActorPlacementGroupRemoved,
    ActorUnschedulableError,
    PlacementGroupRemovedError,
    TaskPlacementGroupRemoved,
    TaskUnschedulableError,
)
from framework.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from framework.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from framework.util.state import why_pending
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

CPUS, GPUS = 4.0, 2.0


@pytest.fixture(scope="module", autouse=True)
def cluster(session_root: Path) -> Iterator[object]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        with fw.init(num_cpus=4, num_gpus=2, resources={"tape": 2}, log_to_driver=False) as context:
            yield context


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    yield
    for row in placement_group_table().values():
        if row["state"] != "REMOVED":
            remove_placement_group(get_by_hex(row["placement_group_id"]))
    wait_until(all_free, 10, "all resources to be free again")


def get_by_hex(text: str) -> PlacementGroup:
    from framework._base.ids import PlacementGroupID

    return PlacementGroup(PlacementGroupID.from_hex(text))


def free() -> dict[str, float]:
    return fw.available_resources()


def all_free() -> bool:
    here = free()
    return here.get("CPU") == CPUS and here.get("GPU") == GPUS and not any("_group_" in name for name in here)


def within(group: PlacementGroup, index: int = -1, capture: bool = False) -> Any:
    return PlacementGroupSchedulingStrategy(group, index, capture)


@fw.remote(num_cpus=1)
def where() -> PlacementGroup | None:
    return get_current_placement_group()


@fw.remote(num_cpus=1)
def facts() -> dict[str, Any]:
    return {
        "gpus": fw.get_gpu_ids(),
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "resources": fw.get_runtime_context().get_assigned_resources(),
    }


@fw.remote(num_cpus=1)
def hold(path: str) -> str:
    Path(path).touch()
    time.sleep(60)
    return "done"


@fw.remote(num_cpus=1)
class Actor:
    def where(self) -> PlacementGroup | None:
        return get_current_placement_group()

    def start(self, function: Any) -> Any:
        return fw.get(function.remote())

    def facts(self) -> list[int]:
        return fw.get_gpu_ids()


# ---- what a group is ---------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["PACK", "SPREAD", "STRICT_PACK"])
def test_reserves_and_gives_back(strategy: str) -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 1, "GPU": 1}, {"tape": 2}], strategy=strategy)
    assert fw.get(group.ready(), timeout=10) == group
    wait_until(lambda: free().get("CPU") == 2.0 and free().get("GPU") == 1.0, 5, "the reservation to be told")
    assert free().get("tape", 0) == 0
    assert fw.cluster_resources()["CPU"] == CPUS
    assert fw.cluster_resources()[f"CPU_group_{group.id.hex()}"] == 2.0
    assert group.bundle_specs == [{"CPU": 1.0}, {"CPU": 1.0, "GPU": 1.0}, {"tape": 2.0}]
    assert group.bundle_count == 3
    row = placement_group_table(group)
    assert (row["state"], row["strategy"], row["name"]) == ("CREATED", strategy, "")
    assert row["bundles"] == dict(enumerate(group.bundle_specs))
    assert set(row["bundles_to_node_id"].values()) == {fw.nodes()[0]["NodeID"]}
    assert placement_group_table()[group.id.hex()] == row
    remove_placement_group(group)
    remove_placement_group(group)
    assert placement_group_table(group)["state"] == "REMOVED"
    wait_until(all_free, 5, "the resources to be back")


def test_what_does_not_fit_now_waits_and_all_of_it() -> None:
    first = placement_group([{"CPU": 3}])
    assert first.wait(10)
    second = placement_group([{"CPU": 1}, {"CPU": 2}])
    assert not second.wait(0.2)
    assert placement_group_table(second)["state"] == "PENDING"
    assert "in use" in placement_group_table(second)["stats"]["scheduling_state"]
    wait_until(lambda: free().get("CPU") == 1.0, 5, "the first reservation only")
    remove_placement_group(first)
    assert second.wait(10)


def test_what_never_fits_waits_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "framework"):
        group = placement_group([{"CPU": 1}, {"CPU": 1}], strategy="STRICT_SPREAD")
        assert not group.wait(0.2)
        wait_until(lambda: "on a node each more than this cluster" in caplog.text, 5, "the warning")
    assert group.id.hex() in caplog.text
    assert placement_group_table(group)["state"] == "PENDING"


def test_a_waiting_group_can_be_removed() -> None:
    group = placement_group([{"CPU": 100}])
    ready = group.ready()
    remove_placement_group(group)
    with pytest.raises(PlacementGroupRemovedError, match=group.id.hex()):
        fw.get(ready, timeout=10)
    assert not group.wait(5)


def test_ready_is_awaitable() -> None:
    async def main() -> PlacementGroup:
        group = placement_group([{"CPU": 1}], name="made on a loop")
        first, second = await asyncio.gather(group.ready(), group.ready())
        assert first == second
        return group

    assert asyncio.run(main()) == get_placement_group("made on a loop")


def test_names() -> None:
    group = placement_group([{"CPU": 1}], name="n")
    found = get_placement_group("n")
    assert found == group
    assert found.bundle_specs == group.bundle_specs
    with pytest.raises(ValueError, match="exists already"):
        placement_group([{"CPU": 1}], name="n")
    remove_placement_group(group)
    with pytest.raises(ValueError, match="no placement group named 'n'"):
        get_placement_group("n")
    remove_placement_group(placement_group([{"CPU": 1}], name="n"))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"bundles": []}, "must not be empty"),
        ({"bundles": {"CPU": 1}}, "list of dicts"),
        ({"bundles": [1]}, "bundle 0 must be a dict"),
        ({"bundles": [{"CPU": 1}, {}]}, "bundle 1 asks for nothing"),
        ({"bundles": [{"CPU": 0}]}, "bundle 0 asks for nothing"),
        ({"bundles": [{"CPU": -1}]}, "must not be negative"),
        ({"bundles": [{"CPU": "1"}]}, "must be a number"),
        ({"bundles": [{"GPU": 1.5}]}, "whole number"),
        ({"bundles": [{1: 1}]}, "non-empty str"),
        ({"bundles": [{"CPU": 1}], "strategy": "TIGHT"}, "none of the strategies"),
        ({"bundles": [{"CPU": 1}], "lifetime": "long"}, "detached"),
        ({"bundles": [{"CPU": 1}], "name": 1}, "is a str"),
        ({"bundles": [{"CPU": 1}], "bundle_label_selector": []}, "one for each bundle"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        placement_group(**arguments)


def test_wrong_uses() -> None:
    group = placement_group([{"CPU": 1}])
    with pytest.raises(ValueError, match="1 bundle"):
        where.options(scheduling_strategy=within(group, 1)).remote()
    with pytest.raises(ValueError, match="does not fit"):
        where.options(num_cpus=2, scheduling_strategy=within(group)).remote()
    with pytest.raises(ValueError, match="does not fit"):
        Actor.options(num_gpus=1, scheduling_strategy=within(group, 0)).remote()
    with pytest.raises(ValueError, match="scheduling_strategy"):
        where.options(placement_group=group)
    with pytest.raises(ValueError, match="scheduling_strategy"):
        Actor.options(placement_group_bundle_index=0)
    with pytest.raises(ValueError, match="placement_group"):
        remove_placement_group("x")  # type: ignore[arg-type]


def test_both_ways_to_name_the_function() -> None:
    assert isinstance(fw.util.placement_group([{"CPU": 1}]), PlacementGroup)
    assert fw.util.placement_group_table is placement_group_table


# ---- tasks and actors in it --------------------------------------------------------------------------


def test_tasks_and_actors_run_in_it() -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 2}])
    assert fw.get(where.options(scheduling_strategy=within(group)).remote(), timeout=20) == group
    wide = where.options(num_cpus=2, scheduling_strategy=within(group, 1))
    assert fw.get(wide.remote(), timeout=20) == group
    actor = Actor.options(scheduling_strategy=within(group, 0)).remote()
    assert fw.get(actor.where.remote(), timeout=20) == group
    assert fw.get(where.remote(), timeout=20) is None
    assert get_current_placement_group() is None


def test_a_group_may_be_passed_on_and_made_in_tasks() -> None:
    @fw.remote(num_cpus=0)
    def use(group: PlacementGroup) -> bool:
        fw.get(group.ready())
        return fw.get(where.options(scheduling_strategy=within(group)).remote()) == group

    @fw.remote(num_cpus=0)
    def make() -> PlacementGroup:
        return placement_group([{"CPU": 1}])

    group = fw.get(make.remote(), timeout=20)
    assert group.bundle_specs == [{"CPU": 1.0}]
    assert fw.get(use.remote(group), timeout=20)


def test_no_more_runs_than_is_reserved(tmp_path: Path) -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 1}])
    held = [
        hold.options(scheduling_strategy=within(group, 0)).remote(str(tmp_path / str(n))) for n in range(2)
    ]
    wait_until(lambda: len(list(tmp_path.iterdir())) == 1, 20, "the first task")
    done, _ = fw.wait([where.options(scheduling_strategy=within(group, 1)).remote()], timeout=20)
    assert done
    assert len(list(tmp_path.iterdir())) == 1
    del held


def test_tasks_wait_for_their_group() -> None:
    first = placement_group([{"CPU": 4}])
    assert first.wait(10)
    second = placement_group([{"CPU": 2}])
    ref = where.options(scheduling_strategy=within(second)).remote()
    actor = Actor.options(scheduling_strategy=within(second)).remote()
    call = actor.where.remote()
    assert fw.wait([ref, call], timeout=0.3)[0] == []
    assert "in use" in why_pending(ref)
    remove_placement_group(first)
    assert fw.get([ref, call], timeout=20) == [second, second]


def test_an_actor_that_waits_in_a_full_group_is_in_nobodys_way() -> None:
    group, other = placement_group([{"CPU": 1}]), placement_group([{"CPU": 1}])
    first = Actor.options(scheduling_strategy=within(group)).remote()
    assert fw.get(first.where.remote(), timeout=20) == group
    second = Actor.options(scheduling_strategy=within(group)).remote()
    call = second.where.remote()
    outside, elsewhere = Actor.remote(), Actor.options(scheduling_strategy=within(other)).remote()
    assert fw.get([outside.where.remote(), elsewhere.where.remote()], timeout=20) == [None, other]
    assert fw.get(where.remote(), timeout=20) is None
    assert fw.wait([call], timeout=0.1)[0] == []
    fw.kill(first)
    assert fw.get(call, timeout=20) == group


def test_an_actor_restarts_where_it_was(tmp_path: Path) -> None:
    @fw.remote(num_cpus=1, max_restarts=1, max_task_retries=1)
    class Falls:
        def fall(self, path: str) -> PlacementGroup | None:
            if not os.path.exists(path):
                Path(path).touch()
                os._exit(1)
            return get_current_placement_group()

    group = placement_group([{"CPU": 1}])
    actor = Falls.options(scheduling_strategy=within(group)).remote()
    assert fw.get(actor.fall.remote(str(tmp_path / "fell")), timeout=20) == group


def test_children_run_where_they_are_captured() -> None:
    group = placement_group([{"CPU": 1}])
    outside = Actor.options(num_cpus=0, scheduling_strategy=within(group)).remote()
    inside = Actor.options(num_cpus=0, scheduling_strategy=within(group, capture=True)).remote()
    assert fw.get(outside.start.remote(where), timeout=20) is None
    assert fw.get(inside.start.remote(where), timeout=20) == group
    for outside_strategy in ("DEFAULT", PlacementGroupSchedulingStrategy(None)):
        free_one = where.options(scheduling_strategy=outside_strategy)
        assert fw.get(inside.start.remote(free_one), timeout=20) is None


@fw.remote(num_cpus=1)
def parent(child: Any, depth: int = 0) -> Any:
    if depth:
        return fw.get(parent.remote(child, depth - 1))
    return fw.get(child.remote())


@fw.remote(num_cpus=1, num_gpus=1, max_calls=0)
def parent_with_gpu(child: Any, wait: bool = True) -> Any:
    ref = child.remote()
    return fw.get(ref) if wait else ref


def test_children_of_a_full_group_run_while_their_parents_wait() -> None:
    group = placement_group([{"CPU": 1}])
    ref = parent.options(scheduling_strategy=within(group, capture=True)).remote(where, 3)
    assert fw.get(ref, timeout=30) == group


def test_a_child_that_needs_what_its_waiting_parent_holds_fails() -> None:
    group = placement_group([{"CPU": 1, "GPU": 1}])
    child = where.options(num_cpus=0, num_gpus=1, max_calls=0)
    inside = parent_with_gpu.options(scheduling_strategy=within(group, capture=True))
    with pytest.raises(TaskUnschedulableError, match="wait for ever"):
        fw.get(inside.remote(child), timeout=20)
    # One that does not wait leaves it free.
    assert fw.get(fw.get(inside.remote(child, False), timeout=20), timeout=20) == group


def test_a_child_that_fits_into_no_bundle_fails() -> None:
    group = placement_group([{"CPU": 1}])
    inside = parent.options(scheduling_strategy=within(group, capture=True))
    with pytest.raises(TaskUnschedulableError, match="fits into no bundle"):
        fw.get(inside.remote(where.options(num_cpus=2)), timeout=20)


def test_an_actor_of_a_child_that_fits_into_no_bundle_fails() -> None:
    @fw.remote(num_cpus=1)
    def start() -> Any:
        actor = Actor.options(num_cpus=2).remote()
        return fw.get(actor.where.remote())

    group = placement_group([{"CPU": 1}])
    with pytest.raises(ActorUnschedulableError, match="fits into no bundle"):
        fw.get(start.options(scheduling_strategy=within(group, capture=True)).remote(), timeout=20)


# ---- the end -----------------------------------------------------------------------------------------


def test_what_runs_in_it_ends_with_it(tmp_path: Path) -> None:
    group = placement_group([{"CPU": 1}, {"CPU": 1}], name="short-lived")
    strategy = within(group)
    task = hold.options(scheduling_strategy=strategy, max_retries=5).remote(str(tmp_path / "started"))
    actor = Actor.options(scheduling_strategy=strategy, max_restarts=-1).remote()
    assert fw.get(actor.where.remote(), timeout=20) == group
    wait_until((tmp_path / "started").exists, 20, "the task")
    waiting = where.options(scheduling_strategy=strategy).remote()
    remove_placement_group(group)
    for ref in (task, waiting, where.options(scheduling_strategy=strategy).remote()):
        with pytest.raises(TaskPlacementGroupRemoved, match=group.id.hex()):
            fw.get(ref, timeout=10)
    late = Actor.options(scheduling_strategy=strategy).remote()
    for call in (actor.where.remote(), late.where.remote()):
        with pytest.raises(ActorPlacementGroupRemoved, match=group.id.hex()) as caught:
            fw.get(call, timeout=10)
        assert isinstance(caught.value, ActorDiedError)
    with pytest.raises(PlacementGroupRemovedError, match="short-lived"):
        fw.get(group.ready(), timeout=10)
    # Its resources are for others now.
    assert fw.get(where.options(num_cpus=4).remote(), timeout=20) is None


def test_what_is_beside_it_lives_on(tmp_path: Path) -> None:
    group = placement_group([{"CPU": 1}])
    other = placement_group([{"CPU": 1}])
    actors = [Actor.options(scheduling_strategy=within(other)).remote(), Actor.remote()]
    pids = fw.get([actor.where.remote() for actor in actors], timeout=20)
    assert pids == [other, None]
    remove_placement_group(group)
    assert fw.get([actor.where.remote() for actor in actors], timeout=20) == pids


def test_nothing_is_put_on_a_lease_of_a_group_that_is_gone() -> None:
    for _ in range(10):
        group = placement_group([{"CPU": 1}])
        task = where.options(scheduling_strategy=within(group))
        assert fw.get(task.remote(), timeout=20) == group  # its lease is idle now
        remove_placement_group(group)
        with pytest.raises(TaskPlacementGroupRemoved):
            fw.get(task.remote(), timeout=20)


def test_what_others_have_of_a_worker_outlives_the_group_that_it_has_served(tmp_path: Path) -> None:
    @fw.remote(num_cpus=1)
    def make(number: int) -> tuple[int, list[Any]]:
        (tmp_path / f"made-{number}").touch()
        wait_until(lambda: len(list(tmp_path.glob("made-*"))) == 4)  # four processes
        return os.getpid(), [fw.put(number)]

    @fw.remote(num_cpus=1)
    def serve(number: int) -> int:
        (tmp_path / f"served-{number}").touch()
        wait_until(lambda: len(list(tmp_path.glob("served-*"))) == 4)
        return os.getpid()

    made = fw.get([make.remote(number) for number in range(4)], timeout=30)
    group = placement_group([{"CPU": 4}])
    strategy = within(group)
    served = [serve.options(scheduling_strategy=strategy).remote(number) for number in range(4)]
    pids = fw.get(served, timeout=30)
    remove_placement_group(group)
    assert {pid for pid, _ in made} & set(pids), "none of them was used again"
    assert fw.get(where.options(num_cpus=4).remote(), timeout=20) is None  # all is given back
    assert [fw.get(refs[0], timeout=10) for _, refs in made] == [0, 1, 2, 3]


# ---- GPUs --------------------------------------------------------------------------------------------


def test_gpus_of_a_bundle_are_its_own() -> None:
    group = placement_group([{"CPU": 1, "GPU": 1}, {"CPU": 1, "GPU": 1}], strategy="STRICT_PACK")
    seen = []
    for index in range(2):
        in_bundle = facts.options(num_gpus=1, scheduling_strategy=within(group, index))
        first, second = (fw.get(in_bundle.remote(), timeout=20) for _ in range(2))
        assert first["gpus"] == second["gpus"]
        assert first["visible"] == str(first["gpus"][0])
        assert first["resources"] == {"CPU": 1.0, "GPU": 1.0}
        seen += first["gpus"]
    assert sorted(seen) == [0, 1]
    anywhere = facts.options(num_gpus=1, scheduling_strategy=within(group))
    assert fw.get(anywhere.remote(), timeout=20)["gpus"][0] in (0, 1)


def test_shares_of_a_gpu_in_a_bundle() -> None:
    taken = Actor.options(num_cpus=0, num_gpus=1).remote()
    (outside,) = fw.get(taken.facts.remote(), timeout=20)
    group = placement_group([{"GPU": 0.5}, {"GPU": 0.5}])
    actors = [
        Actor.options(num_cpus=0, num_gpus=0.25, scheduling_strategy=within(group)).remote() for _ in range(4)
    ]
    found = fw.get([actor.facts.remote() for actor in actors], timeout=30)
    assert found == [[1 - outside]] * 4
    late = Actor.options(num_cpus=0, num_gpus=0.25, scheduling_strategy=within(group)).remote()
    assert fw.wait([late.facts.remote()], timeout=0.3)[0] == []
    del actors
    assert fw.get(late.facts.remote(), timeout=20) == [1 - outside]
