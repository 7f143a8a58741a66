"""The owner table: counts of references here and elsewhere, under any order of events."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from framework._state.objects import PENDING, Entry, ObjectTable

IDS = [bytes([number]) * 28 for number in range(4)]
PEERS = ["p", "q", "r"]


def test_an_entry_goes_when_its_last_reference_does() -> None:
    table = ObjectTable()
    entry = table.add(Entry(IDS[0]))
    entry.local += 1
    assert table.dropped([entry]) == []
    assert table.dropped([entry]) == [entry]
    assert table.free(entry)
    assert table.get(IDS[0]) is None


def test_two_drops_in_one_batch_name_the_entry_once() -> None:
    table = ObjectTable()
    entry = table.add(Entry(IDS[0]))
    entry.local += 1
    assert table.dropped([entry, entry]) == [entry]


def test_a_reference_that_comes_back_within_the_batch_keeps_the_entry() -> None:
    table = ObjectTable()
    entry = table.add(Entry(IDS[0]))
    assert table.dropped([entry]) == [entry]
    entry.local += 1
    assert not table.free(entry)
    assert table.get(IDS[0]) is entry


def test_a_borrower_keeps_it() -> None:
    table = ObjectTable()
    entry = table.add(Entry(IDS[0]))
    assert table.borrow(IDS[0], "p")
    assert table.borrow(IDS[0], "p")  # twice is as once
    table.dropped([entry])
    assert not table.free(entry)
    assert table.unborrow(IDS[0], "q") is None
    assert table.unborrow(IDS[0], "p") is entry
    assert table.free(entry)


def test_only_an_owner_lends() -> None:
    table = ObjectTable()
    table.add(Entry(IDS[0], "unix:owner"))
    assert not table.borrow(IDS[0], "p")
    assert not table.borrow(IDS[1], "p")


def test_freeing_lets_go_of_what_the_value_contains() -> None:
    table = ObjectTable()
    entry = table.add(Entry(IDS[0]))
    entry.contained = [object()]
    table.dropped([entry])
    assert table.free(entry)
    assert entry.contained is None


def test_freeing_an_old_entry_leaves_its_successor() -> None:
    table = ObjectTable()
    old = table.add(Entry(IDS[0], "unix:owner"))
    table.dropped([old])
    new = table.add(Entry(IDS[0], "unix:owner"))
    assert table.free(old)
    assert table.get(IDS[0]) is new


def test_a_borrower_that_is_lost_loses_all_its_counts() -> None:
    table = ObjectTable()
    kept, free, shared = (table.add(Entry(i)) for i in IDS[:3])
    for entry in (kept, free, shared):
        table.borrow(entry.id, "p")
    table.borrow(shared.id, "q")
    table.dropped([free, shared])
    assert table.borrower_lost("p") == [free]
    assert not kept.borrowers and shared.borrowers == {"q"}


def test_of_owner() -> None:
    table = ObjectTable()
    mine, theirs = table.add(Entry(IDS[0])), table.add(Entry(IDS[1], "unix:owner"))
    assert table.of_owner("unix:owner") == [theirs]
    assert mine.state == PENDING and not mine.done
    assert "pending local=1" in repr(mine)


class Counting(RuleBasedStateMachine):
    """A table beside the plainest model of it: references here are counted, borrowers are sets."""

    def __init__(self) -> None:
        super().__init__()
        self.table = ObjectTable()
        self.local: dict[bytes, int] = {}
        self.borrowers: dict[bytes, set[str]] = {}
        self.entries: dict[bytes, Entry] = {}

    def free(self, entries: list[Entry]) -> None:
        for entry in entries:
            self.table.free(entry)

    def gone(self, object_id: bytes) -> bool:
        return not self.local.get(object_id) and not self.borrowers.get(object_id)

    @rule(object_id=st.sampled_from(IDS))
    def make_or_refer(self, object_id: bytes) -> None:
        if self.gone(object_id):
            self.entries[object_id] = self.table.add(Entry(object_id))
            self.borrowers[object_id] = set()
        else:
            self.entries[object_id].local += 1
        self.local[object_id] = self.local.get(object_id, 0) + 1

    @rule(batch=st.lists(st.sampled_from(IDS), max_size=6))
    def drop(self, batch: list[bytes]) -> None:
        entries = []
        for object_id in batch:
            if self.local.get(object_id):
                self.local[object_id] -= 1
                entries.append(self.entries[object_id])
        self.free(self.table.dropped(entries))

    @rule(object_id=st.sampled_from(IDS), peer=st.sampled_from(PEERS))
    def borrow(self, object_id: bytes, peer: str) -> None:
        known = not self.gone(object_id)
        assert self.table.borrow(object_id, peer) == known
        if known:
            self.borrowers[object_id].add(peer)

    @rule(object_id=st.sampled_from(IDS), peer=st.sampled_from(PEERS))
    def unborrow(self, object_id: bytes, peer: str) -> None:
        self.borrowers.get(object_id, set()).discard(peer)
        entry = self.table.unborrow(object_id, peer)
        self.free([entry] if entry is not None else [])

    @rule(peer=st.sampled_from(PEERS))
    def lose(self, peer: str) -> None:
        for peers in self.borrowers.values():
            peers.discard(peer)
        self.free(self.table.borrower_lost(peer))

    @invariant()
    def same(self) -> None:
        alive = {object_id for object_id in self.entries if not self.gone(object_id)}
        assert set(self.table.entries) == alive
        for object_id in alive:
            entry = self.table.entries[object_id]
            assert entry.local == self.local[object_id]
            assert (entry.borrowers or set()) == self.borrowers[object_id]


Counting.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestCounting = pytest.mark.slow(Counting.TestCase)


class Lost(RuleBasedStateMachine):
    """An owner and a borrower, between whom connections break: what is on its way then is lost, on both
    sides, and the borrower says all that it borrows before anything else. In the end both know the same, and
    at no time is something freed that the borrower has and the owner has heard of."""

    def __init__(self) -> None:
        super().__init__()
        self.owner = ObjectTable()
        for object_id in IDS:
            self.owner.add(Entry(object_id))
        self.kept: set[bytes] = set()  #: what the borrower has
        self.known: set[bytes] = set()  #: of that, what the owner has answered to
        self.sent: list[tuple[str, list[bytes]]] = []
        self.answers: list[list[bytes]] = []

    @rule(object_id=st.sampled_from(IDS))
    def borrow(self, object_id: bytes) -> None:
        if object_id not in self.kept:
            self.kept.add(object_id)
            self.sent.append(("borrow", [object_id]))

    @rule(object_id=st.sampled_from(IDS))
    def drop(self, object_id: bytes) -> None:
        if object_id in self.kept:
            self.kept.discard(object_id)
            self.known.discard(object_id)
            self.sent.append(("unborrow", [object_id]))

    @rule()
    def arrives(self) -> None:
        if self.sent:
            word, ids = self.sent.pop(0)
            if word == "borrow":
                assert all(self.owner.borrow(object_id, "b") for object_id in ids)
                self.answers.append(ids)
            elif word == "again":
                unknown, _ = self.owner.borrowed_again(ids, "b")
                assert not unknown
                self.answers.append(ids)
            else:
                for object_id in ids:
                    self.owner.unborrow(object_id, "b")

    @rule()
    def answered(self) -> None:
        if self.answers:
            self.known |= self.kept.intersection(self.answers.pop(0))

    @rule()
    def breaks(self) -> None:
        self.answers.clear()
        self.sent = [("again", sorted(self.kept))]

    def counted(self) -> set[bytes]:
        return {entry.id for entry in self.owner.entries.values() if entry.borrowers}

    @invariant()
    def nothing_known_is_lost(self) -> None:
        pending = {object_id for word, ids in self.sent if word != "unborrow" for object_id in ids}
        assert self.known - pending <= self.counted()
        assert self.kept <= self.counted() | pending

    def teardown(self) -> None:
        while self.sent:
            self.arrives()
        assert self.counted() == self.kept


TestLost = Lost.TestCase
TestLost.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
