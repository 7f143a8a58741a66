"""Objects whose only copy is lost are made again by the tasks that made them; those that cannot be say why.

The copies are lost by deleting the files that a full store has spilled them to.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import framework as fw
from framework._base import limits
from framework._runtime.current import current
from framework.exceptions import (
    ObjectLostError,
    ObjectReconstructionFailedError,
    ObjectReconstructionFailedLineageEvictedError,
    ObjectReconstructionFailedMaxAttemptsExceededError,
    OwnerDiedError,
)
from framework.util.state import list_objects, store_stats
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

LIMIT = 30
CAPACITY = 32 * 2**20
SIZE = 2**19  # of float64: 4 MiB


def get(what: Any) -> Any:
    return fw.get(what, timeout=LIMIT)


@pytest.fixture(scope="module")
def small_store(session_root: Path) -> Iterator[Any]:
    with fw.init(num_cpus=2, log_to_driver=False, object_store_memory=CAPACITY) as context:
        yield context


@pytest.fixture(autouse=True)
def nothing_remains(small_store: Any) -> Iterator[None]:
    yield
    gc.collect()
    try:
        wait_until(lambda: store_stats()["objects"] == 0, 8)
    except AssertionError:
        raise AssertionError(f"left: {store_stats()} {list_objects()}") from None


def lose_everything() -> int:
    """All objects that nobody reads are lost; how many. (An array as large as the store drives all out.)"""
    gc.collect()
    everything = fw.put(np.zeros((CAPACITY - 2**16) // 8))
    files = list(Path(current().session_dir, "spill").iterdir())
    assert {
        r["store_state"] for r in list_objects() if r["stored"] and r["object_id"] != everything.hex()
    } <= {"on disk"}
    for file in files:
        file.unlink(missing_ok=True)
    object_id = everything.hex()
    del everything
    wait_until(lambda: object_id not in {row["object_id"] for row in list_objects()})
    return len(files)


def count(path: Path, what: str) -> None:
    with (path / what).open("a") as file:
        file.write("x")


def runs(path: Path, what: str) -> int:
    return (path / what).stat().st_size if (path / what).exists() else 0


@fw.remote
def make(path: Path, name: str, number: float) -> Any:
    count(path, name)
    return np.full(SIZE, number)


@fw.remote
def plus(path: Path, name: str, a: Any, b: Any = 0) -> Any:
    count(path, name)
    return a + b


@fw.remote
def first_of(a: Any) -> float:
    return float(a[0])


@fw.remote(num_returns=3)
def several(path: Path) -> Any:
    count(path, "several")
    return np.full(SIZE, 1.0), 2, np.full(SIZE, 3.0)


@fw.remote(num_cpus=0)
class Keeper:
    def __init__(self) -> None:
        self.refs: list[Any] = []

    def keep(self, refs: list[Any]) -> None:
        self.refs = refs

    def read(self) -> list[float]:
        return [float(fw.get(ref, timeout=LIMIT)[0]) for ref in self.refs]

    def use(self, array: Any) -> float:
        return float(array[0])

    def task(self) -> float:
        return float(fw.get(first_of.remote(self.refs[0]), timeout=LIMIT))

    def make(self, path: Path) -> list[Any]:
        return [make.remote(path, "actor's", 7), fw.put(np.full(SIZE, 8.0))]


def test_get_and_await_and_arguments(small_store: Any, tmp_path: Path) -> None:
    refs = [make.remote(tmp_path, str(number), number) for number in range(5)]
    fw.wait(refs, num_returns=5, timeout=LIMIT)
    keeper = Keeper.remote()
    get(keeper.keep.remote([refs[4]]))
    assert lose_everything() >= 5

    async def waiting() -> float:
        return float((await refs[1])[0])

    assert get(refs[0])[0] == 0
    assert asyncio.run(waiting()) == 1
    assert get(first_of.remote(refs[2])) == 2
    assert get(keeper.use.remote(refs[3])) == 3
    assert get(keeper.read.remote()) == [4], "a borrower asks the owner"
    assert [runs(tmp_path, str(number)) for number in range(5)] == [2] * 5


def test_a_borrower_passes_on_what_is_lost(small_store: Any, tmp_path: Path) -> None:
    keeper = Keeper.remote()
    ref = make.remote(tmp_path, "a", 5)
    get(keeper.keep.remote([ref]))
    assert get(keeper.task.remote()) == 5
    lose_everything()
    assert get(keeper.task.remote()) == 5
    assert runs(tmp_path, "a") == 2


def test_through_chains_and_diamonds_whose_middle_is_freed(small_store: Any, tmp_path: Path) -> None:
    top = make.remote(tmp_path, "top", 1)
    left = plus.remote(tmp_path, "left", top, 10)
    right = plus.remote(tmp_path, "right", top, b=100)
    end = plus.remote(tmp_path, "end", left, b=right)
    after = plus.remote(tmp_path, "after", end)
    assert get(after)[0] == 112
    del top, left, right, end
    gc.collect()
    wait_until(lambda: store_stats()["objects"] == 1)
    lose_everything()
    assert get(after)[0] == 112
    assert {name: runs(tmp_path, name) for name in ("top", "left", "right", "end", "after")} == {
        "top": 2,
        "left": 2,
        "right": 2,
        "end": 2,
        "after": 2,
    }
    gc.collect()
    wait_until(lambda: store_stats()["objects"] == 1, what="the end of what was made again on the way")


def test_a_long_chain(small_store: Any, tmp_path: Path) -> None:
    ref = make.remote(tmp_path, "0", 0)
    length = 400
    for _ in range(length):
        ref = plus.remote(tmp_path, "step", ref, 1)
    assert get(ref)[0] == length
    gc.collect()
    wait_until(lambda: store_stats()["objects"] == 1)
    lose_everything()
    assert get(ref)[0] == length
    assert runs(tmp_path, "step") == 2 * length


def test_one_of_several_returns(small_store: Any, tmp_path: Path) -> None:
    a, b, c = several.remote(tmp_path)
    assert get(b) == 2
    assert get(c)[0] == 3
    end = plus.remote(tmp_path, "end", c, 1)
    assert get(end)[0] == 4
    del c
    gc.collect()
    wait_until(lambda: store_stats()["objects"] == 2)
    lose_everything()
    assert get(a)[0] == 1
    assert runs(tmp_path, "several") == 2
    gc.collect()
    wait_until(lambda: store_stats()["objects"] == 2, what="the end of the sibling that nobody wants")
    assert get(end)[0] == 4, "whose argument, freed since, is made again"
    assert get(b) == 2


def test_many_that_need_the_same(small_store: Any, tmp_path: Path) -> None:
    ref = make.remote(tmp_path, "a", 6)
    fw.wait([ref], timeout=LIMIT)
    lose_everything()
    results: list[float] = []
    threads = [threading.Thread(target=lambda: results.append(float(get(ref)[0]))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert get([first_of.remote(ref) for _ in range(10)]) == [6.0] * 10
    for thread in threads:
        thread.join(LIMIT)
    assert results == [6.0] * 4
    assert runs(tmp_path, "a") == 2, "made again once for all"


def test_arrays_that_were_filled_in_place(small_store: Any, tmp_path: Path) -> None:
    @fw.remote
    def fill(path: Path) -> Any:
        count(path, "fill")
        array = fw.empty(SIZE)
        array[:] = 9
        return array

    ref = fill.remote(tmp_path)
    end = plus.remote(tmp_path, "end", ref, 1)
    assert get(end)[0] == 10
    lose_everything()
    assert get(first_of.remote(ref)) == 9
    del ref
    gc.collect()
    wait_until(lambda: store_stats()["objects"] == 1)
    lose_everything()
    assert get(end)[0] == 10
    assert (runs(tmp_path, "fill"), runs(tmp_path, "end")) == (3, 2)


def test_a_second_loss_and_the_end_of_all_attempts(small_store: Any, tmp_path: Path) -> None:
    ref = make.options(max_retries=2).remote(tmp_path, "a", 3)
    for attempt in range(1, 4):
        assert get(ref)[0] == 3
        assert runs(tmp_path, "a") == attempt
        gc.collect()
        lose_everything()
    with pytest.raises(
        ObjectReconstructionFailedMaxAttemptsExceededError, match=r"make\(\).*max_retries=2"
    ) as e:
        get(ref)
    assert ref.hex() in str(e.value)
    with pytest.raises(ObjectReconstructionFailedMaxAttemptsExceededError):
        get(first_of.remote(ref))


def test_what_cannot_be_made_again(small_store: Any, tmp_path: Path) -> None:
    keeper = Keeper.remote()

    @fw.remote
    class Maker:
        def make(self) -> Any:
            return np.full(SIZE, 1.0)

    put = fw.put(np.full(SIZE, 1.0))
    once = make.options(max_retries=0).remote(tmp_path, "once", 1)
    method = Maker.remote().make.remote()
    made_of_put = plus.remote(tmp_path, "plus", put, 1)
    fw.wait([once, method, made_of_put], num_returns=3, timeout=LIMIT)
    get(keeper.keep.remote([put]))
    lose_everything()
    with pytest.raises(ObjectLostError, match=r"made by put\(\)"):
        get(put)
    with pytest.raises(ObjectLostError, match=r"made by put\(\)"):
        get(keeper.read.remote())
    with pytest.raises(ObjectLostError, match=r"made by put\(\)"):
        get(first_of.remote(put))
    with pytest.raises(ObjectLostError, match="max_retries=0"):
        get(once)
    with pytest.raises(ObjectLostError, match="method of an actor"):
        get(first_of.remote(method))
    with pytest.raises(ObjectReconstructionFailedError, match=r"argument of plus\(\).*made by put\(\)"):
        get(made_of_put)


def test_a_task_that_fails_the_second_time(small_store: Any, tmp_path: Path) -> None:
    @fw.remote
    def only_once(path: Path) -> Any:
        count(path, "n")
        if runs(path, "n") > 1:
            raise ValueError("not again")
        return np.zeros(SIZE)

    ref = only_once.remote(tmp_path)
    fw.wait([ref], timeout=LIMIT)
    lose_everything()
    with pytest.raises(ValueError, match="not again"):
        get(ref)


def test_an_owner_that_is_a_worker_makes_its_objects_again(small_store: Any, tmp_path: Path) -> None:
    keeper = Keeper.remote()
    task, put = get(keeper.make.remote(tmp_path))
    assert get(task)[0] == 7
    lose_everything()
    assert get(task)[0] == 7
    with pytest.raises(ObjectLostError, match=r"made by put\(\)"):
        get(put)
    lose_everything()
    fw.kill(keeper)
    with pytest.raises(OwnerDiedError):
        get(task)
    assert runs(tmp_path, "actor's") == 2


def test_lineage_is_bounded(small_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lineage = current().lineage
    old = make.remote(tmp_path, "old", 1)
    fw.wait([old], timeout=LIMIT)
    monkeypatch.setattr(limits, "LINEAGE_BYTES", 2_000)
    new = [make.remote(tmp_path, f"new{number}", number) for number in range(10)]
    fw.wait(new, num_returns=10, timeout=LIMIT)
    assert 0 < lineage.bytes <= 2_000
    lose_everything()
    with pytest.raises(ObjectReconstructionFailedLineageEvictedError, match="bound memory"):
        get(old)
    assert get(new[-1])[0] == 9
    del new, old
    gc.collect()
    wait_until(lambda: store_stats()["objects"] == 0)
    fw.wait([make.remote(tmp_path, "last", 1)], timeout=LIMIT)
    assert lineage.bytes <= 2_000


def test_a_cancelled_task_whose_argument_is_lost(small_store: Any, tmp_path: Path) -> None:
    @fw.remote
    def slow_again(path: Path) -> Any:
        count(path, "n")
        if runs(path, "n") > 1:
            wait_until((path / "go").exists, LIMIT)
        return np.full(SIZE, 4.0)

    ref = slow_again.remote(tmp_path)
    fw.wait([ref], timeout=LIMIT)
    lose_everything()
    user = first_of.remote(ref)
    wait_until(lambda: runs(tmp_path, "n") == 2, LIMIT)
    fw.cancel(user)
    with pytest.raises(fw.exceptions.TaskCancelledError):
        get(user)
    (tmp_path / "go").touch()
    assert get(ref)[0] == 4
    assert os.path.exists(current().session_dir)


# ---- items of generators -----------------------------------------------------------------------------


@fw.remote(generator_window=4)
def items(path: Path, name: str, number: int) -> Iterator[Any]:
    """Every third one is small."""
    count(path, name)
    for index in range(number):
        yield index if index % 3 == 2 else np.full(SIZE, float(index))


def first(value: Any) -> float:
    return float(value if isinstance(value, int) else value[0])


def test_items_are_made_again_all_at_once(small_store: Any, tmp_path: Path) -> None:
    refs = list(items.remote(tmp_path, "n", 6))
    assert refs[-1].hex() == refs[0].hex()[:48] + "07000000"
    del refs[4]
    gc.collect()
    wait_until(lambda: store_stats()["objects"] == 3)
    assert lose_everything() == 3
    assert [first(get(ref)) for ref in refs] == [0, 1, 2, 3, 5]
    assert runs(tmp_path, "n") == 2
    assert store_stats()["objects"] == 3, "what nobody holds is not made again"


def test_items_of_a_generator_that_is_not_done(small_store: Any, tmp_path: Path) -> None:
    """It waits for its consumer, and its consumer for the item that it has made before."""
    generator = items.remote(tmp_path, "n", 30)
    refs = [next(generator) for _ in range(4)]
    fw.wait([generator], timeout=LIMIT)
    lose_everything()
    assert first(get(refs[1])) == 1
    assert get([first_of.remote(ref) for ref in (refs[0], refs[3])]) == [0, 3]
    assert runs(tmp_path, "n") == 2
    del refs
    assert [first(get(ref)) for ref in generator] == list(range(4, 30))
    assert runs(tmp_path, "n") == 2


def test_an_endless_generator(small_store: Any, tmp_path: Path) -> None:
    @fw.remote(generator_window=2)
    def endless(path: Path) -> Iterator[Any]:
        count(path, "endless")
        while True:
            yield np.full(SIZE, 1.0)

    generator = endless.remote(tmp_path)
    refs = [next(generator) for _ in range(3)]
    lose_everything()
    assert [get(ref)[0] for ref in refs] == [1, 1, 1]
    assert runs(tmp_path, "endless") == 2
    assert get(next(generator))[0] == 1


def test_borrowed_items_and_items_as_arguments_of_what_is_lost(small_store: Any, tmp_path: Path) -> None:
    keeper = Keeper.remote()
    refs = list(items.remote(tmp_path, "n", 2))
    end = plus.remote(tmp_path, "end", refs[1], 10)
    assert get(end)[0] == 11
    get(keeper.keep.remote([refs[0]]))
    lose_everything()
    assert get(keeper.read.remote()) == [0]
    del refs
    gc.collect()
    lose_everything()
    assert get(end)[0] == 11, "whose argument, freed since, is made again"
    assert (runs(tmp_path, "n"), runs(tmp_path, "end")) == (3, 2)


def test_items_that_hold_references(small_store: Any, tmp_path: Path) -> None:
    @fw.remote
    def pairs(path: Path) -> Iterator[Any]:
        count(path, "pairs")
        for number in range(3):
            yield [fw.put(number), np.full(SIZE, float(number))]

    refs = list(pairs.remote(tmp_path))
    lose_everything()
    for number, ref in enumerate(refs):
        inner, array = get(ref)
        assert (get(inner), array[0]) == (number, number)
        del inner, array
    assert runs(tmp_path, "pairs") == 2


def test_arrays_filled_in_place_and_async_and_dynamic_generators(small_store: Any, tmp_path: Path) -> None:
    @fw.remote
    async def in_place(path: Path) -> Any:
        count(path, "async")
        for number in range(3):
            array = fw.empty(SIZE)
            array[:] = number
            yield array

    refs = list(in_place.remote(tmp_path))
    more = list(get(items.options(num_returns="dynamic").remote(tmp_path, "dynamic", 2)))
    lose_everything()
    assert [get(ref)[0] for ref in refs] == [0, 1, 2]
    assert [get(ref)[0] for ref in more] == [0, 1]
    assert (runs(tmp_path, "async"), runs(tmp_path, "dynamic")) == (2, 2)
    del refs, more
    gc.collect()
    wait_until(lambda: store_stats()["objects"] == 0)


def test_items_that_cannot_be_made_again(small_store: Any, tmp_path: Path) -> None:
    @fw.remote
    def not_twice(path: Path, how: str) -> Iterator[Any]:
        count(path, how)
        again = runs(path, how) > 1
        yield np.zeros(SIZE)
        if again and how == "raise":
            raise ValueError("not again")
        if not again:
            yield np.ones(SIZE)

    never = list(items.options(max_retries=0).remote(tmp_path, "never", 1))
    twice = list(items.options(max_retries=1).remote(tmp_path, "twice", 2))
    fewer = list(not_twice.remote(tmp_path, "fewer"))
    raised = list(not_twice.remote(tmp_path, "raise"))
    lose_everything()
    with pytest.raises(ObjectLostError, match=r"items\(\), which is not run again \(max_retries=0\)"):
        get(never[0])
    assert first(get(twice[1])) == 1
    with pytest.raises(ObjectReconstructionFailedError, match=r"not_twice\(\) did not make this item"):
        get(fewer[1])
    assert get(fewer[0])[0] == 0
    with pytest.raises(ValueError, match="not again"):
        get(raised[1])
    lose_everything()
    with pytest.raises(
        ObjectReconstructionFailedMaxAttemptsExceededError, match=r"items\(\).*max_retries=1"
    ) as e:
        get(twice[0])
    assert twice[0].hex() in str(e.value)


def test_a_worker_that_dies_while_it_makes_items_again(small_store: Any, tmp_path: Path) -> None:
    @fw.remote(max_retries=5)
    def dies_once(path: Path) -> Iterator[Any]:
        count(path, "n")
        for number in range(3):
            if number == 1 and runs(path, "n") == 2:
                os._exit(1)
            yield np.full(SIZE, float(number))

    refs = list(dies_once.remote(tmp_path))
    lose_everything()
    assert [get(ref)[0] for ref in refs] == [0, 1, 2]
    assert runs(tmp_path, "n") == 3


# ---- actors ------------------------------------------------------------------------------------------


@fw.remote(num_cpus=0)
class Source:
    def __init__(self) -> None:
        self.calls = 0

    def array(self, other: Any = None) -> Any:
        self.calls += 1
        return np.full(SIZE, float(self.calls if other is None else other[0] + 100))

    def stream(self) -> Iterator[Any]:
        self.calls += 1
        for number in range(3):
            yield np.full(SIZE, float(10 * self.calls + number))


@fw.remote(num_cpus=0)
class AsyncSource:
    async def array(self, path: Path) -> Any:
        count(path, "async")
        return np.full(SIZE, 3.0)


def test_methods_that_may_be_called_again_are(small_store: Any, tmp_path: Path) -> None:
    actor = Source.options(max_task_retries=2).remote()
    other = AsyncSource.options(max_task_retries=-1).remote()
    ref, of_async = actor.array.remote(), other.array.remote(tmp_path)
    end = actor.array.remote(ref)
    assert get(end)[0] == 101
    fw.wait([of_async], timeout=LIMIT)
    assert lose_everything() == 3
    assert get(ref)[0] == 3, "the actor goes on from where it is"
    assert get(first_of.remote(of_async)) == 3
    assert get(end)[0] == 103
    assert runs(tmp_path, "async") == 2
    keeper = Keeper.remote()
    get(keeper.keep.remote([ref]))
    lose_everything()
    assert get(keeper.read.remote()) == [5]
    lose_everything()
    with pytest.raises(
        ObjectReconstructionFailedMaxAttemptsExceededError, match=r"Source.array\(\).*max_task_retries=2"
    ):
        get(ref)


def test_items_of_a_method(small_store: Any) -> None:
    actor = Source.options(max_task_retries=1).remote()
    refs = list(actor.stream.remote())
    lose_everything()
    assert [get(ref)[0] for ref in refs] == [20, 21, 22]


def test_calls_go_on_in_order_while_results_are_made_again(small_store: Any) -> None:
    actor = Source.options(max_task_retries=5).remote()
    refs = [actor.array.remote() for _ in range(4)]
    fw.wait(refs, num_returns=4, timeout=LIMIT)
    lose_everything()
    first_ones = [first_of.remote(ref) for ref in refs]
    later = [actor.array.options(max_task_retries=0).remote() for _ in range(20)]
    values = [get(ref)[0] for ref in later]
    assert values == sorted(values)
    assert sorted([*values, *get(first_ones)]) == list(range(5, 29))


def test_an_actor_that_cannot_do_it_again(small_store: Any) -> None:
    plain, dead = Source.remote(), Source.options(max_task_retries=-1).remote()
    refs = [plain.array.remote(), *plain.stream.remote(), dead.array.remote()]
    fw.wait(refs, num_returns=5, timeout=LIMIT)
    fw.kill(dead)
    lose_everything()
    for ref in refs[:-1]:
        with pytest.raises(
            ObjectLostError, match=r"Source.(array|stream)\(\), a method of an actor.*max_task_retries=0"
        ):
            get(ref)
    with pytest.raises(
        ObjectReconstructionFailedError, match=r"The actor whose method Source.array\(\) made it is dead"
    ) as e:
        get(refs[-1])
    assert "kill" in str(e.value)
