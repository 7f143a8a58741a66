"""The catalogue: every frame is a message of it, or a ProtocolError with a text of bounded size."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework._wire import messages as m
from framework.exceptions import ProtocolError
from support.hostile import content

SAMPLES: dict[type, Any] = {
    int: 3,
    str: "s",
    bytes: b"b",
    dict: {"k": 1},
    list: [1],
    bool: True,
    float: 0.5,
    type(None): None,
    object: object(),
}
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.binary(max_size=5) | st.floats(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


def sample(allowed: m.Types) -> Any:
    return SAMPLES[allowed[0] if isinstance(allowed, tuple) else allowed]


def test_opcodes_and_names_are_unique() -> None:
    opcodes = {name: value for name, value in vars(m).items() if name.isupper() and isinstance(value, int)}
    assert len(set(opcodes.values())) == len(opcodes)
    assert set(opcodes.values()) == set(m.CATALOGUE)
    for name, opcode in opcodes.items():
        assert m.CATALOGUE[opcode].name == name.lower()


@pytest.mark.parametrize("opcode", m.CATALOGUE)
def test_every_message_is_accepted_with_its_types_only(opcode: int) -> None:
    message = m.CATALOGUE[opcode]
    asked = m.SHAPES.get(opcode, {})
    frame: list[Any] = [opcode]
    for name, allowed in zip(message.fields, message.types, strict=True):
        frame.append(content(opcode, name) if name in asked else sample(allowed))
    assert m.check(frame) == opcode
    with pytest.raises(ProtocolError, match=message.name):
        m.check([*frame, 1])
    if message.types:
        with pytest.raises(ProtocolError, match=message.name):
            m.check(frame[:-1])
    if opcode in m.HOT:
        return
    for index, allowed in enumerate(message.types):
        if allowed is object:
            continue
        wrong = list(frame)
        wrong[index + 1] = 1j
        with pytest.raises(ProtocolError, match=repr(message.fields[index])):
            m.check(wrong)


@given(anything)
def test_anything_else_is_a_protocol_error(frame: Any) -> None:
    try:
        opcode = m.check(frame)
    except ProtocolError as error:
        assert len(str(error)) < 200
    else:
        assert m.CATALOGUE[opcode].arity == len(frame)


@given(st.sampled_from(sorted(m.CATALOGUE)), st.lists(anything, max_size=8))
def test_fields_of_any_kind(opcode: int, fields: list[Any]) -> None:
    try:
        assert m.check([opcode, *fields]) == opcode
    except ProtocolError as error:
        assert len(str(error)) < 200


@pytest.mark.parametrize(("opcode", "field"), [(o, f) for o, fields in m.SHAPES.items() for f in fields])
def test_what_services_rely_on_inside_of_fields(opcode: int, field: str) -> None:
    message = m.CATALOGUE[opcode]
    frame: list[Any] = [opcode]
    for name, allowed in zip(message.fields, message.types, strict=True):
        frame.append(content(opcode, name) if name in m.SHAPES[opcode] else sample(allowed))
    place = 1 + message.fields.index(field)
    fine = frame[place]
    wrong: list[Any] = [[{}], ["x", {}]] if isinstance(fine, list) else [{1: 1}, {b"x": "y"}]
    if isinstance(fine, dict):
        for key in ("resources", "node_id", "job", "scope", "CPU", "A"):
            if key in fine:
                wrong.append({**fine, key: [{}]})
    for value in wrong:
        frame[place] = value
        with pytest.raises(ProtocolError, match=rf"{message.name}: the content of field '{field}'"):
            m.check(frame)
    frame[place] = fine
    assert m.check(frame) == opcode


@pytest.mark.parametrize(
    "strategy",
    [
        None,
        [],
        ["SPREAD"],
        ["node", "ab", True],
        ["labels", {"zone": ["in", ["a"]]}, {}],
        ["group", b"g", -1, False],
    ],
)
def test_strategies(strategy: list[Any] | None) -> None:
    frame = [m.LEASE_KEY, 1, {"CPU": 1}, None, strategy, True, 0, b""]
    assert m.check(frame) == m.LEASE_KEY
    for wrong in (
        [1],
        ["node"],
        ["node", 1, True],
        ["labels", {"zone": []}, {}],
        ["labels", {1: ["in", []]}, {}],
    ):
        frame[4] = wrong
        with pytest.raises(ProtocolError):
            m.check(frame)


def test_a_deep_value_is_no_trouble() -> None:
    """Nor a large one: what is said of it is short, and costs nothing."""
    deep: list[Any] = []
    for _ in range(1010):
        deep = [deep]
    for value in (deep, "x" * 10**7, {1: deep}):
        with pytest.raises(ProtocolError) as caught:
            m.check([m.HELLO, value, "k", b"", 1, "", {}])
        assert len(str(caught.value)) < 100


def test_calls_are_those_with_a_number() -> None:
    for message in m.CATALOGUE.values():
        assert message.is_call == (message.fields[:1] == ("rid",))
        assert "rid" not in message.fields[1:]


def test_booleans_are_no_opcodes() -> None:
    with pytest.raises(ProtocolError):
        m.check([True, 1, "k", b"", 1, "", {}])
