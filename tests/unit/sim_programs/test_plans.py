"""What random programs consist of: each operation follows from the seed and its number alone."""

from __future__ import annotations

import random

import pytest

from framework._sim.programs import KINDS, WEIGHTS, plan
from framework._sim.values import block, block_sum, mix, tree_tasks, tree_value


def test_a_seed_makes_one_program() -> None:
    assert plan(random.Random(5), 40) == plan(random.Random(5), 40)
    assert plan(random.Random(5), 40) != plan(random.Random(6), 40)


def test_a_shorter_program_is_the_beginning_of_a_longer_one() -> None:
    assert plan(random.Random(5), 60)[:20] == plan(random.Random(5), 20)


def test_leaving_kinds_out_changes_nothing_else() -> None:
    whole = plan(random.Random(7), 200)
    some = {kind: WEIGHTS[kind] for kind in sorted(WEIGHTS)[::2]}
    narrowed = plan(random.Random(7), 200, some)
    assert {step.kind for step in narrowed} <= set(some)
    for before, after in zip(whole, narrowed, strict=True):
        assert before.seed == after.seed and before.strand == after.strand and before.pause == after.pause
        if before.kind in some:
            assert before.kind == after.kind


def test_all_kinds_come() -> None:
    assert {step.kind for seed in range(4) for step in plan(random.Random(seed), 200)} == {
        kind for kind in KINDS if WEIGHTS[kind]
    }


def test_a_kind_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="no such operations"):
        plan(random.Random(1), 5, {"dance": 1.0})


def test_values_follow_from_arguments() -> None:
    assert mix(1, 2) != mix(2, 1)
    assert block_sum(block(3, 1000)) == block_sum(block(3, 1000)) != block_sum(block(4, 1000))
    tree = [1, "get", 0.0, 3, [[2, "await", 0.0, 0, []], [3, "get", 0.0, 2, [[4, "get", 0.0, 1, []]]]]]
    assert tree_tasks(tree) == [(1, 0, 3), (2, 1, 0), (3, 1, 2), (4, 3, 1)]
    assert tree_value(tree, 5) == mix(1, 5, mix(2, 6), mix(3, 6, mix(4, 7)))
