"""Supervision trees over real actors."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import framework as fw
from framework.actor import exit_actor
from framework.exceptions import ActorDiedError, SupervisionError
from framework.util.supervision import Child, Supervisor
from support.leaks import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.asyncio]

LIMIT = 20


@fw.remote(num_cpus=0)
class Node:
    """Writes down its starts and its end."""

    def __init__(self, name: str, log: str) -> None:
        self.name, self.log = name, log
        self.value = 0
        self._write("+")

    def _write(self, what: str) -> None:
        with open(self.log, "a") as file:
            file.write(f"{what}{self.name} ")

    def pid(self) -> int:
        return os.getpid()

    def inc(self) -> int:
        self.value += 1
        return self.value

    def leave(self) -> None:
        exit_actor()

    def __framework_save__(self) -> int:
        return self.value

    def __framework_restore__(self, value: int) -> None:
        self.value = value

    def __framework_shutdown__(self) -> None:
        self._write("-")


@fw.remote(num_cpus=0)
class Broken:
    def __init__(self, gate: str) -> None:
        if os.path.exists(gate):
            raise LookupError("no luck")

    def pid(self) -> int:
        return os.getpid()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.touch()
    return path


def children(log: Path, names: str, **options: Any) -> list[Child]:
    return [Child(name, Node, args=(name, str(log)), **options) for name in names]


async def crash(actor: Any) -> None:
    os.kill(await actor.pid.remote(), signal.SIGKILL)


async def until(log: Path, text: str) -> None:
    def seen() -> bool:
        return log.read_text().strip() == text

    await asyncio.to_thread(wait_until, seen, 10, f"the log {text!r} (it is {log.read_text()!r})")


async def test_started_in_order_and_stopped_in_reverse(session: object, log: Path) -> None:
    async with Supervisor(children(log, "abc")) as tree:
        assert await tree["b"].inc.remote() == 1
        assert list(tree.children) == ["a", "b", "c"]
        assert "b" in tree and "z" not in tree
        assert log.read_text() == "+a +b +c "
    assert log.read_text() == "+a +b +c -c -b -a "


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("one_for_one", "+a +b +c +b"),
        ("one_for_all", "+a +b +c -c -a +a +b +c"),
        ("rest_for_one", "+a +b +c -c +b +c"),
    ],
)
async def test_strategies(session: object, log: Path, strategy: Any, expected: str) -> None:
    async with Supervisor(children(log, "abc"), strategy=strategy) as tree:
        await crash(tree["b"])
        await until(log, expected)
        pids = [await tree[name].pid.remote() for name in "abc"]
        assert len(set(pids)) == 3


async def test_handles_stay_valid_and_the_state_survives(session: object, log: Path) -> None:
    what = Node.options(save_every=1, max_task_retries=-1)
    async with Supervisor([Child("a", what, args=("a", str(log)))], max_restarts=10) as tree:
        handle = tree["a"]
        for expected in range(1, 5):
            assert await handle.inc.remote() == expected
            await crash(handle)
        assert await handle.inc.remote() == 5
        assert tree.children == {"a": 4}


@pytest.mark.parametrize(
    ("restart", "ending", "again"),
    [
        ("permanent", "leave", True),
        ("permanent", "crash", True),
        ("transient", "leave", False),
        ("transient", "crash", True),
        ("temporary", "crash", False),
    ],
)
async def test_kinds_of_children(session: object, log: Path, restart: Any, ending: str, again: bool) -> None:
    async with Supervisor(children(log, "ab", restart=restart)) as tree:
        if ending == "leave":
            with pytest.raises(ActorDiedError):
                await tree["a"].leave.remote()
        else:
            await crash(tree["a"])
        end = "-a " if ending == "leave" else ""
        if again:
            await until(log, f"+a +b {end}+a")
        else:
            await asyncio.to_thread(wait_until, lambda: "a" not in tree, 10, "the child to be forgotten")
            assert log.read_text() == f"+a +b {end}"
        assert await tree["b"].inc.remote() == 1


async def test_kill_is_one_more_death(session: object, log: Path) -> None:
    async with Supervisor(children(log, "a")) as tree:
        fw.kill(tree["a"])
        await until(log, "+a +a")


async def test_too_many_restarts_end_the_body(session: object, log: Path) -> None:
    with pytest.raises(SupervisionError, match="3 restarts within 60 s") as caught:
        async with Supervisor(children(log, "ab"), max_restarts=2, period=60.0) as tree:
            while True:
                await crash(tree["b"])
                await asyncio.sleep(0.01)
    assert isinstance(caught.value.__cause__, ActorDiedError)
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0
    await asyncio.sleep(0)
    assert log.read_text() == "+a +b +b +b -a "


async def test_a_tree_escalates(session: object, log: Path) -> None:
    """The inner supervisor gives up; the outer one starts it, and what comes after it, again."""
    inner = Supervisor(children(log, "xy"), max_restarts=0, name="inner")
    outer = [*children(log, "a"), Child("inner", inner), *children(log, "b")]
    async with Supervisor(outer, strategy="rest_for_one", name="outer") as tree:
        assert tree["inner"] is inner
        await crash(tree["inner"]["x"])
        await until(log, "+a +x +y +b -b -y +x +y +b")
        assert await tree["inner"]["y"].inc.remote() == 1
    assert log.read_text().endswith("-b -y -x -a ")


async def test_the_failure_of_the_whole_tree(session: object, log: Path) -> None:
    inner = Supervisor(children(log, "x"), max_restarts=0, name="inner")
    with pytest.raises(SupervisionError, match="outer has given up"):
        async with Supervisor([Child("inner", inner)], max_restarts=0, name="outer") as tree:
            await crash(tree["inner"]["x"])
            await asyncio.sleep(60)


async def test_a_constructor_that_fails_at_the_start(session: object, log: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    with pytest.raises(ActorDiedError, match="no luck"):
        async with Supervisor([*children(log, "a"), Child("b", Broken, args=(str(gate),))]):
            raise AssertionError("it must not open")
    assert log.read_text() == "+a -a "


async def test_a_constructor_that_fails_in_a_restart_is_tried_again(session: object, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    child = Child("b", Broken, args=(str(gate),))
    async with Supervisor([child], max_restarts=50, period=60.0) as tree:
        pid = await tree["b"].pid.remote()
        gate.touch()
        os.kill(pid, signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda: tree.children["b"] >= 3, 10, "three attempts")
        gate.unlink()
        assert await tree["b"].pid.remote() != pid


async def test_children_come_and_go(session: object, log: Path) -> None:
    async with Supervisor(children(log, "a")) as tree:
        handle = await tree.start_child(children(log, "b")[0])
        assert await handle.inc.remote() == 1
        with pytest.raises(ValueError, match="has a child 'b' already"):
            await tree.start_child(children(log, "b")[0])
        await tree.stop_child("a")
        assert list(tree.children) == ["b"]
        with pytest.raises(KeyError, match="no child 'a'"):
            tree["a"]
        with pytest.raises(ActorDiedError):
            await (await tree.start_child(children(log, "c")[0])).leave.remote()
    with pytest.raises(RuntimeError, match="is not open"):
        await tree.stop_child("b")


async def test_a_child_that_does_not_stop_is_killed(session: object) -> None:
    @fw.remote(num_cpus=0)
    class Stubborn:
        def pid(self) -> int:
            return os.getpid()

        def __framework_shutdown__(self) -> None:
            signal.pause()

    async with Supervisor([Child("s", Stubborn, stop_timeout=0.1)]) as tree:
        pid = await tree["s"].pid.remote()

    def gone() -> bool:
        return not Path(f"/proc/{pid}").exists()

    await asyncio.to_thread(wait_until, gone, 10, "the end of the process")


async def test_an_error_in_the_body_closes_the_tree(session: object, log: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with Supervisor(children(log, "ab")):
            raise ZeroDivisionError
    assert log.read_text() == "+a +b -b -a "


async def test_a_cancelled_body_closes_the_tree(session: object, log: Path) -> None:
    entered = asyncio.Event()

    async def body() -> None:
        async with Supervisor(children(log, "ab")):
            entered.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(body())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log.read_text() == "+a +b -b -a "


async def test_it_can_be_opened_again_but_not_twice(session: object, log: Path) -> None:
    tree = Supervisor(children(log, "a"))
    async with tree:
        with pytest.raises(RuntimeError, match="is open already"):
            async with tree:
                pass
    async with tree:
        assert await tree["a"].inc.remote() == 1
    assert log.read_text() == "+a -a +a -a "


async def test_a_supervisor_inside_of_an_actor(session: object, log: Path) -> None:
    """Trees across processes: the inner tree ends with the actor that holds it, and is made again."""

    @fw.remote(num_cpus=0)
    class Holder:
        def __init__(self, log: str) -> None:
            self.tree = Supervisor([Child("x", Node, args=("x", log))])

        async def open(self) -> int:
            await self.tree.__aenter__()
            return int(await self.tree["x"].pid.remote())

        async def pid(self) -> int:
            return os.getpid()

        async def __framework_shutdown__(self) -> None:
            await self.tree.__aexit__(None, None, None)

    async with Supervisor([Child("holder", Holder.options(max_task_retries=1), args=(str(log),))]) as tree:
        await tree["holder"].open.remote()
        await crash(tree["holder"])
        await until(log, "+x -x")
        await tree["holder"].open.remote()
        await until(log, "+x -x +x")
    await until(log, "+x -x +x -x")


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Supervisor(strategy="all_for_one"), "strategy is one of"),
        (lambda: Supervisor(max_restarts=-1), "max_restarts"),
        (lambda: Supervisor(period=0), "period"),
        (lambda: Supervisor([Node]), "children are Child"),
        (lambda: Supervisor([Child("a", Node), Child("a", Node)]), "two children"),
        (lambda: Child("", Node), "name of a child"),
        (lambda: Child("a", Node, restart="always"), "restart is one of"),
        (lambda: Child("a", Node, stop_timeout=-1), "stop_timeout"),
        (lambda: Child("a", print), "an actor class or a Supervisor"),
        (lambda: Child("a", Node.options(max_restarts=1)), "max_restarts=1"),
        (lambda: Child("a", Node.options(lifetime="detached", name="n")), "detached"),
    ],
)
async def test_bad_input(make: Any, error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        make()
