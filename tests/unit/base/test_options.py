from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest

from framework._base.options import ActorOptions, MethodOptions, TaskOptions
from framework._base.resources import UNIT
from framework._base.retry import RetryPolicy

KINDS = [TaskOptions, ActorOptions, MethodOptions]


def test_defaults_of_tasks_are_those_of_ray() -> None:
    options = TaskOptions.parse({})
    assert (options.num_cpus, options.num_gpus, options.memory, options.resources) == (1, 0, 0, None)
    assert (options.max_retries, options.retry_exceptions, options.max_calls) == (3, False, 0)
    for name in ("num_returns", "name", "timeout", "retry_policy", "runtime_env", "scheduling_strategy"):
        assert getattr(options, name) is None
    assert options.generator_window is None
    assert options.enable_task_events is True
    assert not options.explicit_num_cpus
    assert options.resources_units() == {"CPU": UNIT}


def test_defaults_of_actors_are_those_of_ray() -> None:
    options = ActorOptions.parse({})
    for name in ("num_cpus", "max_concurrency", "lifetime", "name", "namespace", "runtime_env"):
        assert getattr(options, name) is None
    assert (options.max_restarts, options.max_task_retries, options.max_pending_calls) == (0, 0, -1)
    assert options.placement_units() == {"CPU": UNIT}
    assert options.running_units() == {}
    assert not options.explicit_num_cpus


def test_explicit_cpus_of_an_actor_are_held() -> None:
    options = ActorOptions.parse({"num_cpus": 2, "num_gpus": 1})
    assert options.explicit_num_cpus
    assert options.placement_units() == options.running_units() == {"CPU": 2 * UNIT, "GPU": UNIT}
    zero = ActorOptions.parse({"num_cpus": 0})
    assert zero.explicit_num_cpus
    assert zero.placement_units() == zero.running_units() == {}


def test_defaults_of_methods() -> None:
    options = MethodOptions.parse({})
    for name in ("num_returns", "max_task_retries", "concurrency_group", "timeout"):
        assert getattr(options, name) is None
    assert options.retry_exceptions is False


def test_resources_of_a_task() -> None:
    options = TaskOptions.parse(
        {"num_cpus": 0.5, "num_gpus": 2, "memory": 100, "resources": {"x": 1}, "accelerator_type": "A100"}
    )
    assert options.resources_units() == {
        "CPU": UNIT // 2,
        "GPU": 2 * UNIT,
        "memory": 100 * UNIT,
        "x": UNIT,
        "accelerator_type:A100": 10,
    }


def test_tasks_with_a_gpu_release_it_after_one_call() -> None:
    assert TaskOptions.parse({"num_gpus": 0.5}).max_calls == 1
    assert TaskOptions.parse({"num_gpus": 0.5, "max_calls": 0}).max_calls == 0


def test_merged_replaces_and_none_restores_the_default() -> None:
    one = TaskOptions.parse({"num_cpus": 4, "name": "a"})
    two = one.merged(num_cpus=2, max_retries=-1)
    assert (two.num_cpus, two.name, two.max_retries) == (2, "a", -1)
    assert (one.num_cpus, one.max_retries) == (4, 3)
    three = two.merged(num_cpus=None)
    assert (three.num_cpus, three.explicit_num_cpus) == (1, False)
    assert isinstance(three, TaskOptions)
    with pytest.raises(ValueError, match="num_cpu"):
        one.merged(num_cpu=1)


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        (TaskOptions, "numcpus", "keyword 'numcpus' for remote functions; did you mean 'num_cpus'? Valid: "),
        (ActorOptions, "max_restart", "for actors; did you mean 'max_restarts'?"),
        (MethodOptions, "num_return", "for actor methods; did you mean 'num_returns'?"),
        (TaskOptions, "max_restarts", "for remote functions (it is an option of actors). Valid: "),
        (MethodOptions, "num_cpus", "(it is an option of remote functions and actors)"),
        (TaskOptions, "zzzzzz", "Invalid option keyword 'zzzzzz' for remote functions. Valid: acc"),
    ],
)
def test_unknown_options(kind: type[TaskOptions], name: str, text: str) -> None:
    with pytest.raises(ValueError) as caught:
        kind.parse({name: 1})
    assert text in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_accepts_none_and_has_an_attribute(kind: type[TaskOptions]) -> None:
    names = kind._checks
    assert kind.parse(dict.fromkeys(names)) == kind.parse({})
    for name in names:
        getattr(kind.parse({}), name)
    with pytest.raises(AttributeError):
        kind.parse({}).no_such_option = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
def test_every_option_refuses_a_wrong_type_by_name(kind: type[TaskOptions]) -> None:
    for name in kind._checks:
        with pytest.raises(TypeError, match=name):
            kind.parse({name: object()})


def strategy(**attributes: object) -> object:
    return SimpleNamespace(**attributes)


ACCEPTED: list[tuple[type, str, object]] = [
    (TaskOptions, "num_cpus", 0),
    (TaskOptions, "num_cpus", 0.25),
    (TaskOptions, "num_returns", 0),
    (TaskOptions, "num_returns", 3),
    (TaskOptions, "num_returns", "streaming"),
    (TaskOptions, "num_returns", "dynamic"),
    (TaskOptions, "max_retries", -1),
    (TaskOptions, "max_calls", 5),
    (TaskOptions, "timeout", 0.5),
    (TaskOptions, "retry_exceptions", True),
    (TaskOptions, "retry_policy", RetryPolicy()),
    (TaskOptions, "scheduling_strategy", "SPREAD"),
    (TaskOptions, "scheduling_strategy", strategy(node_id="ab")),
    (TaskOptions, "scheduling_strategy", strategy(node_labels={})),
    (TaskOptions, "scheduling_strategy", strategy(placement_group=None)),
    (TaskOptions, "runtime_env", {}),
    (TaskOptions, "runtime_env", {"env_vars": {"A": "1"}}),
    (TaskOptions, "label_selector", {"zone": "a"}),
    (TaskOptions, "generator_window", -1),
    (TaskOptions, "_metadata", {"anything": 1}),
    (ActorOptions, "lifetime", "detached"),
    (ActorOptions, "lifetime", "non_detached"),
    (ActorOptions, "max_restarts", -1),
    (ActorOptions, "max_pending_calls", 1),
    (ActorOptions, "max_concurrency", 1000),
    (ActorOptions, "concurrency_groups", {"io": 2}),
    (ActorOptions, "object_store_memory", 10**9),
    (ActorOptions, "allow_out_of_order_execution", False),
    (MethodOptions, "concurrency_group", "io"),
    (MethodOptions, "max_task_retries", 0),
]


@pytest.mark.parametrize(("kind", "name", "value"), ACCEPTED)
def test_accepted(kind: type[TaskOptions], name: str, value: object) -> None:
    assert getattr(kind.parse({name: value}), name) == value


REFUSED: list[tuple[type, str, object, type[Exception]]] = [
    (TaskOptions, "num_cpus", -1, ValueError),
    (TaskOptions, "num_cpus", True, TypeError),
    (TaskOptions, "num_gpus", 1.5, ValueError),
    (TaskOptions, "memory", float("nan"), ValueError),
    (TaskOptions, "resources", {"CPU": 1}, ValueError),
    (TaskOptions, "resources", {"x": -1}, ValueError),
    (TaskOptions, "num_returns", -1, ValueError),
    (TaskOptions, "num_returns", True, TypeError),
    (TaskOptions, "num_returns", 1.0, TypeError),
    (TaskOptions, "num_returns", "stream", ValueError),
    (TaskOptions, "max_retries", -2, ValueError),
    (TaskOptions, "max_retries", 1.5, TypeError),
    (TaskOptions, "max_calls", -1, ValueError),
    (TaskOptions, "retry_exceptions", [ValueError, 7], TypeError),
    (TaskOptions, "retry_exceptions", [int], TypeError),
    (TaskOptions, "retry_exceptions", ValueError, TypeError),
    (TaskOptions, "timeout", 0, ValueError),
    (TaskOptions, "timeout", float("inf"), ValueError),
    (TaskOptions, "timeout", float("nan"), ValueError),
    (TaskOptions, "name", "", ValueError),
    (TaskOptions, "enable_task_events", 1, TypeError),
    (TaskOptions, "generator_window", 0, ValueError),
    (TaskOptions, "scheduling_strategy", "spread", ValueError),
    (TaskOptions, "scheduling_strategy", 7, TypeError),
    (TaskOptions, "runtime_env", {"pip": ["requests"]}, ValueError),
    (TaskOptions, "runtime_env", {"nonsense": 1}, ValueError),
    (TaskOptions, "runtime_env", {"env_vars": {"A": 1}}, TypeError),
    (TaskOptions, "runtime_env", {"env_vars": {"A=B": "1"}}, ValueError),
    (TaskOptions, "runtime_env", {"env_vars": {"A": "\0"}}, ValueError),
    (TaskOptions, "label_selector", {"zone": 1}, TypeError),
    (ActorOptions, "lifetime", "forever", ValueError),
    (ActorOptions, "lifetime", 1, TypeError),
    (ActorOptions, "max_concurrency", 0, ValueError),
    (ActorOptions, "max_pending_calls", 0, ValueError),
    (ActorOptions, "concurrency_groups", {"io": 0}, ValueError),
    (ActorOptions, "concurrency_groups", {"io": "2"}, TypeError),
    (ActorOptions, "namespace", "", ValueError),
    (MethodOptions, "max_task_retries", -2, ValueError),
    (MethodOptions, "timeout", -1, ValueError),
]


@pytest.mark.parametrize(("kind", "name", "value", "error"), REFUSED)
def test_refused_with_the_name(
    kind: type[TaskOptions], name: str, value: object, error: type[Exception]
) -> None:
    with pytest.raises(error, match=name):
        kind.parse({name: value})


def test_messages_name_the_option_the_value_and_what_is_allowed() -> None:
    with pytest.raises(ValueError) as caught:
        TaskOptions.parse({"max_retries": -7})
    assert str(caught.value) == "option max_retries must be an integer >= -1 (-1: without end), got -7"
    with pytest.raises(ValueError, match="supported: env_vars"):
        TaskOptions.parse({"runtime_env": {"working_dir": "."}})


def test_a_list_of_exceptions_becomes_a_tuple() -> None:
    assert TaskOptions.parse({"retry_exceptions": [ValueError, OSError]}).retry_exceptions == (
        ValueError,
        OSError,
    )


def test_values_are_copied() -> None:
    resources = {"x": 1.0}
    options = TaskOptions.parse({"resources": resources})
    resources["x"] = 2.0
    assert options.resources == {"x": 1.0}


@pytest.mark.parametrize("kind", [TaskOptions, MethodOptions])
def test_the_two_names_of_the_window(kind: type[TaskOptions]) -> None:
    alias = "_generator_backpressure_num_objects"
    assert kind.parse({alias: 5}).generator_window == 5
    assert kind.parse({alias: 5, "generator_window": 5}).generator_window == 5
    assert kind.parse({alias: None, "generator_window": 5}).generator_window == 5
    assert kind.parse({"generator_window": 5, alias: None}).generator_window == 5
    assert kind.parse({alias: 5}).merged(generator_window=6).generator_window == 6
    assert kind.parse({alias: 5}).merged(**{alias: None}).generator_window is None
    with pytest.raises(ValueError, match="mean the same"):
        kind.parse({alias: 5, "generator_window": 6})


def test_get_if_exists_needs_a_name() -> None:
    with pytest.raises(ValueError, match="needs the option name"):
        ActorOptions.parse({"get_if_exists": True})
    assert ActorOptions.parse({"get_if_exists": True, "name": "a"}).get_if_exists


@pytest.mark.parametrize("kind", KINDS)
def test_pickle_equality_and_repr(kind: type[TaskOptions]) -> None:
    options = kind.parse({"name": "x", "enable_task_events": False})
    assert pickle.loads(pickle.dumps(options)) == options
    assert options != kind.parse({})
    assert repr(options) == f"{kind.__name__}(name='x', enable_task_events=False)"
    assert options.given == {"name": "x", "enable_task_events": False}
