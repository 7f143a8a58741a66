"""What a process tells a head that was away, of the actors that it has ended."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from framework._base import limits
from framework._runtime.actors import Actors
from framework._state.actor_records import OWNER_ENDED
from framework._state.objects import Entry
from framework._wire import messages as m
from framework.exceptions import ActorDiedError, LocalNodeDiedError

ACTOR, OTHER = b"a" * 16, b"o" * 16


@pytest.fixture
def actors() -> Actors:
    return Actors(mock.MagicMock())


def told(actors: Actors) -> list[Any]:
    head = mock.Mock()
    actors.head_returned(head)
    return [tuple(call.args) for call in head.method_calls]


def test_it_hears_again_who_was_killed(actors: Actors) -> None:
    """It may have said that he is dead, lost that with its disk, and started him again."""
    actors.kill(ACTOR, True, "why")
    assert told(actors) == [(m.ACTOR_KILL, ACTOR, True, "why")]
    actors.kill(OTHER, False, "that is a crash")
    assert len(told(actors)) == 1


def test_it_hears_again_whose_last_handle_had_gone(actors: Actors) -> None:
    client = actors.client(ACTOR, "A")
    client.known = True
    actors.end(client, False, "out of scope")
    end = (m.ACTOR_END, ACTOR, 0, False, "out of scope")
    assert told(actors) == [(m.ACTOR_WATCH, ACTOR), end]
    actors._dead(client, {"text": "it has ended"})
    assert told(actors) == [end]


def test_not_all_of_them_for_ever(actors: Actors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ACTORS_ENDED_KEPT", 3)
    for number in range(5):
        actors.kill(bytes([number]) * 16, True, "why")
    assert [frame[1][0] for frame in told(actors)] == [2, 3, 4]


def test_an_actor_that_ended_with_us_tells_that_we_were_given_up(actors: Actors) -> None:
    """Whoever hears that his own actor ended because its owner has ended is not of this cluster any more."""
    ours, theirs = actors.client(ACTOR, "Mine"), actors.client(OTHER, "Theirs")
    ours.creation = Entry(b"c" * 16)
    for client in (ours, theirs):
        actors._dead(client, {"text": OWNER_ENDED})
    assert isinstance(ours.death(), LocalNodeDiedError)
    assert "Mine" in str(ours.death())
    assert isinstance(theirs.death(), ActorDiedError)
