"""What a node holds for placement groups."""

from __future__ import annotations

import pytest

from framework._base import resources as res
from framework._base.resources import UNIT, in_group
from framework._state.bundles import Bundles
from framework._state.node import NodeState
from framework._state.pool import Worker

G = b"g" * 18
H = b"h" * 18
HEX = G.hex()


class User:
    def __init__(self, lease_id: int, units: dict[str, int]) -> None:
        self.lease_id = lease_id
        self.units = units


class Ledger:
    def __init__(self, **amounts: int) -> None:
        self.total = {name: amount * UNIT for name, amount in amounts.items()}
        self.available = dict(self.total)
        self.gpus = res.IndexedResource(amounts.get("GPU", 0))
        self.bundles = Bundles(self.total, self.available, self.gpus)

    def use(self, lease_id: int, units: dict[str, int]) -> tuple[User, list[tuple[int, int]]]:
        assert res.fits(units, self.available)
        assert self.bundles.can_allocate(units)
        res.subtract(self.available, units)
        user = User(lease_id, units)
        return user, self.bundles.take(user)

    def end(self, user: User, shares: list[tuple[int, int]]) -> None:
        res.add(self.available, user.units)
        self.bundles.release(user, shares)


def cpu(amount: int) -> dict[str, int]:
    return {"CPU": amount * UNIT}


def test_prepared_takes_and_committed_offers() -> None:
    node = Ledger(CPU=4)
    assert node.bundles.prepare(G, 1, [(0, cpu(1)), (2, cpu(2))]) is None
    assert node.available == cpu(1)
    assert node.total == cpu(4)
    assert node.bundles.commit(G, 1, [0, 2]) is None
    assert node.total == {
        "CPU": 4 * UNIT,
        f"CPU_group_0_{HEX}": UNIT,
        f"CPU_group_2_{HEX}": 2 * UNIT,
        f"CPU_group_{HEX}": 3 * UNIT,
        f"bundle_group_0_{HEX}": 1000 * UNIT,
        f"bundle_group_2_{HEX}": 1000 * UNIT,
        f"bundle_group_{HEX}": 2000 * UNIT,
    }
    assert res.fits(in_group(cpu(2), HEX, 2), node.available)
    assert not res.fits(in_group(cpu(2), HEX, 0), node.available)
    assert not res.fits(in_group(cpu(1), HEX, 1), node.available)
    assert res.fits(in_group({}, HEX, 0), node.available)
    assert node.bundles.held() == [[G, 0, 1, True], [G, 2, 1, True]]
    assert node.bundles.give_back(G) == []
    assert node.total == node.available == cpu(4)


def test_all_of_a_request_or_nothing() -> None:
    node = Ledger(CPU=2, GPU=1)
    text = node.bundles.prepare(G, 1, [(0, {"CPU": UNIT, "GPU": UNIT}), (1, {"GPU": UNIT})])
    assert text is not None and "bundle 1" in text
    assert node.available == node.total
    assert node.gpus.available() == UNIT
    assert node.bundles.held() == []


def test_everything_may_come_twice() -> None:
    node = Ledger(CPU=2)
    for _ in range(2):
        assert node.bundles.prepare(G, 1, [(0, cpu(1))]) is None
    for _ in range(2):
        assert node.bundles.commit(G, 1, [0]) is None
    assert node.bundles.prepare(G, 1, [(0, cpu(1))]) is None
    assert node.available["CPU"] == UNIT
    assert node.total[f"CPU_group_{HEX}"] == UNIT
    for _ in range(2):
        assert node.bundles.give_back(G) == []
    assert node.available == node.total == cpu(2)


def test_only_what_an_attempt_has_brought_goes_with_it() -> None:
    node = Ledger(CPU=3)
    node.bundles.prepare(G, 1, [(0, cpu(1))])
    node.bundles.commit(G, 1, [0])
    node.bundles.prepare(G, 2, [(1, cpu(1))])
    assert node.bundles.give_back(G, 2) == []
    assert node.bundles.held() == [[G, 0, 1, True]]
    assert node.bundles.give_back(G, 7) == []
    assert node.bundles.prepare(G, 3, [(0, cpu(1))]) is not None  # it is still there, from before
    assert node.bundles.commit(G, 2, [1]) is not None


def test_what_is_in_use_comes_back_when_its_users_have_ended() -> None:
    node = Ledger(CPU=3)
    node.bundles.prepare(G, 1, [(0, cpu(1)), (1, cpu(1))])
    node.bundles.commit(G, 1, [0, 1])
    one, other = node.use(1, in_group(cpu(1), HEX, 0)), node.use(2, in_group(cpu(1), HEX, -1))
    assert {user.lease_id for user in node.bundles.give_back(G)} == {1, 2}
    assert node.total == cpu(3)
    assert node.available["CPU"] == UNIT
    assert not res.fits(in_group({}, HEX, -1), node.available)
    node.end(*one)
    assert node.available["CPU"] == UNIT
    node.end(*other)
    assert node.available == cpu(3)


def test_gpus_in_a_bundle_are_those_of_the_bundle() -> None:
    node = Ledger(GPU=3)
    _, (first,) = node.use(1, {"GPU": UNIT})
    node.bundles.prepare(G, 1, [(0, {"GPU": UNIT}), (1, {"GPU": UNIT // 2})])
    node.bundles.commit(G, 1, [0, 1])
    assert node.gpus.available() == UNIT // 2
    _, (whole,) = node.use(2, in_group({"GPU": UNIT}, HEX, 0))
    user, (half,) = node.use(3, in_group({"GPU": UNIT // 2}, HEX, 1))
    assert sorted({first[0], whole[0], half[0]}) == [0, 1, 2]
    assert not node.bundles.can_allocate(in_group({"GPU": UNIT // 4}, HEX, -1))
    node.end(user, [half])
    assert node.bundles.can_allocate(in_group({"GPU": UNIT // 4}, HEX, -1))
    # A share of one device is not a share of two.
    assert not node.bundles.can_allocate(in_group({"GPU": UNIT}, HEX, -1))


def test_shares_in_a_bundle_are_given_out_in_full() -> None:
    node = Ledger(GPU=1)
    node.bundles.prepare(G, 1, [(0, {"GPU": UNIT // 2})])
    node.bundles.prepare(H, 1, [(0, {"GPU": UNIT // 2})])
    for group in (G, H):
        node.bundles.commit(group, 1, [0])
        quarters = [
            node.use(lease, in_group({"GPU": UNIT // 4}, group.hex(), 0))
            for lease in (1 + 2 * group[0], 2 + 2 * group[0])
        ]
        assert [shares for _, shares in quarters] == [[(0, UNIT // 4)]] * 2
        assert not node.bundles.can_allocate(in_group({"GPU": UNIT // 4}, group.hex(), 0))


def test_a_worker_that_waits_lends_the_cpus_of_its_group() -> None:
    state = NodeState({"CPU": 2 * UNIT}, "00")
    state.bundles.prepare(G, 1, [(0, cpu(1))])
    state.bundles.commit(G, 1, [0])
    units = in_group(cpu(1), HEX, 0)
    for number in (1, 2):
        state.worker_up(Worker(bytes([number]) * 28, number, "", (), None), 0.0)
    state.describe_key("owner", 1, units, (), b"job", ["group", G, 0, False])
    ((_, _, _, first),) = [c for c in state.demand("owner", 1, 2, 0) if c[0] == "grant"]
    assert state.available[f"CPU_group_{HEX}"] == 0
    assert state.available["CPU"] == UNIT
    ((_, _, _, second),) = [c for c in state.blocked(first.worker.worker_id) if c[0] == "grant"]
    state.unblocked(first.worker.worker_id)
    assert state.available[f"CPU_group_{HEX}"] == -UNIT
    assert state.available["CPU"] == UNIT
    state.lease_returned(second.lease_id, "owner", 1.0)
    state.lease_returned(first.lease_id, "owner", 1.0)
    assert state.available[f"CPU_group_{HEX}"] == UNIT
    assert state.bundles.give_back(G) == []
    assert state.available == state.total == cpu(2)


def test_what_waits_for_a_worker_can_be_revoked() -> None:
    state = NodeState({"CPU": UNIT}, "00")
    state.bundles.prepare(G, 1, [(0, cpu(1))])
    state.bundles.commit(G, 1, [0])
    state.describe_key("owner", 1, in_group(cpu(1), HEX, -1), (), b"job", ["group", G, -1, False])
    assert [command[0] for command in state.demand("owner", 1, 1, 0)] == ["start"]
    (user,) = state.bundles.give_back(G)
    (command,) = state.revoke(state.leases[user.lease_id], "it was removed")
    assert command[0] == "unserved"
    assert state.leases == {}
    assert state.available == state.total == cpu(1)


@pytest.mark.parametrize("index", [-1, 0, 12])
def test_names(index: int) -> None:
    units = {"CPU": 1, "x_group_y": 2, "memory": 3}
    named = in_group(units, HEX, index)
    assert res.out_of_group(named) == units
    assert res.group_of(named) == (HEX, index)
    assert res.without_groups({**units, **named}) == units
    assert set(res.lendable(named).values()) == {1}
    assert res.group_of(units) is None
    assert res.out_of_group(units) == units
