"""The report of a run, and its options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from framework.chaos.__main__ import parse
from framework.chaos.ledger import AT_MOST_ONCE, Ledger
from framework.chaos.report import Report, Row, text
from framework.chaos.run import Options, check, tracebacks_below, tracebacks_in
from framework.chaos.workloads import CATALOGUE
from framework.exceptions import WorkerCrashedError


def report() -> Report:
    ledger = Ledger()
    ledger.asked, ledger.answered = 10, 9
    ledger.excuse(AT_MOST_ONCE, WorkerCrashedError())
    ledger.round_done(0.25)
    ledger.notes["restarts"] = 3
    found = Report(7, 2.0, 3, ["workers"], "python -m framework.chaos --seed 7", seconds=60.0)
    found.faults, found.skipped = {"worker.kill": 12}, {"head.kill": 1}
    found.workloads = {"tasks": Row.of(ledger), "nested": Row.of(Ledger())}
    return found


def test_a_run_that_was_survived() -> None:
    found = report()
    shown = text(found)
    assert found.passed and shown.splitlines()[-1] == "survived"
    for part in ("seed 7", "worker.kill", "SIGKILL for a worker process", "restarts", "max_retries=0", "250"):
        assert part in shown
    assert json.loads(json.dumps(found.to_json()))["workloads"]["tasks"]["permitted"] == {
        "task, max_retries=0": 1
    }
    assert found.to_json()["passed"] is True


@pytest.mark.parametrize("where", ["left", "failures"])
def test_a_run_that_was_not(where: str) -> None:
    found = report()
    getattr(found, where).append("a socket\nand more")
    found.logs = "/somewhere"
    shown = text(found)
    assert not found.passed and "a socket" in shown and "and more" in shown
    assert "FAILED. The same plan again: python -m framework.chaos --seed 7" in shown
    assert "/somewhere" in shown


def test_the_command_makes_the_same_options_again() -> None:
    for options in (
        Options(),
        Options(
            duration=12.5, seed=9, every=0.5, nodes=2, workloads=("actors",), targets=("head",), calls=100
        ),
    ):
        words = options.command().split()
        assert words[:3] == ["python", "-m", "framework.chaos"]
        assert parse(words[3:])[0] == options


@pytest.mark.parametrize(
    "options",
    [
        Options(workloads=("tasks", "baking")),
        Options(workloads=()),
        Options(targets=("disks",)),
        Options(every=0.0),
        Options(nodes=0),
        Options(duration=-1),
        Options(patience=0),
        Options(calls=5, workloads=("tasks",)),
    ],
)
def test_options_that_make_no_sense(options: Options) -> None:
    with pytest.raises(ValueError):
        check(options)


def test_workloads_are_named_and_described() -> None:
    for name, kind in CATALOGUE.items():
        assert kind.name == name and kind.text and kind.__doc__


def test_wrong_options_end_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--workloads", "baking"])
    assert caught.value.code == 2 and "workloads are tasks, nested" in capsys.readouterr().err


LOG = """\
12:00 INFO fine
12:01 ERROR a handler failed
Traceback (most recent call last):
  File "x.py", line 1, in f
    g()
ValueError: it is
Traceback (most recent call last):
  File "x.py", line 1, in f
KeyError: 7

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "y.py", line 1, in f
ValueError: it is
"""


def test_tracebacks_are_found(tmp_path: Path) -> None:
    assert tracebacks_in("12:00 INFO fine\n") == {}
    assert tracebacks_in(LOG) == {"ValueError: it is": 2, "KeyError: 7": 1}
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "node.log").write_text(LOG)
    (tmp_path / "logs" / "node.err").write_text(LOG)
    (tmp_path / "logs" / "report.json").write_text(LOG)
    found = tracebacks_below(str(tmp_path))
    assert found["node.log: ValueError: it is"] == found["node.err: ValueError: it is"] == 2
    assert sum(found.values()) == 6
