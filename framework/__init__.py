"""An asyncio-native actor-and-task framework.

    import framework as fw

    @fw.remote
    def add(a, b):
        return a + b

    fw.get(add.remote(1, 2))          # in a script
    await add.remote(1, 2)            # in a coroutine
    for ref in generator.remote(): …  # while the task still runs

Everything public is reachable from here; modules are loaded when first used, so that the processes of a
session start fast.
"""

from __future__ import annotations

import importlib
import sys

TYPE_CHECKING = False  # (until a node has been started, nothing loads `typing`: see `framework._session`)
if TYPE_CHECKING:
    import cloudpickle as cloudpickle

    from framework import actor as actor
    from framework import exceptions as exceptions
    from framework import runtime_context as runtime_context
    from framework import util as util
    from framework._api import available_resources as available_resources
    from framework._api import cancel as cancel
    from framework._api import cluster_resources as cluster_resources
    from framework._api import get as get
    from framework._api import get_gpu_ids as get_gpu_ids
    from framework._api import kill as kill
    from framework._api import nodes as nodes
    from framework._api import put as put
    from framework._api import remote as remote
    from framework._api import wait as wait
    from framework._arrays import empty as empty
    from framework._arrays import empty_like as empty_like
    from framework._arrays import zeros as zeros
    from framework._base.ids import ActorID as ActorID
    from framework._base.ids import JobID as JobID
    from framework._base.ids import NodeID as NodeID
    from framework._base.ids import ObjectID as ObjectID
    from framework._base.ids import PlacementGroupID as PlacementGroupID
    from framework._base.ids import TaskID as TaskID
    from framework._base.ids import WorkerID as WorkerID
    from framework._base.retry import RetryPolicy as RetryPolicy
    from framework._detach import detach as detach
    from framework._session import init as init
    from framework._session import is_initialized as is_initialized
    from framework._session import shutdown as shutdown
    from framework.actor import Actor as Actor
    from framework.actor import ActorClass as ActorClass
    from framework.actor import ActorHandle as ActorHandle
    from framework.actor import get_actor as get_actor
    from framework.actor import method as method
    from framework.object_ref import DynamicObjectRefGenerator as DynamicObjectRefGenerator
    from framework.object_ref import ObjectRef as ObjectRef
    from framework.object_ref import ObjectRefGenerator as ObjectRefGenerator
    from framework.remote_function import RemoteFunction as RemoteFunction
    from framework.runtime_context import get_runtime_context as get_runtime_context
    from framework.task_group import task_group as task_group
if TYPE_CHECKING:  # (apart from the names that are public)
    from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "framework._api": (
        "available_resources",
        "cancel",
        "cluster_resources",
        "get",
        "get_gpu_ids",
        "kill",
        "nodes",
        "put",
        "remote",
        "wait",
    ),
    "framework._arrays": ("empty", "empty_like", "zeros"),
    "framework._base.ids": (
        "ActorID",
        "JobID",
        "NodeID",
        "ObjectID",
        "PlacementGroupID",
        "TaskID",
        "WorkerID",
    ),
    "framework._base.retry": ("RetryPolicy",),
    "framework._detach": ("detach",),
    "framework._session": ("init", "is_initialized", "shutdown"),
    "framework.actor": ("Actor", "ActorClass", "ActorHandle", "get_actor", "method"),
    "framework.object_ref": ("DynamicObjectRefGenerator", "ObjectRef", "ObjectRefGenerator"),
    "framework.remote_function": ("RemoteFunction",),
    "framework.runtime_context": ("get_runtime_context",),
    "framework.task_group": ("task_group",),
}
#: A script loads these while its node starts, which is fastest. A program that has loaded asyncio before us
#: may start a session inside of a running loop, which must not stand still meanwhile: there they are loaded
#: with the first name.
_PARTS_OF_A_START = ("framework._boot", "framework._node.local", "framework._runtime.output")
_uses_asyncio = "asyncio" in sys.modules

_NAMES = {name: module for module, names in _WHERE.items() for name in names}
_MODULES = (
    "actor",
    "autoscaler",
    "benchmarks",
    "cluster_utils",
    "exceptions",
    "object_ref",
    "remote_function",
    "runtime_context",
    "util",
)

__all__ = [
    "Actor",
    "ActorClass",
    "ActorHandle",
    "ActorID",
    "DynamicObjectRefGenerator",
    "JobID",
    "NodeID",
    "ObjectID",
    "ObjectRef",
    "ObjectRefGenerator",
    "PlacementGroupID",
    "RemoteFunction",
    "RetryPolicy",
    "TaskID",
    "WorkerID",
    "actor",
    "available_resources",
    "cancel",
    "cloudpickle",
    "cluster_resources",
    "detach",
    "empty",
    "empty_like",
    "exceptions",
    "get",
    "get_actor",
    "get_gpu_ids",
    "get_runtime_context",
    "init",
    "is_initialized",
    "kill",
    "method",
    "nodes",
    "put",
    "remote",
    "runtime_context",
    "shutdown",
    "task_group",
    "util",
    "wait",
    "zeros",
]


def __getattr__(name: str) -> Any:
    module = _NAMES.get(name)
    if module is not None:
        importlib.import_module("framework._session")  # for the automatic init on first use
        if _uses_asyncio and name in ("init", "remote"):
            for part in _PARTS_OF_A_START:
                importlib.import_module(part)
        value = getattr(importlib.import_module(module), name)
    elif name in _MODULES:
        value = importlib.import_module(f"framework.{name}")
    elif name == "cloudpickle":
        value = importlib.import_module("cloudpickle")
    else:
        raise AttributeError(f"module 'framework' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def preload() -> None:
    """Load all public modules now (the zygote does, before it forks workers)."""
    for name in __all__:
        getattr(importlib.import_module("framework"), name)
