"""Suspects are sent alone, and not for ever."""

from __future__ import annotations

import pytest

from framework._base.limits import SUSPECT_DEATHS, SUSPECT_PATIENCE, SUSPECT_PATIENCE_MIN
from framework._state.suspects import Suspects


def test_those_that_are_not_suspected_go_together() -> None:
    suspects = Suspects()
    suspects.sent(1, 0, 0.0)
    assert suspects.hold(SUSPECT_DEATHS - 1, 0.0) == 0
    assert not suspects.spares(1, 0.0) and not suspects.spares(2, 0.0)


def test_a_suspect_waits_until_it_is_alone_and_the_next_until_it_is_over() -> None:
    suspects = Suspects()
    suspects.sent(1, 0, 0.0)
    assert suspects.hold(SUSPECT_DEATHS, 5.0) == SUSPECT_PATIENCE
    suspects.ended(1)
    suspects.sent(2, SUSPECT_DEATHS, 5.0)
    assert suspects.hold(0, 6.0) > 0
    suspects.ended(2)
    assert suspects.hold(0, 6.0) == 0


def test_the_wait_ends_and_gets_shorter() -> None:
    suspects = Suspects()
    now, waits = 0.0, []
    suspects.sent(100, SUSPECT_DEATHS, now)
    for unique in range(1, 20):
        left = suspects.hold(SUSPECT_DEATHS, now)
        waits.append(left)
        assert suspects.hold(SUSPECT_DEATHS, now + left / 2) > 0
        now += left
        assert suspects.hold(SUSPECT_DEATHS, now + 1e-9) == 0
        suspects.sent(unique, SUSPECT_DEATHS, now)
    assert waits[0] == SUSPECT_PATIENCE and waits[:4] == sorted(waits[:4], reverse=True)
    assert waits[-1] == pytest.approx(SUSPECT_PATIENCE_MIN)
    suspects.restarted()
    suspects.sent(50, SUSPECT_DEATHS, now)
    assert suspects.hold(0, now) == SUSPECT_PATIENCE, "of a new process nothing is known"


def test_who_is_struck() -> None:
    """Those that have been alone for long enough without ending the process are spared when the next one has
    just been sent."""
    suspects = Suspects()
    suspects.sent(1, SUSPECT_DEATHS, 0.0)
    suspects.sent(2, SUSPECT_DEATHS, 1.0)
    assert suspects.spares(1, 1.1) and not suspects.spares(2, 1.1)
    assert not suspects.spares(1, 1.0 + SUSPECT_PATIENCE), "it may have been any of them"
