"""Environment variables of a job, of its tasks and actors, and of what these start."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import framework as fw

pytestmark = [pytest.mark.integration, pytest.mark.slow]

TIMEOUT = 30.0


@fw.remote
def variables(*names: str) -> list[str | None]:
    return [os.environ.get(name) for name in names]


@fw.remote
def nested(*names: str) -> list[str | None]:
    found: list[str | None] = fw.get(variables.remote(*names), timeout=TIMEOUT)
    return found


@fw.remote
class Reader:
    def variables(self, *names: str) -> list[str | None]:
        return [os.environ.get(name) for name in names]

    def nested(self, *names: str) -> list[str | None]:
        found: list[str | None] = fw.get(variables.remote(*names), timeout=TIMEOUT)
        return found


def test_of_the_job_reaches_tasks_actors_and_what_they_start(session_root: Path) -> None:
    with fw.init(num_cpus=2, log_to_driver=False, runtime_env={"env_vars": {"JOB_ONE": "1", "JOB_TWO": "2"}}):
        assert "JOB_ONE" not in os.environ
        assert fw.get(variables.remote("JOB_ONE", "JOB_TWO"), timeout=TIMEOUT) == ["1", "2"]
        assert fw.get(nested.remote("JOB_ONE"), timeout=TIMEOUT) == ["1"]
        reader = Reader.remote()
        assert fw.get(reader.variables.remote("JOB_TWO"), timeout=TIMEOUT) == ["2"]
        assert fw.get(reader.nested.remote("JOB_TWO"), timeout=TIMEOUT) == ["2"]
        mine = nested.options(runtime_env={"env_vars": {"JOB_TWO": "b", "MINE": "c"}})
        assert fw.get(mine.remote("JOB_ONE", "JOB_TWO", "MINE"), timeout=TIMEOUT) == ["1", "b", "c"]
        assert fw.get(variables.remote("JOB_TWO", "MINE"), timeout=TIMEOUT) == ["2", None]
        assert fw.get_runtime_context().runtime_env == {"env_vars": {"JOB_ONE": "1", "JOB_TWO": "2"}}


def test_of_a_task_is_told_to_it(fresh_session: object) -> None:
    @fw.remote
    def told() -> str:
        return fw.get_runtime_context().get_runtime_env_string()

    assert fw.get(told.remote(), timeout=TIMEOUT) == "{}"
    env = {"env_vars": {"A": "é"}}
    assert json.loads(fw.get(told.options(runtime_env=env).remote(), timeout=TIMEOUT)) == env


@pytest.mark.parametrize(
    ("env", "error", "message"),
    [
        ({"pip": ["x"]}, ValueError, "'pip' is not supported; supported: env_vars"),
        ({"env_vars": {"A": 1}}, TypeError, "'A': 1"),
        ({"env_vars": {"A=B": ""}}, ValueError, "no valid environment variable"),
        ("A=1", TypeError, "runtime_env must be a dict"),
    ],
)
def test_a_wrong_one_is_refused_before_anything_starts(
    env: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        fw.init(runtime_env=env)  # type: ignore[arg-type]
    assert not fw.is_initialized()
