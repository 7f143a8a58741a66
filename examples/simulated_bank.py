"""A bank whose books are wrong now and then, and how a simulation finds out.

A transfer takes money out of one account and puts it into another: two calls. An audit in between misses
some. In reality that may happen once in a week; in a simulated cluster it happens under some seeds, and under
these always. The second bank moves money in one call, and is right under all seeds.

    python examples/simulated_bank.py
    python examples/simulated_bank.py --seeds 200
    python examples/simulated_bank.py --replay 7
"""

from __future__ import annotations

import argparse
import asyncio
import random

import framework as fw
from framework import testing

TOTAL = 200


@fw.remote
class Account:
    """Money of one customer."""

    def __init__(self, balance: int) -> None:
        self.balance = balance

    def add(self, amount: int) -> None:
        self.balance += amount

    def read(self) -> int:
        return self.balance


@fw.remote
def transfer(source: fw.actor.ActorHandle, target: fw.actor.ActorHandle, amount: int) -> None:
    """Two calls, and the money is nowhere in between."""
    fw.get(source.add.remote(-amount))
    testing.sometimes("money is on its way")
    fw.get(target.add.remote(amount))


async def careless_bank() -> None:
    """The program: transfers, and an audit at some time."""
    ann, bob = Account.remote(TOTAL // 2), Account.remote(TOTAL // 2)
    await asyncio.gather(ann.read.remote(), bob.read.remote())  # both are there
    transfers = [transfer.remote(ann, bob, 30), transfer.remote(bob, ann, 10)]
    await asyncio.sleep(random.uniform(0.0, 0.003))  # (of the simulation: the seed decides)
    found = sum(await asyncio.gather(ann.read.remote(), bob.read.remote()))
    testing.note("audit", found=found)
    await asyncio.gather(*transfers)
    assert found == TOTAL, f"the audit found {found} instead of {TOTAL}"


@fw.remote
class Bank:
    """All accounts in one actor."""

    def __init__(self, **accounts: int) -> None:
        self.accounts = accounts

    def transfer(self, source: str, target: str, amount: int) -> None:
        self.accounts[source] -= amount
        self.accounts[target] += amount

    def total(self) -> int:
        return sum(self.accounts.values())


async def careful_bank() -> None:
    """The same, where each transfer is one call."""
    bank = Bank.remote(ann=TOTAL // 2, bob=TOTAL // 2)
    await bank.total.remote()
    transfers = [bank.transfer.remote("ann", "bob", 30), bank.transfer.remote("bob", "ann", 10)]
    await asyncio.sleep(random.uniform(0.0, 0.003))
    found = await bank.total.remote()
    await asyncio.gather(*transfers)
    assert found == TOTAL, f"the audit found {found} instead of {TOTAL}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=60, help="how many are tried (60)")
    parser.add_argument(
        "--replay", type=int, metavar="SEED", help="run the careless bank under this seed only"
    )
    options = parser.parse_args()
    if options.replay is not None:
        report = testing.simulate(careless_bank, seed=options.replay, nodes=2, trace="bank.trace")
        print(f"{report}; what happened is in bank.trace")
        return
    try:
        found = testing.explore(
            careless_bank, seeds=options.seeds, nodes=2, must_reach=["money is on its way"]
        )
        print(f"careless bank: {found.seeds} seeds, and no audit came at the wrong moment")
    except testing.SimulationFailed as error:
        failure = error.failures[0]
        print(f"careless bank: under seed {failure.seed} {failure.error}")
        print(f"  again: python examples/simulated_bank.py --replay {failure.seed}")
    slow = testing.Faults(
        slow=100.0, delay=0.2
    )  # (per virtual second, and all this takes a hundredth of one)
    found = testing.explore(careful_bank, seeds=options.seeds, nodes=2, faults=slow)
    print(f"careful bank: right under all of {found.seeds} seeds, which met {found.faults}")


if __name__ == "__main__":
    main()
