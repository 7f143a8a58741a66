"""Execution, comparison and limits, on made-up cells and without the framework."""

from __future__ import annotations

import threading

import pytest
from seed_harness import session
from seed_harness.catalogue import Missing, Rule
from seed_harness.plan import Part
from seed_harness.rewrite import SHELL
from seed_harness.session import CellTimeout, Session, Sessions, differs, execute, time_limit


def make(*parts: Part) -> Session:
    return Session(parts)


def test_value_of_the_last_expression() -> None:
    assert execute("x = 2\nx + 1", "<test>", {}) == 3
    assert execute("x = 2", "<test>", {}) is None
    assert execute("# nothing", "<test>", {}) is None


def test_cells_share_names_and_see_themselves_as_main() -> None:
    first = Part("900-01", "class A:\n    pass\nx = 1", Rule())
    second = Part("900-02", "__name__, A.__module__, x", Rule(checks=("_ == ('__main__', '__main__', 1)",)))
    opened = make(first, second)
    opened.run(first)
    opened.run(second)


def test_earlier_cells_run_first_when_one_is_chosen() -> None:
    parts = [
        Part("900-01", "x = 1", Rule()),
        Part("900-02", "1 / 0", Rule()),
        Part("900-03", "x = 5", Rule(missing=Missing("something", ("NameError",)))),
        Part("900-04", "x", Rule(checks=("_ == 1",))),
    ]
    make(*parts).run(parts[3])


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Part("900-01", "1 + 1", Rule(), shown="3"), "the document shows 3"),
        (Part("900-01", "x = 1", Rule(checks=("x == 2",))), "not true: x == 2"),
        (Part("900-01", "print('a')", Rule(prints="b")), "no 'b' in what it printed"),
        (Part("900-01", "print('n = 1')", Rule(same=r"n = (\d)"), tail="n = 2"), "this printed"),
        (Part("900-01", "print('m')", Rule(same=r"n = (\d)"), tail="m"), "this printed"),
        (Part("900-01", "x = 1", Rule(refuses=(("x", "TypeError"),))), "was accepted"),
    ],
)
def test_what_does_not_hold_is_an_assertion_error(part: Part, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        make(part).run(part)


def test_what_holds_passes() -> None:
    rule = Rule(
        supply="y = 1", checks=("_ == 2",), prints="a", same="n = (.)", refuses=(("1 + ''", "TypeError"),)
    )
    part = Part("900-01", "print('a')\nprint('n = 1')\ny + 1", rule, shown="2", tail="n = 1\n2")
    make(part).run(part)


def test_refusal_for_another_reason_is_that_error() -> None:
    part = Part("900-01", "x = 1", Rule(refuses=(("undefined", "TypeError"),)))
    with pytest.raises(NameError):
        make(part).run(part)


@pytest.mark.parametrize(
    ("value", "shown", "expected"),
    [
        (3, "3", False),
        ([0, 1], "[0, 1]", False),
        (4, "3", True),
        (type("JobID", (), {"__repr__": lambda self: "JobID(01000000)"})(), "JobID(05000000)", False),
        (type("JobID", (), {"__repr__": lambda self: "JobID(0100)"})(), "JobID(05000000)", True),
    ],
)
def test_shown_values_compare_by_value_and_ids_by_shape(value: object, shown: str, expected: bool) -> None:
    assert differs(value, shown) is expected


def test_time_limit_gets_past_a_handler_of_exceptions() -> None:
    with pytest.raises(CellTimeout), time_limit(0.02):
        try:
            threading.Event().wait(10)
        except Exception:
            pytest.fail("swallowed")


def test_time_limit_is_lifted_afterwards() -> None:
    with time_limit(0.02):
        pass
    assert not threading.Event().wait(0.04)


def test_commands_fill_in_names_and_fail_with_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def child(arguments: list[str]) -> object:
        seen.append(arguments)
        return type("Done", (), {"returncode": 2, "stdout": "", "stderr": "no such command"})()

    monkeypatch.setattr(session, "run_child", child)
    part = Part("900-01", f"x = 7\n{SHELL}('ray list things --filter id={{x}}')", Rule())
    with pytest.raises(session.CommandFailed, match="no such command"):
        make(part).run(part)
    assert seen == [["-m", "framework", "list", "things", "--filter", "id=7"]]


def test_another_document_ends_the_session_before(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    monkeypatch.setattr(Session, "open", lambda self: log.append("open"))
    monkeypatch.setattr(Session, "close", lambda self: log.append("close"))
    sessions = Sessions()
    part = Part("900-01", "", Rule())
    first = sessions.enter("900", [part])
    assert sessions.enter("900", [part]) is first
    assert sessions.enter("901", [part]) is not first
    sessions.close()
    sessions.close()
    assert log == ["open", "close", "open", "close"]


def test_a_session_that_does_not_start_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def fail(self: Session) -> None:
        tries.append("open")
        raise OSError("no")

    monkeypatch.setattr(Session, "open", fail)
    sessions = Sessions()
    part = Part("900-01", "", Rule())
    with pytest.raises(OSError, match="no"):
        sessions.enter("900", [part])
    with pytest.raises(RuntimeError, match="did not start"):
        sessions.enter("900", [part])
    assert tries == ["open"]
