"""How a process knows that it is a fork."""

from __future__ import annotations

import os

from framework._runtime.current import fork_count


def test_a_fork_has_another_number_than_its_parent_and_than_its_own_fork() -> None:
    before = fork_count()
    pid = os.fork()
    if pid == 0:
        mine = fork_count()
        inner = os.fork()
        if inner == 0:
            os._exit(0 if fork_count() not in (before, mine) else 1)
        ended = os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1])
        os._exit(ended if mine != before else 2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert fork_count() == before
