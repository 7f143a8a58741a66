"""What is named by numbers lives as long as somebody may use it, and those who know of it hear of its end."""

from __future__ import annotations

import gc
from typing import Any, cast

from framework._base import limits
from framework._net.connection import Connection
from framework._runtime.catalogue import Catalogue
from framework._runtime.peers import PeerState
from framework._state.tasks import Function, Template
from framework._wire import messages as m


class Peer:
    """A connection that keeps what it is given."""

    def __init__(self) -> None:
        self.state: Any = PeerState("unix:peer")
        self.frames: list[tuple[Any, ...]] = []

    def pack(self, frame: tuple[Any, ...]) -> tuple[Any, ...]:
        return frame

    def buffer(self, frame: tuple[Any, ...]) -> None:
        self.frames.append(frame)

    def cast(self, *frame: Any) -> None:
        self.frames.append(frame)

    def taken(self) -> list[tuple[Any, ...]]:
        frames, self.frames = self.frames, []
        return frames


class Bench:
    def __init__(self) -> None:
        self.catalogue = Catalogue()
        self.peers = [Peer(), Peer()]
        self.node = Peer()
        self.node.state = {}

    def function(self, number: int, size: int = 1, refs: list[Any] | None = None) -> Function:
        return self.catalogue.function(number.to_bytes(16, "big"), b"p" * size, refs or [])

    def template(self, function: Function | None, cpus: int = 1) -> Template:
        key = self.catalogue.key({"CPU": cpus * 10_000}, None, None)
        return self.catalogue.template("f", 1, function, {}, None, key)

    def prepare(self, template: Template, *peers: Peer) -> None:
        for peer in peers:
            self.catalogue.prepare(cast(Connection, peer), template)

    def tell(self) -> None:
        gc.collect()
        self.catalogue.tell_ended(cast(Connection, self.node), cast("list[Connection]", self.peers))

    def others(self) -> None:
        """So many other functions that the first ones are not the latest any more."""
        for number in range(limits.FUNCTIONS_KEPT):
            self.function(1_000 + number)


def test_a_template_that_nobody_has_is_forgotten_by_those_who_know_it() -> None:
    bench = Bench()
    function = bench.function(1)
    template = bench.template(function)
    bench.prepare(template, bench.peers[0])
    assert [frame[0] for frame in bench.peers[0].taken()] == [m.FUNCTION, m.TEMPLATE]
    tid = template.tid
    bench.tell()
    assert bench.peers[0].taken() == []
    del template
    bench.tell()
    assert bench.peers[0].taken() == [(m.FORGET, [tid], [])]  # the function is one of the latest
    assert bench.peers[1].taken() == []
    assert bench.peers[0].state.templates == set()


def test_functions_that_came_last_stay_and_others_end_with_their_templates() -> None:
    bench = Bench()
    captured = object()
    template = bench.template(bench.function(1, refs=[captured]))
    bench.prepare(template, *bench.peers)
    tid = template.tid
    bench.others()
    bench.tell()
    assert template.function is not None and template.function.refs == [captured]
    bench.peers[0].taken()
    del template
    bench.tell()
    assert bench.peers[0].taken() == [(m.FORGET, [tid], [(1).to_bytes(16, "big")])]
    assert bench.peers[0].state.functions == set()


def test_a_function_that_is_defined_again_meanwhile_stays() -> None:
    bench = Bench()
    template = bench.template(bench.function(1))
    bench.prepare(template, bench.peers[0])
    bench.others()
    tid = template.tid
    del template
    gc.collect()
    again = bench.template(bench.function(1))
    bench.peers[0].taken()
    bench.tell()
    assert bench.peers[0].taken() == [(m.FORGET, [tid], [])]
    bench.prepare(again, bench.peers[0])
    assert [frame[0] for frame in bench.peers[0].taken()] == [m.TEMPLATE]


def test_what_was_forgotten_is_sent_again() -> None:
    bench = Bench()
    template = bench.template(bench.function(1))
    bench.prepare(template, bench.peers[0])
    bench.others()
    del template
    bench.tell()
    bench.peers[0].taken()
    bench.prepare(bench.template(bench.function(1)), bench.peers[0])
    assert [frame[0] for frame in bench.peers[0].taken()] == [m.FUNCTION, m.TEMPLATE]


def test_large_functions_are_kept_up_to_a_bound() -> None:
    bench = Bench()
    for number in range(4):
        bench.function(number, limits.FUNCTIONS_KEPT_BYTES // 3 + 1)
    gc.collect()
    assert len(bench.catalogue._functions) == 2
    bench.function(9, 2 * limits.FUNCTIONS_KEPT_BYTES)
    gc.collect()
    assert len(bench.catalogue._functions) == 1


def test_a_key_that_nobody_has_is_forgotten_by_the_node_that_knows_it() -> None:
    bench = Bench()
    template, same, other = bench.template(None), bench.template(None), bench.template(None, cpus=2)
    assert template.key is same.key and template.key is not other.key
    first, second = template.key.key_id, other.key.key_id
    bench.node.state[first] = True
    del template, other
    bench.tell()
    assert bench.node.taken() == []
    assert second not in bench.catalogue.keys_by_id
    del same
    bench.tell()
    assert bench.node.taken() == [(m.LEASE_FORGET, [first])]
    assert bench.node.state == {}
    assert bench.template(None).key.key_id not in (first, second)


def test_a_key_that_is_found_again_in_its_last_moment_stays() -> None:
    bench = Bench()
    template = bench.template(None)
    key = template.key.key_id
    bench.node.state[key] = True
    bench.catalogue.keys_ended.append(key)  # as `__del__` does, before its weak references are cleared
    bench.tell()
    assert bench.node.taken() == []
    assert bench.node.state == {key: True}
    assert bench.template(None).key is template.key
