"""How much goes wrong in a run, and how big its cluster is: drawn from the seed, so that a series of seeds
has runs in which nothing goes wrong, runs with one kind of fault, and storms."""

from __future__ import annotations

import dataclasses
import random
from typing import Final

from framework._sim.faults import Faults

#: occurrences per virtual second in a run that has this kind (of a program that takes some ten seconds)
_OFTEN: Final[dict[str, float]] = {
    "crash_worker": 0.6,
    "crash_node": 0.12,
    "power_cut": 0.08,
    "crash_head": 0.12,
    "partition": 0.25,
    "reset": 0.8,
    "delay": 0.08,
    "slow": 0.4,
    "stop": 0.25,
    "clock_jump": 0.2,
    "disk_full": 0.12,
    "disk_lost": 0.15,
    "add_node": 0.08,
}


@dataclasses.dataclass
class Weather:
    """What a run meets."""

    faults: Faults
    nodes: int
    scheduler: str  #: "walk" or "priorities"
    operations: int
    store_bytes: int


def draw(seed: int) -> Weather:
    """That of a seed."""
    rng = random.Random(f"weather {seed}")
    mood = rng.random()
    kinds = list(_OFTEN)
    if mood < 0.2:
        chosen: list[str] = []
    elif mood < 0.5:
        chosen = [rng.choice(kinds)]
    else:
        chosen = rng.sample(kinds, rng.randint(2, 5))
    rates = {kind: _OFTEN[kind] * rng.uniform(0.3, 1.5) for kind in chosen}
    return Weather(
        Faults(**rates, longest=rng.choice([1.0, 3.0, 8.0, 20.0])),
        rng.choice([1, 2, 3, 3, 4]),
        rng.choice(["walk", "walk", "priorities"]),
        rng.randint(8, 30),
        rng.choice([4 << 20, 16 << 20]),
    )
