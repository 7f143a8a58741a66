"""`threading`, `queue` and `concurrent.futures` on simulated threads."""

from __future__ import annotations

import concurrent.futures
import contextvars
import queue
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from framework._sim.kernel import SimulationError
from framework._sim.threads import SimLock
from support.simulated import simulated

SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_lock_excludes(seed: int) -> None:
    with simulated(seed) as machines:

        def program() -> int:
            lock, total = threading.Lock(), 0

            def adds() -> None:
                nonlocal total
                for _ in range(20):
                    with lock:
                        seen = total
                        time.sleep(0.001)
                        total = seen + 1

            threads = [threading.Thread(target=adds) for _ in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not lock.locked() and not any(thread.is_alive() for thread in threads)
            return total

        assert machines.result(program) == 100


def test_lock_timeouts_and_errors() -> None:
    with simulated() as machines:

        def program() -> None:
            lock = threading.Lock()
            with pytest.raises(RuntimeError):
                lock.release()
            assert lock.acquire() and lock.locked()
            assert not lock.acquire(blocking=False) and not lock.acquire(timeout=0)
            begun = time.monotonic()
            assert not lock.acquire(timeout=2.5)
            assert time.monotonic() - begun == pytest.approx(2.5, abs=0.01)
            threading.Timer(1.0, lock.release).start()
            assert lock.acquire(timeout=2.5)
            assert time.monotonic() - begun == pytest.approx(3.5, abs=0.01)

        machines.go(program)
        machines.run()


def test_a_waiter_that_is_interrupted_passes_its_turn_on() -> None:
    for seed in range(10):
        with simulated(seed) as machines:
            process, seen = machines.process(), []
            lock = machines.result(threading.Lock)

            def holds(lock: SimLock = lock) -> None:
                with lock:
                    time.sleep(1)

            def gives_up(lock: SimLock = lock) -> None:
                def stop(number: int, frame: Any) -> None:
                    raise InterruptedError

                signal.signal(signal.SIGUSR1, stop)
                time.sleep(0.1)
                with pytest.raises(InterruptedError):
                    lock.acquire()

            def patient(lock: SimLock = lock, seen: list[str] = seen) -> None:
                time.sleep(0.2)
                with lock:
                    seen.append("had it")

            first = machines.go(gives_up, process)
            machines.go(holds, process)
            machines.go(patient, process)
            machines.run_for(0.9)
            machines.kernel.call_at(1.0 + 4e-6, machines.kernel.signal, first, signal.SIGUSR1)
            machines.run()
            assert seen == ["had it"]


def test_rlock_and_condition() -> None:
    with simulated() as machines:

        def program() -> list[Any]:
            condition = threading.Condition()
            items: list[Any] = []

            def consumer() -> None:
                with condition, condition:
                    assert condition.wait_for(lambda: len(items) >= 3, timeout=10)
                    items.append("seen")
                    condition.notify_all()

            threading.Thread(target=consumer).start()
            for number in range(3):
                time.sleep(1)
                with condition:
                    items.append(number)
                    condition.notify()
            with condition:
                assert condition.wait_for(lambda: "seen" in items, 10)
                assert not condition.wait(0.5)
            lock = threading.RLock()
            with lock, lock:
                other = threading.Thread(target=lambda: items.append(lock.acquire(timeout=0.1)))
                other.start()
                other.join()
            with pytest.raises(RuntimeError):
                lock.release()
            return items

        assert machines.result(program) == [0, 1, 2, "seen", False]


def test_semaphores_events_and_barriers() -> None:
    with simulated() as machines:

        def program() -> None:
            gate, inside, most = threading.BoundedSemaphore(2), 0, 0
            barrier, event = threading.Barrier(6), threading.Event()

            def enters() -> None:
                nonlocal inside, most
                assert event.wait()
                with gate:
                    inside += 1
                    most = max(most, inside)
                    time.sleep(1)
                    inside -= 1
                barrier.wait()

            for _ in range(5):
                threading.Thread(target=enters).start()
            assert not event.wait(1)
            event.set()
            barrier.wait()
            assert most == 2 and time.monotonic() == pytest.approx(4.0, abs=0.01)
            with pytest.raises(ValueError):
                gate.release()

        machines.go(program)
        machines.run()


def test_queues() -> None:
    with simulated() as machines:

        def program() -> list[int]:
            small: queue.Queue[int] = queue.Queue(maxsize=2)
            simple: queue.SimpleQueue[int] = queue.SimpleQueue()

            def produce() -> None:
                for number in range(10):
                    small.put(number)

            def pass_on() -> None:
                for _ in range(10):
                    simple.put(small.get())
                    small.task_done()

            for function in (produce, pass_on):
                threading.Thread(target=function, daemon=True).start()
            found = [simple.get(timeout=5) for _ in range(10)]
            small.join()
            begun = time.monotonic()
            with pytest.raises(queue.Empty):
                simple.get(timeout=1.5)
            with pytest.raises(queue.Empty):
                small.get(timeout=1.5)
            assert time.monotonic() - begun == pytest.approx(3.0, abs=0.01)
            return found

        assert machines.result(program) == list(range(10))


def test_thread_pools() -> None:
    with simulated() as machines:

        def work(seconds: float) -> float:
            time.sleep(seconds)
            if seconds > 4:
                raise ValueError(seconds)
            return seconds

        def program() -> list[float]:
            with ThreadPoolExecutor(max_workers=3, thread_name_prefix="pool") as pool:
                futures = [pool.submit(work, seconds) for seconds in (3, 1, 2, 5)]
                done, rest = concurrent.futures.wait(futures, timeout=2.5)
                assert {f.result() for f in done} == {1, 2} and len(rest) == 2
                with pytest.raises(concurrent.futures.TimeoutError):
                    futures[0].result(timeout=0.1)
                with pytest.raises(ValueError):
                    futures[3].result()
                assert list(pool.map(work, (0.2, 0.1))) == [0.2, 0.1]
            return [f.result() for f in futures[:3]]

        assert machines.result(program) == [3, 1, 2]


def test_threads_know_who_they_are() -> None:
    with simulated() as machines:

        def program() -> None:
            main = threading.current_thread()
            assert main is threading.main_thread() and not main.daemon
            assert main.ident == threading.get_ident() and main.is_alive()
            seen: list[Any] = []

            def inner() -> None:
                seen.append((threading.current_thread(), threading.get_ident(), threading.main_thread()))

            thread = threading.Thread(target=inner, name="inner", daemon=True)
            with pytest.raises(RuntimeError):
                thread.join()
            thread.start()
            thread.join(5)
            assert seen == [(thread, thread.ident, main)]
            assert thread.ident != main.ident and thread.native_id == thread.ident
            with pytest.raises(RuntimeError):
                main.join()
            slow = threading.Thread(target=time.sleep, args=(10,))
            slow.start()
            begun = time.monotonic()
            slow.join(timeout=1)
            assert slow.is_alive() and time.monotonic() - begun == pytest.approx(1, abs=0.01)

        machines.go(program)
        machines.run()


def test_an_exception_in_a_thread_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    with simulated() as machines:

        def fails() -> None:
            raise ValueError("in a thread")

        def program() -> None:
            thread = threading.Thread(target=fails, name="bad")
            thread.start()
            thread.join()
            quits = threading.Thread(target=exit)
            quits.start()
            quits.join()

        task = machines.go(program)
        machines.run()
        assert len(task.process.errors) == 1 and "ValueError: in a thread" in task.process.errors[0]
    assert "in a thread" in capsys.readouterr().err


def test_an_error_of_the_simulation_in_a_thread_ends_it() -> None:
    with simulated() as machines:

        def fails() -> None:
            raise SimulationError("in a thread")

        def program() -> None:
            threading.Thread(target=fails).start()
            time.sleep(1e9)

        machines.go(program)
        with pytest.raises(SimulationError, match="in a thread"):
            machines.run()


def test_context_variables_are_of_each_thread() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    with simulated() as machines:

        def program() -> list[str]:
            variable.set("main")
            seen: list[str] = []

            def inner(name: str) -> None:
                seen.append(variable.get())
                token = variable.set(name)
                time.sleep(1)  # others run
                assert variable.get() == name
                variable.reset(token)
                seen.append(variable.get())

            threads = [threading.Thread(target=inner, args=(f"thread {n}",)) for n in range(3)]
            copied = contextvars.copy_context()
            threads.append(threading.Thread(target=lambda: copied.run(lambda: seen.append(variable.get()))))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert variable.get() == "main"
            return sorted(seen)

        assert machines.result(program) == ["main"] + ["none"] * 6
    assert variable.get() == "none"


def test_a_lock_of_a_simulation_that_is_over() -> None:
    with simulated() as machines:
        lock = machines.result(threading.Lock)
    assert lock.acquire() and not lock.acquire(blocking=False)
    with pytest.raises(SimulationError, match="outside"):
        lock.acquire()
    lock.release()
