"""The catalogue: every frame is a message of it, or a ProtocolError with a text of bounded size."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework._wire import messages as m
from framework.exceptions import ProtocolError

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
    frame = [opcode, *(sample(allowed) for allowed in message.types)]
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


def test_calls_are_those_with_a_number() -> None:
    for message in m.CATALOGUE.values():
        assert message.is_call == (message.fields[:1] == ("rid",))
        assert "rid" not in message.fields[1:]


def test_booleans_are_no_opcodes() -> None:
    with pytest.raises(ProtocolError):
        m.check([True, 1, "k", b"", 1, "", {}])
