"""asyncio in the simulated system: several loops, in several threads and processes."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from framework._sim.loop import SimLoop
from support.simulated import simulated


def test_sleeping_and_timeouts() -> None:
    async def program() -> float:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        begun = loop.time()
        await asyncio.gather(*(asyncio.sleep(seconds) for seconds in (1, 3, 2)))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.sleep(100), timeout=1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.sleep(100)
        assert await asyncio.wait_for(asyncio.sleep(0.5, "done"), timeout=1) == "done"
        return loop.time() - begun

    with simulated() as machines:
        assert machines.result(lambda: asyncio.run(program())) == pytest.approx(5.5, abs=0.01)


def test_task_groups_and_cancellation() -> None:
    async def program() -> list[str]:
        seen: list[str] = []

        async def worker(name: str) -> None:
            try:
                await asyncio.sleep(10)
            finally:
                seen.append(name)

        async def fails() -> None:
            await asyncio.sleep(1)
            raise ValueError

        with pytest.raises(ExceptionGroup):
            async with asyncio.TaskGroup() as group:
                for number in range(5):
                    group.create_task(worker(str(number)))
                group.create_task(fails())
        return seen

    with simulated() as machines:
        assert sorted(machines.result(lambda: asyncio.run(program()))) == list("01234")


def test_to_thread_and_executors() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")

    def blocking(seconds: float) -> tuple[str, str]:
        time.sleep(seconds)
        return threading.current_thread().name.split("_")[0], variable.get()

    async def program() -> tuple[Any, ...]:
        variable.set("of the task")
        begun = time.monotonic()
        first, second = await asyncio.gather(asyncio.to_thread(blocking, 2), asyncio.to_thread(blocking, 1))
        third = await asyncio.get_running_loop().run_in_executor(None, blocking, 1)
        return first, second, third, round(time.monotonic() - begun, 2)

    with simulated() as machines:
        found = machines.result(lambda: asyncio.run(program()))
        assert found == (("asyncio", "of the task"), ("asyncio", "of the task"), ("asyncio", "none"), 3.0)
    assert variable.get() == "none"


def test_several_loops_in_several_threads() -> None:
    with simulated() as machines:

        def program() -> list[int]:
            seen: list[int] = []
            loops: list[asyncio.AbstractEventLoop] = []

            async def add(number: int) -> int:
                assert asyncio.get_running_loop() is loops[0]
                await asyncio.sleep(1)
                seen.append(number)
                return number

            def other() -> None:
                loop = asyncio.new_event_loop()
                asyncio.set_event_loop(loop)
                loops.append(loop)
                loop.run_forever()
                loop.close()

            thread = threading.Thread(target=other)
            thread.start()
            while not loops:
                time.sleep(0.01)
            with pytest.raises(RuntimeError):
                asyncio.get_running_loop()
            future = asyncio.run_coroutine_threadsafe(add(1), loops[0])
            assert future.result(5) == 1

            async def mine() -> int:
                assert asyncio.get_running_loop() is not loops[0]
                return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(add(2), loops[0]))

            assert asyncio.run(mine()) == 2
            loops[0].call_soon_threadsafe(loops[0].stop)
            thread.join()
            assert loops[0].is_closed()
            return seen

        assert machines.result(program) == [1, 2]


def test_the_current_loop_is_of_each_thread() -> None:
    with simulated() as machines:

        def program() -> None:
            loop = asyncio.new_event_loop()
            with pytest.raises(RuntimeError, match="no current event loop"):
                asyncio.get_event_loop_policy().get_event_loop()
            asyncio.set_event_loop(loop)
            assert asyncio.get_event_loop_policy().get_event_loop() is loop
            time.sleep(1)
            assert asyncio.get_event_loop_policy().get_event_loop() is loop
            loop.close()

        for number in range(3):
            machines.go(program, name=str(number))
        machines.run()


def test_streams_between_machines() -> None:
    async def serve() -> int:
        served = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while line := await reader.readline():
                writer.write(line.upper())
                await writer.drain()
            writer.close()
            served.set()

        server = await asyncio.start_server(answer, "10.0.0.1", 5000)
        await served.wait()
        server.close()
        return 1

    async def ask() -> list[bytes]:
        await asyncio.sleep(0.5)
        reader, writer = await asyncio.open_connection("10.0.0.1", 5000)
        found = []
        for number in range(5):
            writer.write(f"line {number}\n".encode())
            found.append(await reader.readline())
        writer.close()
        await writer.wait_closed()
        return found

    with simulated() as machines:
        machines.go(lambda: asyncio.run(serve()), name="server", host="10.0.0.1")
        machines.go(lambda: asyncio.run(ask()), name="client", host="10.0.0.2")
        machines.run()
        assert machines.results["client"] == [f"LINE {number}\n".encode() for number in range(5)]


def test_asynchronous_generators_are_closed_in_order() -> None:
    closed: list[int] = []

    async def numbers(name: int) -> AsyncIterator[int]:
        try:
            while True:
                yield name
                await asyncio.sleep(0.001)
        finally:
            closed.append(name)

    async def program() -> None:
        kept = [numbers(name) for name in range(30)]
        for generator in kept:
            await generator.__anext__()
        await asyncio.sleep(1)
        program.kept = kept  # type: ignore[attr-defined]

    with simulated() as machines:
        machines.go(lambda: asyncio.run(program()), name="program")
        machines.run()
    assert closed == list(range(30))


def test_signal_handlers_of_loops() -> None:
    with simulated() as machines:
        process = machines.process()

        async def waits() -> float:
            loop, got = asyncio.get_running_loop(), asyncio.Event()
            loop.add_signal_handler(signal.SIGTERM, got.set)
            await got.wait()
            assert loop.remove_signal_handler(signal.SIGTERM)
            assert not loop.remove_signal_handler(signal.SIGTERM)
            return loop.time()

        machines.go(lambda: asyncio.run(waits()), process, name="waits")
        machines.kernel.call_at(5.0, machines.system._kill, process.pid, signal.SIGTERM)
        machines.run()
        assert machines.results["waits"] == pytest.approx(5.0, abs=0.01)


async def test_a_simulation_inside_of_a_running_loop() -> None:
    """(The tests of others are coroutines: their loop is the running one again afterwards.)"""
    loop = asyncio.get_running_loop()
    with simulated() as machines:
        assert machines.result(lambda: asyncio.run(asyncio.sleep(1, "inside"))) == "inside"
    assert asyncio.get_running_loop() is loop
    assert await asyncio.sleep(0, "outside") == "outside"


def test_a_clock_jump_is_seen_by_the_loop() -> None:
    with simulated() as machines:
        process = machines.process()

        async def waits() -> tuple[float, float]:
            loop = asyncio.get_running_loop()
            await asyncio.sleep(10)
            return round(loop.time(), 2), round(machines.kernel.now, 2)

        machines.go(lambda: asyncio.run(waits()), process, name="waits")
        machines.kernel.call_at(2.0, machines.kernel.jump_clock, process, 5.0)
        machines.run()
        assert machines.results["waits"] == (10.0, 5.0)
