"""The file that ``python -m framework start --head --autoscale FILE`` reads: JSON,

{"idle_timeout": 60, "interval": 1, "max_nodes": 20,
 "node_types": {"small": {"resources": {"CPU": 2}, "labels": {}, "min_nodes": 0, "max_nodes": 10}}}

Its nodes are processes on this machine (`LocalNodeProvider`)."""

from __future__ import annotations

import json
from typing import Any

from framework._base import resources as res
from framework._init_checks import checked_labels
from framework.autoscaler.autoscaler import Autoscaler, local_facts
from framework.autoscaler.local import LocalNodeProvider
from framework.autoscaler.provider import NodeType

_OPTIONS = ("idle_timeout", "interval", "max_nodes")
_OF_TYPE = ("resources", "labels", "min_nodes", "max_nodes")


def read_config(path: str) -> tuple[list[NodeType], dict[str, Any]]:
    """The node types, and the options of `Autoscaler`. OSError when it cannot be read, `ValueError` when it
    does not say what is expected."""
    with open(path) as file:
        try:
            found = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from None
    kinds = found.get("node_types") if isinstance(found, dict) else None
    if not isinstance(kinds, dict) or not kinds:
        raise ValueError(f"{path} has no 'node_types': an object from names to what these nodes offer")
    unknown = [name for name in found if name not in (*_OPTIONS, "node_types")]
    if unknown:
        raise ValueError(f"{path}: {unknown[0]!r} is unknown; known: {', '.join(_OPTIONS)}, node_types")
    types = []
    for name, kind in kinds.items():
        if not isinstance(kind, dict) or not isinstance(kind.get("resources"), dict):
            raise ValueError(f"{path}: node type {name!r} has no 'resources'")
        wrong = [option for option in kind if option not in _OF_TYPE]
        if wrong:
            raise ValueError(
                f"{path}: node type {name!r}: {wrong[0]!r} is unknown; known: {', '.join(_OF_TYPE)}"
            )
        try:
            types.append(_node_type(name, kind))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: node type {name!r}: {error}") from None
    options = {name: found[name] for name in _OPTIONS if name in found}
    for name, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ValueError(f"{path}: {name} is a number of 0 or more, got {value!r}")
    return types, options


def _node_type(name: str, kind: dict[str, Any]) -> NodeType:
    for resource, amount in kind["resources"].items():
        res.to_units(amount, resource)
    for option in ("min_nodes", "max_nodes"):
        value = kind.get(option, 0)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValueError(f"{option} is a whole number, got {value!r}")
    return NodeType(name, **{**kind, "labels": checked_labels(kind.get("labels"))})


def autoscaler_of(session_dir: str, path: str) -> Autoscaler:
    """As the file says, for the cluster of a session on this machine; not started."""
    types, options = read_config(path)
    return Autoscaler(session_dir, types, LocalNodeProvider(local_facts(session_dir)), **options)
