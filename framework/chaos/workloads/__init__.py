"""The workloads, by name."""

from __future__ import annotations

from framework.chaos.workload import Workload
from framework.chaos.workloads.actors import Actors
from framework.chaos.workloads.generators import Generators
from framework.chaos.workloads.groups import Groups
from framework.chaos.workloads.nested import Nested
from framework.chaos.workloads.shuffle import Shuffle
from framework.chaos.workloads.tasks import Tasks

CATALOGUE: dict[str, type[Workload]] = {
    kind.name: kind for kind in (Tasks, Nested, Shuffle, Actors, Generators, Groups)
}
