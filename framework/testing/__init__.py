"""Tests of your own program in a simulated cluster, of which a seed decides everything.

`simulate` runs a program of tasks and actors on a whole cluster in this one thread: in virtual time, with the
faults that you ask for, and with a schedule that follows from the seed. The same seed is the same run, every
time. `explore` tries many seeds, and says how to have the first failing one again. See docs/simulation.md.

::

    from framework import testing

    def program():
        account = Account.remote(100)
        fw.get([withdraw.remote(account, 60), withdraw.remote(account, 60)])
        assert fw.get(account.balance.remote()) >= 0

    testing.explore(program, seeds=200, nodes=2, faults=testing.Faults(crash_worker=0.5))

Takes the extra ``sim`` (``pip install 'framework[sim]'``).
"""

from __future__ import annotations

try:
    import greenlet as _greenlet
except ImportError as _error:
    raise ImportError(
        "framework.testing takes the package greenlet, which is not installed: pip install 'framework[sim]'"
    ) from _error

from framework._sim.faults import Faults
from framework._sim.kernel import SimulationError
from framework._sim.user_programs import Report
from framework.testing._explore import Exploration, Failure, SimulationFailed, explore
from framework.testing._inside import eventually, is_simulated, note, now, sometimes
from framework.testing._simulate import simulate
from framework.testing._tests import simulated

__all__ = [
    "simulate",
    "explore",
    "simulated",
    "Faults",
    "Report",
    "Exploration",
    "Failure",
    "SimulationError",
    "SimulationFailed",
    "eventually",
    "note",
    "sometimes",
    "now",
    "is_simulated",
]

assert _greenlet
