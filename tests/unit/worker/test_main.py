"""What a worker takes over from the job that it serves."""

from __future__ import annotations

import logging
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from framework._runtime.runtime import Config
from framework._worker import main
from framework._worker.main import _adopt_job, _reseed


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    here = os.getcwd()
    yield Config(session_dir="/s", worker_id=b"w" * 28, is_driver=False)
    os.chdir(here)


def test_modules_and_files_are_found_where_the_driver_finds_them(config: Config, tmp_path: Path) -> None:
    facts = {"namespace": "n", "sys_path": ["/mine"], "cwd": str(tmp_path)}
    _adopt_job(config, {**facts, "job": b"j", "log_to_driver": False, "other": 1})
    assert (config.job, config.namespace, config.log_to_driver) == (b"j", "n", False)
    assert sys.path == ["/mine"] and os.getcwd() == str(tmp_path)
    assert config.job_facts == facts, "what its own nested tasks pass on"


def test_a_directory_that_is_not_here_is_no_end(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    here = os.getcwd()
    _adopt_job(config, {"job": b"j", "cwd": "/nowhere/at/all"})
    assert os.getcwd() == here
    assert "/nowhere/at/all cannot be used here" in capsys.readouterr().err


def test_facts_that_are_missing_change_nothing(config: Config) -> None:
    here, path = os.getcwd(), list(sys.path)
    _adopt_job(config, {})
    assert (os.getcwd(), sys.path, config.log_to_driver) == (here, path, True)


def test_logging_is_set_up_as_in_the_driver(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, str]] = []
    monkeypatch.setattr(main.logs, "configure", lambda level, text: calls.append((level, text)))
    _adopt_job(config, {"job": b"j", "logging": [logging.DEBUG, "%(message)s"]})
    assert calls == [(logging.DEBUG, "%(message)s")]
    assert config.job_facts["logging"] == [logging.DEBUG, "%(message)s"]
    _adopt_job(config, {"job": b"j", "logging": None})
    assert len(calls) == 1


def test_forks_do_not_draw_the_same_numbers() -> None:
    state, np_state = random.getstate(), np.random.get_state()
    drawn = []
    for _ in range(2):
        random.setstate(state)
        np.random.set_state(np_state)
        _reseed()
        drawn.append((random.random(), float(np.random.random())))
    assert drawn[0][0] != drawn[1][0] and drawn[0][1] != drawn[1][1]
