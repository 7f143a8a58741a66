from __future__ import annotations

import io

import pytest

from framework._runtime.output import CYAN, DEDUP_HINT, GREEN, RESET, OutputPrinter
from framework._state.logdedup import Deduplicator


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def isatty(self) -> bool:
        raise RuntimeError("no idea")


def plain(out: io.StringIO | None, err: io.StringIO | None = None) -> OutputPrinter:
    return OutputPrinter(out, err, None, lambda: 0.0)


def test_the_form_of_a_line() -> None:
    out = io.StringIO()
    printer = plain(out)
    printer.show(12, None, False, [("f", "a"), ("", "b")])
    printer.show(12, "10.0.0.2", False, [("f", "c"), ("", "d")])
    assert out.getvalue() == (
        "(f pid=12) a\n(pid=12) b\n(f pid=12, ip=10.0.0.2) c\n(pid=12, ip=10.0.0.2) d\n"
    )


def test_each_stream_gets_its_own() -> None:
    out, err = io.StringIO(), io.StringIO()
    printer = plain(out, err)
    printer.show(1, None, False, [("f", "a")])
    printer.show(1, None, True, [("f", "b")])
    assert out.getvalue() == "(f pid=1) a\n"
    assert err.getvalue() == "(f pid=1) b\n"


def test_the_drivers_streams_are_looked_up_when_printing(capsys: pytest.CaptureFixture[str]) -> None:
    printer = plain(None)
    printer.show(1, None, False, [("f", "a")])
    printer.show(1, None, True, [("f", "b")])
    assert capsys.readouterr() == ("(f pid=1) a\n", "(f pid=1) b\n")


def test_a_driver_without_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    plain(None).show(1, None, False, [("f", "a")])


def test_colours_on_a_terminal_only() -> None:
    out = Terminal()
    plain(out).show(1, None, False, [("f", "a")])
    assert out.getvalue() == f"{CYAN}(f pid=1){RESET} a\n"


def test_repeated_lines() -> None:
    now = 0.0
    out = io.StringIO()
    printer = OutputPrinter(out, None, Deduplicator(window=5.0), lambda: now)
    for pid in (1, 2, 3):
        printer.show(pid, None, False, [("f", f"worker {pid} ready")])
    assert out.getvalue() == "(f pid=1) worker 1 ready\n"
    assert printer.tick(4.0) == 5.0
    assert printer.tick(5.0) is None
    lines = out.getvalue().splitlines()
    assert lines[1:] == [f"(f pid=3) worker 3 ready [repeated 2x across cluster]{DEDUP_HINT}"]
    now = 6.0
    for pid in (1, 2):
        printer.show(pid, None, False, [("f", f"worker {pid} ready")])
    printer.close()
    lines = out.getvalue().splitlines()
    assert lines[2:] == ["(f pid=2) worker 2 ready [repeated 2x across cluster]"]


def test_repeated_lines_on_a_terminal() -> None:
    out = Terminal()
    printer = OutputPrinter(out, None, Deduplicator(), lambda: 0.0)
    for pid in (1, 2, 3):
        printer.show(pid, None, False, [("f", "x")])
    printer.close()
    repeated = f"{CYAN}(f pid=3){RESET} x{GREEN} [repeated 2x across cluster]{DEDUP_HINT}{RESET}"
    assert out.getvalue().splitlines()[1] == repeated


def test_output_and_errors_held_back_go_to_their_own_stream() -> None:
    out, err = io.StringIO(), io.StringIO()
    printer = OutputPrinter(out, err, Deduplicator(), lambda: 0.0)
    for pid in (1, 2):
        printer.show(pid, None, True, [("f", "e")])
        printer.show(pid, None, False, [("f", "o")])
    printer.close()
    assert out.getvalue() == "(f pid=1) o\n(f pid=2) o\n"
    assert err.getvalue() == "(f pid=1) e\n(f pid=2) e\n"


def test_without_deduplication_every_line_is_shown() -> None:
    out = io.StringIO()
    printer = plain(out)
    for pid in (1, 2):
        printer.show(pid, None, False, [("f", "x")])
    assert printer.tick(100.0) is None
    printer.close()
    assert out.getvalue() == "(f pid=1) x\n(f pid=2) x\n"


def test_streams_that_fail_do_not_raise() -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (closed, Broken()):
        plain(stream).show(1, None, False, [("f", "x")])


def test_what_the_encoding_cannot_hold_is_escaped() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    OutputPrinter(stream, None, None, lambda: 0.0).show(1, None, False, [("f", "ä€"), ("f", "b")])
    assert raw.getvalue() == b"(f pid=1) \\xe4\\u20ac\n(f pid=1) b\n"
