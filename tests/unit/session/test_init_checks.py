"""Arguments of `init` that make no sense are refused before anything is started."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

import framework as fw
from framework import _init_checks as checks
from framework._base import limits


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> None:
        raise AssertionError("a session was started")

    monkeypatch.setattr("framework._session._start", start)
    monkeypatch.delenv("FRAMEWORK_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"num_cpu": 1}, ValueError, "did you mean 'num_cpus'"),
        ({"log_level": 1}, ValueError, "did you mean 'logging_level'"),
        ({"adress": "x"}, ValueError, "did you mean 'address'"),
        ({"xyzzy": 1}, ValueError, "has no argument 'xyzzy'. Valid: .*num_cpus"),
        ({"labels": ["a"]}, TypeError, "dict of str"),
        ({"labels": {"a": 1}}, TypeError, "dict of str"),
        ({"labels": {"-a": "b"}}, ValueError, "name of a label"),
        ({"labels": {"a": "b c"}}, ValueError, "value of a label"),
        ({"labels": {"a": "b" * 64}}, ValueError, "value of a label"),
        ({"labels": {"ray.io/a": "b"}}, ValueError, "system"),
        ({"job_config": None}, ValueError, "runtime_env"),
        ({"_temp_dir": "/x"}, ValueError, "FRAMEWORK_TMPDIR"),
        ({"local_mode": True}, ValueError, "local_mode"),
        ({"include_dashboard": True}, ValueError, "there is no dashboard"),
        ({"include_dashboard": "yes"}, TypeError, "include_dashboard"),
        ({"log_to_driver": 1}, TypeError, "log_to_driver"),
        ({"ignore_reinit_error": None}, TypeError, "ignore_reinit_error"),
        ({"configure_logging": "no"}, TypeError, "configure_logging"),
        ({"logging_level": "LOUD"}, ValueError, "LOUD.*WARNING"),
        ({"logging_level": 1.5}, TypeError, "logging_level"),
        ({"logging_level": True}, TypeError, "logging_level"),
        ({"logging_format": 5}, TypeError, "logging_format"),
        ({"namespace": ""}, ValueError, "namespace"),
        ({"namespace": 5}, ValueError, "namespace"),
        ({"object_store_memory": True}, ValueError, "object_store_memory"),
        ({"object_store_memory": "1GB"}, ValueError, "object_store_memory"),
        ({"memory_usage_threshold": 1.5}, ValueError, "memory_usage_threshold"),
        ({"memory_usage_threshold": 0}, ValueError, "memory_usage_threshold"),
        ({"spill_directory": "/nowhere/at/all"}, ValueError, "create it first"),
        ({"runtime_env": {"env_vars": {"A": 1}}}, TypeError, "A"),
        ({"resources": {"CPU": 1}}, ValueError, "CPU"),
        ({"address": "auto", "num_cpus": 1}, ValueError, "for a new node"),
    ],
)
def test_refused(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        fw.init(**arguments)


@pytest.mark.parametrize("arguments", [{"_system_config": {}}, {"dashboard_port": 1}])
def test_what_tunes_the_inside_of_ray_is_ignored_with_a_warning(arguments: dict[str, Any]) -> None:
    with pytest.warns(UserWarning, match=next(iter(arguments))) as caught:
        with pytest.raises(AssertionError, match="started"):
            fw.init(**arguments)
    assert caught[0].filename != checks.__file__


def test_the_environment_names_the_address_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRAMEWORK_ADDRESS", "/some/session")
    with pytest.raises(ValueError, match="'/some/session'.*FRAMEWORK_ADDRESS"):
        fw.init(num_cpus=1)
    with pytest.raises(AssertionError, match="started"):
        fw.init("local", num_cpus=1)


def test_what_the_node_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spill").mkdir()
    wanted = checks.wanted_resources(2, 1, 5, {"oven": 1.5}, 1e8, "spill", 0.5)  # type: ignore[arg-type]
    assert wanted == {
        "num_cpus": 2,
        "num_gpus": 1,
        "memory": 5,
        "resources": {"oven": 1.5},
        "object_store_memory": 100_000_000,
        "spill_directory": str(tmp_path / "spill"),
        "memory_threshold": 0.5,
        "labels": {},
    }
    monkeypatch.setenv("FRAMEWORK_MEMORY_USAGE_THRESHOLD", "0.25")
    monkeypatch.setenv("FRAMEWORK_SPILL_DIRECTORY", str(tmp_path))
    found = checks.wanted_resources()
    assert (found["memory_threshold"], found["spill_directory"]) == (0.25, str(tmp_path))
    monkeypatch.delenv("FRAMEWORK_MEMORY_USAGE_THRESHOLD")
    assert checks.wanted_resources()["memory_threshold"] == limits.MEMORY_THRESHOLD


@pytest.mark.parametrize(
    ("level", "number"),
    [(None, logging.INFO), ("debug", logging.DEBUG), ("WARNING", logging.WARNING), (15, 15)],
)
def test_levels(level: int | str | None, number: int) -> None:
    found = checks.checked_logging(True, level, None)
    assert found is not None and found[0] == number and "%(message)s" in found[1]
    assert checks.checked_logging(True, level, "%(name)s") == [number, "%(name)s"]
    assert checks.checked_logging(False, level, None) is None
