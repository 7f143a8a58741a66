"""Strategies are values: checked when made, shown, pickled, and accepted as options."""

from __future__ import annotations

import pickle

import pytest

from framework._base.options import ActorOptions, TaskOptions
from framework.util.scheduling_strategies import NodeAffinitySchedulingStrategy

NODE = "ab" * 28


def test_facts_survive_pickling() -> None:
    copy = pickle.loads(pickle.dumps(NodeAffinitySchedulingStrategy(NODE, soft=True)))
    assert (copy.node_id, copy.soft) == (NODE, True)
    assert repr(copy) == f"NodeAffinitySchedulingStrategy(node_id={NODE!r}, soft=True)"


@pytest.mark.parametrize("node_id", ["", None, 3, b"ab", "ab", "zz" * 28, "ab" * 29])
def test_a_node_is_named_by_text(node_id: object) -> None:
    with pytest.raises(ValueError, match="node_id is the hexadecimal id of a node"):
        NodeAffinitySchedulingStrategy(node_id, soft=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [TaskOptions, ActorOptions])
def test_options_take_it_as_an_object_only(kind: type[TaskOptions] | type[ActorOptions]) -> None:
    strategy = NodeAffinitySchedulingStrategy(NODE, soft=False)
    assert kind.parse({"scheduling_strategy": strategy}).scheduling_strategy is strategy
    with pytest.raises(TypeError, match="scheduling_strategy"):
        kind.parse({"scheduling_strategy": NodeAffinitySchedulingStrategy})
