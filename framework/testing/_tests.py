"""Simulated tests."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from framework._sim.faults import Faults
from framework.testing._explore import explore, scheduler_of
from framework.testing._simulate import simulate

#: The environment's variable that names the only seed to run: a replay.
SEED_VARIABLE: Final = "FRAMEWORK_SIM_SEED"


def simulated(
    *,
    seeds: int | Iterable[int] = 20,
    nodes: int | Sequence[Mapping[str, Any]] = 1,
    faults: Faults | str | None = None,
    scheduler: str | None = None,
    limit: float = 600.0,
    jobs: int | None = None,
    seconds: float = 60.0,
    must_reach: Iterable[str] = (),
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Make a test of a program: the function, or coroutine function, that is decorated, with whatever
    arguments the test gets.

    ::

        @testing.simulated(seeds=50, nodes=2, faults=testing.Faults(crash_worker=0.3))
        async def test_transfers():
            ...

    Needs no plugin and no fixture: the result is an ordinary function. The parameters are those of `explore`.
    With ``FRAMEWORK_SIM_SEED=7`` in the environment only seed 7 is run, in the test's own process: for
    debuggers, and with the original exception.
    """
    listed = seeds if isinstance(seeds, int) else list(seeds)
    names = [must_reach] if isinstance(must_reach, str) else list(must_reach)

    def decorate(function: Callable[..., Any]) -> Callable[..., None]:
        if hasattr(function, "remote"):
            raise TypeError("simulated() decorates the test, which calls .remote(): not a remote function")

        def test(*args: Any, **kwargs: Any) -> None:
            program = functools.partial(function, *args, **kwargs)
            functools.update_wrapper(program, function)
            only = os.environ.get(SEED_VARIABLE)
            if only is not None:
                try:
                    seed = int(only)
                except ValueError:
                    raise ValueError(f"{SEED_VARIABLE} is the number of a seed, not {only!r}") from None
                simulate(
                    program,
                    seed=seed,
                    nodes=nodes,
                    faults=faults,
                    scheduler=scheduler_of(scheduler, seed),
                    limit=limit,
                )
                return
            explore(
                program,
                seeds=listed,
                nodes=nodes,
                faults=faults,
                scheduler=scheduler,
                limit=limit,
                jobs=jobs,
                seconds=seconds,
                must_reach=names,
                replay=lambda seed: f"{SEED_VARIABLE}={seed} python -m pytest -k {function.__name__}",
            )

        functools.update_wrapper(test, function)
        # (pytest-asyncio looks at marks that others have put on coroutine functions.)
        return test

    return decorate
