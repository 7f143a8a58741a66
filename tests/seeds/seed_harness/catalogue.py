"""What is known of single cells: what they lack, what must hold after them, what later issues bring.

Cells are named by document and ordinal ("000-07"); `digests.py` notices when a document changes under those
numbers. In checks `_` is the value of the cell's last expression. Where the document itself shows a value
after a cell, that is compared without a word here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Missing:
    """A capability that a later issue brings. The mark is strict: who brings it removes it."""

    what: str
    raises: tuple[str, ...]
    """Names of the exception classes that its absence shows itself by; anything else is a failure."""


@dataclass(frozen=True, slots=True)
class Rule:
    """All that is special about one cell."""

    swap: tuple[tuple[str, str], ...] = ()
    """Regex substitutions, made before those for all cells."""
    detach: str = ""
    """Regex of lines that run as a part of their own ("b") after the rest, with a rule of their own."""
    supply: str = ""
    """Code that runs first, in the same namespace: pieces that the document leaves out."""
    checks: tuple[str, ...] = ()
    """Expressions that must be true afterwards."""
    refuses: tuple[tuple[str, str], ...] = ()
    """Pairs of an expression, and the names (with |) of the exceptions of which one must come of it."""
    prints: str = ""
    """Regex that must be found in what the cell prints."""
    same: str = ""
    """Regex whose matches in the cell's output and in the document's text below the cell must be the same."""
    varies: bool = False
    """The shown value differs from run to run."""
    isolated: bool = False
    """Runs in a process of its own (see isolated.py), for it starts clusters."""
    missing: Missing | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """What a document's session is started with."""

    num_cpus: int = 2
    num_gpus: int = 0
    object_store_memory: int = 512 * 2**20
    """Bytes."""


MACHINES = {"001": Machine(num_cpus=4, num_gpus=2), "003": Machine(num_cpus=4, num_gpus=2)}
"""Documents not named here get a plain `Machine()`; these ask for four CPUs and two (logical) GPUs."""

STUBS = ("requests",)
"""Modules that a document imports and never uses: an empty one stands in where they are not installed."""

_TUNE = Missing("Tune", ("ImportError", "NameError", "AttributeError"))
#: the task `a` has begun, and has called `b`
_WORKER_OWNS = (
    "__import__('support.leaks', fromlist=['_']).wait_until(lambda: [o for o in "
    "__import__('framework.util.state', fromlist=['_']).list_objects() "
    "if (o['type'], o['reference_type']) == ('WORKER', 'OWNED')]) is None"
)
_SMALL_ARRAY = (r"4 \* 1024\b", "16")
_F = "@ray.remote\ndef f(x=1):\n    return x\n"
_SQUARES = ("_ == [math.sqrt(2) + 3, math.sqrt(5) + 4]",)
_NONE = ("ray.get(my_task.remote()) is None",)
_ROLLOUT = """
@ray.remote
def generate_rollout():
    return list(range(10))

@ray.remote
def reduce(values):
    return sum(values)
"""
_BIG = """
@ray.remote
def return_big_object():
    return b"0" * (128 * 1024)
"""

_RULES_000 = {
    "000-01": Rule(detach=r"^from ray import tune$"),
    "000-01b": Rule(missing=_TUNE),
    "000-02": Rule(checks=("ray.is_initialized()",)),
    "000-04": Rule(checks=("type(_).__name__ == 'RemoteFunction'",)),
    "000-05": Rule(checks=("_ == 3",)),
    "000-06": Rule(checks=("ray.get(_) == 3",)),
    "000-07": Rule(checks=("isinstance(_, ray.ObjectRef)",)),
    "000-08": Rule(checks=("_ == 3",)),
    "000-11": Rule(checks=_SQUARES),
    "000-13": Rule(checks=("results == [0, 1, 4, 9]",)),
    "000-14": Rule(checks=("not {'refs', 'results'} & set(globals())",)),
    "000-15": Rule(
        swap=((r'"/tmp/', 'directory + "/'),),
        refuses=(("read_file.remote(file)", "TypeError|PicklingError"),),
    ),
    "000-16": Rule(checks=("ray.get([ref1, ref2]) == [10, 20]",)),
    "000-17": Rule(checks=("ray.get(_) == 12",)),
    "000-18": Rule(
        swap=(_SMALL_ARRAY,), checks=("ray.get(consumer_task.remote(producer_task.remote())) is None",)
    ),
    "000-20": Rule(swap=((r"100 \* 1024", "4 * 1024"), (r"sleep\(20\)", "sleep(0.05)"))),
    "000-21": Rule(
        checks=("abs(ray.get(train_model.remote(df_ref, 1.0, 1))['score'] - df.mean().sum()) < 1e-9",)
    ),
    "000-22": Rule(prints=r"(?m)^objects: [1-9]"),
    "000-23": Rule(checks=("'df_ref' not in globals()",)),
    "000-25": Rule(prints=r"(?m)^objects: [1-9]"),
    "000-26": Rule(missing=_TUNE, supply="def train(data, lr, epochs):\n    return None"),
    # (The next cell starts a program that looks at the task while it runs.)
    "000-27": Rule(
        swap=((r"sleep\(20\)", "sleep(4.0)"),), checks=("isinstance(x, ray.ObjectRef)", _WORKER_OWNS)
    ),
    "000-28": Rule(prints=r"objects: 1\b[\s\S]*WORKER"),
    "000-29": Rule(checks=("abs(_[0] - _[1]) < 1e-9",)),
    "000-30": Rule(checks=("not {'x', 'y'} & set(globals())",)),
    # Not shortened: the reader of an object may learn of its owner's death a little later than the killer.
    "000-31": Rule(swap=((r"sleep\(2\)", "sleep(2.0)"),), prints=r"(?m)^\S+ Failed"),
    "000-32": Rule(isolated=True, supply="import numpy as np\nimport pytest"),
    "000-33": Rule(checks=("result.nbytes == 20 * 1024**2", "ref1.hex() == task_id + '01000000'")),
    "000-34": Rule(prints=r"objects: 1\b[\s\S]*DRIVER"),
    "000-35": Rule(checks=("not {'ref1', 'ref2'} & set(globals())",)),
    "000-36": Rule(prints=r"objects: 0\b"),
    "000-38": Rule(checks=("square_value == 4", "sum_value == 5")),
    "000-39": Rule(checks=("sum_value == 5",)),
    "000-40": Rule(
        supply="def process_a(x):\n    return x + 1\n\n\nprocess_b = process_c = process_a",
        checks=("ray.get(step3.remote(step2.remote(step1.remote(1)))) == 4",),
    ),
    "000-41": Rule(
        supply="process_chunk = sum\n\n\ndef aggregate(refs):\n    return sum(ray.get(refs))",
        checks=("ray.get(reduce_task.remote([map_task.remote([i, i]) for i in range(4)])) == 12",),
    ),
    "000-42": Rule(checks=("result == 120",)),
    "000-43": Rule(checks=("_ == 5",)),
    "000-44": Rule(checks=("_ == [None] * 10",)),
}

_NAMES_OF_REFS = "{'as_future', 'binary', 'future', 'hex', 'job_id', 'task_id', '__await__'}"
_RULES_002 = {
    "002-03": Rule(checks=("type(_).__name__ == 'RemoteFunction'",)),
    "002-05": Rule(checks=("ray.get(_) == 3",)),
    "002-10": Rule(checks=_SQUARES),
    "002-14": Rule(varies=True, checks=(f"{_NAMES_OF_REFS} <= set(_)",)),
    "002-18": Rule(swap=((r"1024//8(?=\))", "1"),), checks=("large_matrix.nbytes == 16 * 2**20",)),
    "002-22": Rule(varies=True, checks=("_[0] != _[1]",)),
    "002-24": Rule(checks=("len(results) == 100 and len(set(results)) == 1",)),
    "002-25": Rule(
        swap=(_SMALL_ARRAY,), checks=("ray.get(output_ref) is None", "ray.get(arr_ref).nbytes == 2**24")
    ),
    "002-28": Rule(checks=("square_value == 4", "sum_value == 5")),
    "002-29": Rule(checks=("sum_value == 5",)),
    "002-31": Rule(swap=((r"prob=0\.5", "prob=0.9"),), same="tasks failed"),
    "002-34": Rule(swap=((r"prob=0\.5", "prob=0.2"),)),
    "002-38": Rule(swap=((r"n: int = 4000", "n: int = 400"),)),
    # An idle lease may still hold a CPU for some hundred milliseconds.
    "002-39": Rule(varies=True, checks=("0 <= _.get('CPU', 0) <= 2", "_['memory'] > 0")),
    "002-43": Rule(swap=((r"uniform\(0, 4\)", "uniform(0, 0.2)"),)),
    "002-44": Rule(same=r"result =\s+(\d+)"),
    "002-45": Rule(same=r"result =\s+(\d+)"),
    "002-55": Rule(checks=("_ == 212.0",)),
}

_RULES_003 = {
    "003-01": Rule(supply="import time", checks=("normal_function() == 1",)),
    "003-02": Rule(checks=("ray.get(my_function.options(num_cpus=3).remote()) == 1",)),
    "003-04": Rule(checks=("len(ready_refs) == len(remaining_refs) == 1", "ray.get(object_refs) == [1, 1]")),
    "003-06": Rule(prints=r"(?ms)^0$.*^1$.*^2$.*^3$.*^4$"),
    "003-07": Rule(prints="cancelled"),
    "003-08": Rule(
        swap=((r"\b10_000_000\b", "20_000"), (r"\b1_000_000\b", "2_000")),
        checks=("3.1 < pi < 3.2",),
        prints="100%",
    ),
    "003-09": Rule(
        swap=((r"\b200000\b", "200"),),
        checks=(
            "ray.get(quick_sort_distributed.remote([i * 37 % 997 for i in range(997)])) == list(range(997))",
        ),
    ),
    "003-10": Rule(supply=_F, checks=("sequential_returns == list(range(100))",)),
    "003-11": Rule(checks=("parallel_returns == list(range(100))",)),
    "003-12": Rule(supply=_ROLLOUT, checks=("reduced == 45",)),
    "003-13": Rule(checks=("reduced == 45",)),
    "003-14": Rule(checks=("ray.get(pass_via_nested_ref.remote([f.remote(1), f.remote(2)])) is None",)),
    "003-15": Rule(checks=("_ is None",)),
    "003-16": Rule(supply="seen = []\nprocess = seen.append", checks=("seen == list(range(100))",)),
    "003-17": Rule(supply="seen.clear()", checks=("sorted(seen) == list(range(100))",)),
    "003-18": Rule(supply=_BIG, swap=((r"range\(1000\)", "range(200)"),), checks=("len(results) == 200",)),
    "003-19": Rule(
        supply="seen.clear()\nprocess_results = seen.extend", checks=("len(seen) == 200", "not object_refs")
    ),
    "003-20": Rule(checks=("ray.get(doubled_number_refs) == list(range(0, 20_000, 2))",)),
    "003-21": Rule(
        supply="numbers = list(range(3000))",
        checks=("sum(ray.get(doubled_batch_refs), []) == list(range(0, 6000, 2))",),
    ),
    "003-22": Rule(checks=_NONE),
    "003-23": Rule(checks=_NONE),
}

_RULES_004 = {
    "004-02": Rule(checks=("ray.get([counter.increment.remote(), counter.get_counter.remote()]) == [1, 1]",)),
    "004-03": Rule(prints="timed out"),
}

_RULES = _RULES_000 | _RULES_002 | _RULES_003 | _RULES_004


def rule(name: str) -> Rule:
    """The rule of cell `name`; document 001 is 003 without indentation, and shares its rules."""
    return _RULES.get("003" + name[3:] if name.startswith("001") else name, Rule())


def rule_names() -> list[str]:
    """Every cell that has a rule."""
    return sorted(_RULES)
