"""The catalogue: every message that one process may send to another.

A message is a msgpack array ``[opcode, field, ...]``. `CATALOGUE` gives each opcode its name and the type of
each field; `check` holds a received frame against it. Messages with a field ``rid`` first are *calls*: they
are answered by REPLY or FAIL with the same number.

`value` fields hold wire values (see `framework._serial.values`); the services of head and node pass them on
and never unpickle them.
"""

from __future__ import annotations

from typing import Any, Final

from framework._wire import shapes
from framework.exceptions import ProtocolError

# connection
HELLO: Final = 1
WELCOME: Final = 2
REPLY: Final = 3
FAIL: Final = 4
# owner <-> node: leases
LEASE_KEY: Final = 10
LEASE_DEMAND: Final = 11
LEASE_GRANT: Final = 12
LEASE_INFEASIBLE: Final = 13
LEASE_RETURN: Final = 14
LEASE_LOST: Final = 15
LEASE_PRESSURE: Final = 16
LEASE_FORGET: Final = 17
# worker <-> node
BLOCKED: Final = 20
UNBLOCKED: Final = 21
EXIT: Final = 22
EXIT_DENIED: Final = 23
ACTOR_RUN: Final = 24
ACTOR_UP: Final = 25
LOG_LINES: Final = 26
LOG_FLUSH: Final = 27
KILL_WORKER: Final = 28
LEAVING: Final = 29
RETIRED: Final = 79
# owner -> worker
FUNCTION: Final = 30
TEMPLATE: Final = 31
LEASE_BEGIN: Final = 32
TASK: Final = 33
CANCEL: Final = 34
RECLAIM: Final = 35
CREDIT: Final = 36
RELEASE_HELD: Final = 37
FORGET: Final = 38
TASKS: Final = 39
# worker -> owner
DONE: Final = 40
DONE_MANY: Final = 41
ITEM: Final = 42
RETURNED: Final = 43
RETIRING: Final = 44
FAILED: Final = 45
ARG_LOST: Final = 46
DONES: Final = 47
ITEMS: Final = 48
# borrower <-> owner
FETCH: Final = 50
BORROW: Final = 51
UNBORROW: Final = 52
NEXT_ITEM: Final = 53
CANCEL_REF: Final = 54
CLOSE_STREAM: Final = 55
RECOVER: Final = 56
LIST_OBJECTS: Final = 57
PROCESSES: Final = 58
CENSUS: Final = 59
BORROW_AGAIN: Final = 49
# driver, worker, node <-> head
JOB_START: Final = 60
ACTOR_CREATE: Final = 61
ACTOR_FIND: Final = 62
ACTOR_WATCH: Final = 63
ACTOR_STATE: Final = 64
ACTOR_KILL: Final = 65
ACTOR_PLACE: Final = 66
ACTOR_PLACED: Final = 67
ACTOR_GONE: Final = 68
NODE_JOIN: Final = 69
NODE_LOAD: Final = 70
NODES: Final = 71
RESOURCES: Final = 72
ACTOR_LIST: Final = 73
ACTOR_END: Final = 74
NODE_STOP: Final = 75
ACTOR_SAVE: Final = 76
ACTOR_RESTART: Final = 77
JOB_OVER: Final = 78

# processes of a node <-> its store
STORE_CREATE: Final = 80
STORE_LEASE: Final = 81
STORE_ADOPT: Final = 82
STORE_SEAL: Final = 83
STORE_ABORT: Final = 84
STORE_PIN: Final = 85
STORE_UNPIN: Final = 86
STORE_FREE: Final = 87
STORE_RETURN: Final = 88
STORE_RECALL: Final = 89
STORE_LIST: Final = 90
STORE_PIN_MANY: Final = 91

# head <-> nodes, and what drivers and tools ask the head
NODE_VIEW: Final = 100
NODE_GONE: Final = 101
NODE_DRAIN: Final = 102
NODE_LEAVE: Final = 103
OWNER_GONE: Final = 104
JOB_END: Final = 105
HEAD_DEMAND: Final = 106
ACTOR_REFUSED: Final = 107
ACTOR_WARNING: Final = 108
HEAD_STOP: Final = 109
NODE_HOLDS: Final = 110
ACTOR_RECALL: Final = 111

# node <-> node: leases of workers elsewhere
FORWARD: Final = 120
FORWARDED: Final = 121
FORWARD_REFUSED: Final = 122
FORWARD_RETURN: Final = 123
FORWARD_LOST: Final = 124
FORWARD_RECALL: Final = 125
FORWARD_HELD: Final = 126
FORWARD_FAILED: Final = 127
FORWARD_KILL: Final = 131
NEIGHBOUR_MISSED: Final = 133
# node <-> owner: leases, what came later
FORWARD_WISH: Final = 132
LEASE_RECALL: Final = 128
LEASE_WAITS: Final = 129
LEASE_WHY: Final = 130

# objects across nodes: processes <-> their node, node <-> node
STORE_PULL: Final = 140
STORE_PREFETCH: Final = 141
STORE_FREE_AT: Final = 142
STORE_REPLICATE: Final = 143
STORE_UNPULL: Final = 155
OBJECT_FREE: Final = 144
OBJECT_WHO_HAS: Final = 145
OBJECT_COPIED: Final = 146
OBJECT_KEEP: Final = 147
OWNER_WATCH: Final = 148
OWNER_ENDED: Final = 149

# placement groups: processes <-> head, head <-> nodes
GROUP_CREATE: Final = 160
GROUP_REMOVE: Final = 161
GROUP_WATCH: Final = 162
GROUP_STATE: Final = 163
GROUP_FIND: Final = 164
GROUP_TABLE: Final = 165
GROUP_PREPARE: Final = 166
GROUP_PREPARED: Final = 167
GROUP_COMMIT: Final = 168
GROUP_COMMITTED: Final = 169
GROUP_RETURN: Final = 170

# processes of a cluster: credentials, output, lists
CREDENTIALS: Final = 180
JOB_NODE: Final = 181
OUTPUT: Final = 182
OUTPUT_FLUSH: Final = 183
LOG_LINES_FROM: Final = 184
NODE_PROCESSES: Final = 185
NODE_END: Final = 186
ACTOR_TABLE: Final = 187
NODE_STORES: Final = 188
NODE_ENDS: Final = 189

NoneType = type(None)
Types = type | tuple[type, ...]
ANY: Final = object

_INT_LIST = (list,)
_OPT_MAP = (dict, NoneType)
_OPT_STR = (str, NoneType)
_OPT_BYTES = (bytes, NoneType)
_OPT_INT = (int, NoneType)
_NUMBER = (int, float)


class Message:
    """One row of the catalogue."""

    __slots__ = ("arity", "fields", "is_call", "name", "shapes", "types")

    def __init__(self, name: str, /, **fields: Types) -> None:
        self.name = name
        self.fields = tuple(fields)
        self.types: tuple[Types, ...] = tuple(fields.values())
        self.arity = 1 + len(fields)
        self.is_call = self.fields[:1] == ("rid",)
        self.shapes: tuple[tuple[int, shapes.Shape], ...] = ()  #: by place in the frame, see `SHAPES`


CATALOGUE: Final[dict[int, Message]] = {
    HELLO: Message("hello", version=int, kind=str, ident=bytes, pid=int, address=str, info=dict),
    WELCOME: Message("welcome", version=int, ident=bytes, info=dict),
    REPLY: Message("reply", rid=int, value=ANY),
    FAIL: Message("fail", rid=int, error=list),
    # A scheduling key (resource shape, environment, strategy) is described once and then named by a number.
    LEASE_KEY: Message(
        "lease_key",
        key=int,
        resources=dict,
        env=_OPT_MAP,
        strategy=(list, NoneType),
        retriable=bool,
        priority=int,
        near=bytes,  # the node that holds most of its tasks' arguments; empty: any
    ),
    # These keys will not be named any more.
    LEASE_FORGET: Message("lease_forget", keys=list),
    # `wanted` more leases beyond the `seen` grants that had arrived when this was sent: may be repeated.
    LEASE_DEMAND: Message("lease_demand", key=int, wanted=int, seen=int),
    LEASE_GRANT: Message("lease_grant", key=int, lease=int, worker=bytes, address=str, gpus=list),
    # `forever`: no node can serve it; else it could not be served now (`error` is the name of a class in
    # exceptions).
    LEASE_INFEASIBLE: Message("lease_infeasible", key=int, forever=bool, error=str, text=str),
    LEASE_RETURN: Message("lease_return", lease=int),
    LEASE_LOST: Message("lease_lost", lease=int, running=int, pid=int, detail=str, kind=str),
    LEASE_PRESSURE: Message("lease_pressure"),
    BLOCKED: Message("blocked"),
    UNBLOCKED: Message("unblocked"),
    EXIT: Message("exit", force=bool, reason=str),
    EXIT_DENIED: Message("exit_denied"),
    JOB_OVER: Message("job_over"),
    ACTOR_RUN: Message("actor_run", actor=bytes, spec=dict, gpus=list, restarted=int),
    ACTOR_UP: Message("actor_up", actor=bytes, error=(list, NoneType)),
    LOG_LINES: Message("log_lines", pid=int, is_err=bool, lines=list),
    LOG_FLUSH: Message("log_flush", rid=int),
    KILL_WORKER: Message("kill_worker", worker=bytes, reason=str),
    LEAVING: Message("leaving", reason=str),
    # It takes no more tasks, and stays for what it owns: its lease is over.
    RETIRED: Message("retired"),
    FUNCTION: Message("function", hash=bytes, payload=bytes),
    # Templates and functions (their hashes) that are not named any more by tasks to come.
    FORGET: Message("forget", templates=list, functions=list),
    TEMPLATE: Message("template", template=int, spec=dict),
    LEASE_BEGIN: Message("lease_begin", lease=int, gpus=list, omp=int),
    TASK: Message("task", unique=int, template=int, args=list, kwargs=_OPT_MAP, extra=_OPT_MAP),
    # Several of these frames: [[TASK, ...], ...].
    TASKS: Message("tasks", tasks=list),
    CANCEL: Message("cancel", unique=int, force=bool, recursive=bool, reason=str),
    RECLAIM: Message("reclaim", most=int),
    CREDIT: Message("credit", unique=int, credits=int),
    RELEASE_HELD: Message("release_held", unique=int, index=int),
    DONE: Message("done", unique=int, micros=int, value=ANY),
    # The fields of several of these, one after the other: [unique, micros, value, ...].
    DONES: Message("dones", results=list),
    DONE_MANY: Message("done_many", unique=int, micros=int, values=list),
    FAILED: Message("failed", unique=int, micros=int, retryable=bool, error=list),
    ARG_LOST: Message("arg_lost", unique=int, object=bytes),
    ITEM: Message("item", unique=int, index=int, value=ANY),
    # Several of these that follow on each other; `index`: that of the first.
    ITEMS: Message("items", unique=int, index=int, values=list),
    RETURNED: Message("returned", uniques=list, blocked=bool),
    RETIRING: Message("retiring"),
    FETCH: Message("fetch", rid=int, object=bytes, value_wanted=bool),
    BORROW: Message("borrow", rid=int, objects=list),
    UNBORROW: Message("unborrow", objects=list),
    # all that a process borrows, whose connection was lost: [object], and of generators [[object, reader,
    # items received]]
    BORROW_AGAIN: Message("borrow_again", rid=int, objects=list, streams=list),
    NEXT_ITEM: Message("next_item", rid=int, generator=bytes, reader=int, received=int),
    CANCEL_REF: Message("cancel_ref", object=bytes, force=bool, recursive=bool),
    CLOSE_STREAM: Message("close_stream", generator=bytes),
    RECOVER: Message("recover", rid=int, object=bytes, stored=bytes, node=bytes),
    LIST_OBJECTS: Message("list_objects", rid=int),
    PROCESSES: Message("processes", rid=int),
    # Of a driver, worker, node or head: what it holds, see `framework._service.census`.
    CENSUS: Message("census", rid=int),
    JOB_START: Message("job_start", rid=int, info=dict),
    ACTOR_CREATE: Message("actor_create", rid=int, actor=bytes, spec=dict),
    ACTOR_FIND: Message("actor_find", rid=int, name=str, namespace=str),
    ACTOR_WATCH: Message("actor_watch", actor=bytes),
    ACTOR_STATE: Message(
        "actor_state", actor=bytes, state=str, address=str, incarnation=int, detail=_OPT_MAP
    ),
    ACTOR_KILL: Message("actor_kill", rid=int, actor=bytes, no_restart=bool, reason=str),
    ACTOR_PLACE: Message("actor_place", actor=bytes, spec=dict, incarnation=int),
    ACTOR_PLACED: Message(
        "actor_placed",
        actor=bytes,
        incarnation=int,
        worker=bytes,
        address=str,
        pid=int,
        error=(list, NoneType),
    ),
    ACTOR_GONE: Message(
        "actor_gone", actor=bytes, incarnation=int, detail=str, intended=bool, running=int, kind=str
    ),
    # `stored`: its object id, where the state is in the store.
    ACTOR_SAVE: Message("actor_save", rid=int, actor=bytes, incarnation=int, state=ANY, stored=_OPT_BYTES),
    ACTOR_RESTART: Message("actor_restart", rid=int, actor=bytes),
    ACTOR_END: Message("actor_end", actor=bytes, incarnation=int, force=bool, reason=str),
    # `info`: a row, and what lives there (see `framework._node.head_link`). Answered with {}, and NODE_VIEW.
    NODE_JOIN: Message("node_join", rid=int, info=dict),
    # `pending`: what waits for resources, [[units, strategy, count], ...]. `total`: when it has changed.
    # `seen`: how many ACTOR_PLACE of this connection are reckoned in. `busy`: workers that have something to
    # do.
    NODE_LOAD: Message("node_load", available=dict, pending=list, total=_OPT_MAP, seen=int, busy=int),
    # Rows of nodes that are new or have changed; at first, of all.
    NODE_VIEW: Message("node_view", rows=list),
    # The head's verdict, to all nodes, which tell it to their processes.
    NODE_GONE: Message("node_gone", node=bytes, reason=str),
    # To the head: no new work for this node. Answered when nothing is left there.
    NODE_DRAIN: Message("node_drain", rid=int, node=bytes, reason=str),
    # What is left there: {"actors": texts, "tasks": so many, "objects": so many without a copy elsewhere,
    # "bytes": of these, "lost": so many found no room elsewhere, "lost_bytes"}. The head asks the node.
    NODE_HOLDS: Message("node_holds", rid=int, node=bytes),
    # From a node that ends in an orderly way.
    NODE_LEAVE: Message("node_leave", reason=str),
    # From its node: a driver or worker has ended (a driver's `job` with it).
    OWNER_GONE: Message("owner_gone", owner=bytes, kind=str, job=bytes),
    # From the head to all nodes: this job's driver is gone.
    JOB_END: Message("job_end", job=bytes),
    # What waits for room in the cluster: {"pending": [...], "groups": [...], "nodes": rows}.
    HEAD_DEMAND: Message("head_demand", rid=int),
    # To a node: another one has room for this actor. If it still waits there, the answer is ACTOR_REFUSED.
    ACTOR_RECALL: Message("actor_recall", actor=bytes, incarnation=int),
    # From a node: it has no room for this actor now.
    ACTOR_REFUSED: Message("actor_refused", actor=bytes, incarnation=int, available=dict),
    # To the owner of an actor that cannot be placed for now.
    ACTOR_WARNING: Message("actor_warning", actor=bytes, text=str),
    # To the head: the whole cluster ends.
    HEAD_STOP: Message("head_stop", rid=int, reason=str),
    NODES: Message("nodes", rid=int),
    RESOURCES: Message("resources", rid=int, available=bool),
    ACTOR_LIST: Message("actor_list", rid=int, namespace=_OPT_STR),
    NODE_STOP: Message("node_stop", reason=str),
    STORE_CREATE: Message("store_create", rid=int, object=bytes, size=int, owner=bytes),
    STORE_LEASE: Message("store_lease", rid=int, size=int),
    STORE_ADOPT: Message("store_adopt", object=bytes, offset=int, size=int, owner=bytes),
    STORE_SEAL: Message("store_seal", object=bytes, offset=int, owner=bytes, keep=bool),
    STORE_ABORT: Message("store_abort", object=bytes, offset=int),
    # `node`: where the primary copy is, b"" in a session of one machine; `size` of it.
    STORE_PIN: Message("store_pin", rid=int, object=bytes, node=bytes, size=int),
    STORE_UNPIN: Message("store_unpin", objects=list, offsets=list),
    STORE_FREE: Message("store_free", objects=list),
    STORE_RETURN: Message("store_return", offset=int),
    STORE_RECALL: Message("store_recall", objects=list),
    STORE_LIST: Message("store_list", rid=int),
    STORE_PIN_MANY: Message("store_pin_many", rid=int, objects=list),
    # Have a copy on this node: answered when it is here.
    STORE_PULL: Message("store_pull", rid=int, object=bytes, node=bytes, size=int),
    # Who asked for that by STORE_PULL does not wait any more; it is answered.
    STORE_UNPULL: Message("store_unpull", object=bytes),
    # Arguments of tasks that will run here: [[object id, node, size], ...].
    STORE_PREFETCH: Message("store_prefetch", objects=list),
    # Free objects whose primary copy is on another node (b"": on whatever node).
    STORE_FREE_AT: Message("store_free_at", node=bytes, objects=list),
    # Have `copies` copies of an object of this node on others, that stay until it is freed; how many there
    # are.
    STORE_REPLICATE: Message("store_replicate", rid=int, object=bytes, size=int, copies=int),
    # `how`: see `framework._node.objects_across`.
    OBJECT_FREE: Message("object_free", rid=int, objects=list, how=int),
    OBJECT_WHO_HAS: Message("object_who_has", rid=int, object=bytes),
    # To whom it was copied from: the copy is complete (`here`), or gone, or was given up.
    OBJECT_COPIED: Message("object_copied", object=bytes, here=bool),
    # Copy this object of the node that asks, and keep it as if it were the primary.
    OBJECT_KEEP: Message("object_keep", rid=int, object=bytes, size=int),
    # Tell when this process of the node has ended.
    OWNER_WATCH: Message("owner_watch", owner=bytes),
    OWNER_ENDED: Message("owner_ended", owner=bytes),
    # A node asks another for leases, which it names by its own numbers. Each is granted, refused (for want of
    # room, with the row as it is now) or failed (no worker could be started). Nothing waits in a queue there.
    FORWARD: Message(
        "forward", leases=list, job=bytes, units=dict, env=_OPT_MAP, retriable=bool, priority=int
    ),
    FORWARDED: Message("forwarded", lease=int, worker=bytes, address=str, gpus=list),
    FORWARD_REFUSED: Message("forward_refused", leases=list, row=dict),
    FORWARD_FAILED: Message("forward_failed", lease=int, error=str, text=str),
    # `kill`: why its worker must end, because it may be running something; empty: it is idle.
    FORWARD_RETURN: Message("forward_return", lease=int, kill=str),
    FORWARD_LOST: Message("forward_lost", lease=int, running=int, pid=int, detail=str, kind=str),
    # Leases that are wanted back; with an empty list, those that are idle.
    FORWARD_RECALL: Message("forward_recall", leases=list),
    # All leases that the sender has from the receiver: after a lost connection.
    FORWARD_HELD: Message("forward_held", leases=list),
    NEIGHBOUR_MISSED: Message("neighbour_missed"),
    FORWARD_KILL: Message("forward_kill", lease=int, reason=str),
    # What waits at the sender, and finds no room here; said again as long as that is so. `waited`: seconds.
    FORWARD_WISH: Message("forward_wish", job=bytes, units=dict, priority=int, waited=_NUMBER),
    # To the owner: give this one back when its running task is done.
    LEASE_RECALL: Message("lease_recall", lease=int),
    # To the owner: nobody can serve this now, for this reason, but somebody may join who can.
    LEASE_WAITS: Message("lease_waits", key=int, text=str),
    # Answered with what the node knows of the request, see `framework._state.node.NodeState.why`.
    LEASE_WHY: Message("lease_why", rid=int, key=int),
    GROUP_CREATE: Message("group_create", rid=int, group=bytes, spec=dict),
    GROUP_REMOVE: Message("group_remove", rid=int, group=bytes),
    GROUP_WATCH: Message("group_watch", group=bytes),
    # `detail`: see `framework._state.placement`.
    GROUP_STATE: Message("group_state", group=bytes, state=str, detail=dict),
    GROUP_FIND: Message("group_find", rid=int, name=str, namespace=str),
    GROUP_TABLE: Message("group_table", rid=int, group=_OPT_BYTES),
    # `bundles`: [[index, units], ...] of the group, for this node. `attempt` grows with each try to place it.
    GROUP_PREPARE: Message("group_prepare", group=bytes, attempt=int, bundles=list),
    GROUP_PREPARED: Message("group_prepared", group=bytes, attempt=int, text=_OPT_STR),
    GROUP_COMMIT: Message("group_commit", group=bytes, attempt=int, bundles=list),
    GROUP_COMMITTED: Message("group_committed", group=bytes, attempt=int, text=_OPT_STR),
    # `attempt` < 0: all that the node holds for the group; else what it has prepared in that attempt.
    GROUP_RETURN: Message("group_return", group=bytes, attempt=int, reason=str),
    # From a process that has proved itself: what else it must know of the cluster ({"cluster_id",
    # "certificate", "key"}).
    CREDENTIALS: Message("credentials", rid=int),
    # To the head: the node where a job's driver is (its id; None: not known).
    JOB_NODE: Message("job_node", rid=int, job=bytes),
    # Between nodes: lines that a worker has printed, on their way to the driver of their job. Answered when
    # that takes more.
    OUTPUT: Message("output", rid=int, job=bytes, host=str, pid=int, is_err=bool, lines=list),
    # Between nodes: send all that was printed for this job so far.
    OUTPUT_FLUSH: Message("output_flush", rid=int, job=bytes),
    LOG_LINES_FROM: Message("log_lines_from", host=str, pid=int, is_err=bool, lines=list),
    # To a node manager: the processes of all nodes.
    NODE_PROCESSES: Message("node_processes", rid=int),
    # The same, for what is in their stores: a list of maps (node_id, objects, stats).
    NODE_STORES: Message("node_stores", rid=int),
    # A node of a cluster to its drivers: it ends in order, and why.
    NODE_ENDS: Message("node_ends", reason=str),
    # To the head: facts of all actors that it knows, the dead that are remembered among them.
    ACTOR_TABLE: Message("actor_table", rid=int),
    # From a tool to the head: this node is to end, in order.
    NODE_END: Message("node_end", rid=int, node=bytes, reason=str),
}

SHAPES: Final[dict[int, dict[str, shapes.Shape]]] = {
    HELLO: {"info": shapes.PEER},
    LEASE_KEY: {"resources": shapes.units, "env": shapes.maybe(shapes.texts), "strategy": shapes.strategy},
    TEMPLATE: {"spec": shapes.TASK},
    FORGET: {"templates": shapes.numbers, "functions": shapes.ids},
    LEASE_FORGET: {"keys": shapes.numbers},
    RETURNED: {"uniques": shapes.numbers},
    STORE_UNPIN: {"objects": shapes.ids, "offsets": shapes.numbers},
    STORE_FREE: {"objects": shapes.ids},
    STORE_RECALL: {"objects": shapes.ids},
    STORE_PIN_MANY: {"objects": shapes.ids},
    STORE_FREE_AT: {"objects": shapes.ids},
    STORE_PREFETCH: {"objects": shapes.each(shapes.row(bytes, bytes, int))},
    OBJECT_FREE: {"objects": shapes.ids},
    ACTOR_CREATE: {"spec": shapes.ACTOR},
    ACTOR_PLACE: {"spec": shapes.ACTOR},
    ACTOR_RUN: {"spec": shapes.ACTOR},
    ACTOR_REFUSED: {"available": shapes.units},
    NODE_JOIN: {"info": shapes.NODE},
    NODE_LOAD: {
        "available": shapes.units,
        "pending": shapes.PENDING,
        "total": shapes.maybe(shapes.units),
    },
    FORWARD: {"leases": shapes.numbers, "units": shapes.units, "env": shapes.maybe(shapes.texts)},
    FORWARD_REFUSED: {"leases": shapes.numbers, "row": shapes.NODE},
    FORWARD_RECALL: {"leases": shapes.numbers},
    FORWARD_HELD: {"leases": shapes.numbers},
    FORWARD_WISH: {"units": shapes.units},
    GROUP_PREPARE: {"bundles": shapes.BUNDLES},
    GROUP_COMMIT: {"bundles": shapes.BUNDLES},
}
for _opcode, _fields in SHAPES.items():
    _message = CATALOGUE[_opcode]
    _message.shapes = tuple((1 + _message.fields.index(name), shape) for name, shape in _fields.items())

#: Frames of the hot path: their fields are taken apart by the handler, so only the length is checked here.
HOT: Final = frozenset({TASK, TASKS, DONE, DONES, ITEM, ITEMS, REPLY, DONE_MANY})


def check(frame: object) -> int:
    """The opcode of a received frame; `ProtocolError` unless it is a message of the catalogue."""
    if type(frame) is not list or not frame or type(frame[0]) is not int:
        raise ProtocolError(f"a frame must be an array that starts with an opcode, got {_brief(frame)}")
    opcode: int = frame[0]
    message = CATALOGUE.get(opcode)
    if message is None:
        raise ProtocolError(f"unknown opcode {opcode}")
    if len(frame) != message.arity:
        raise ProtocolError(f"{message.name}: {len(frame) - 1} fields instead of {message.arity - 1}")
    if opcode not in HOT:
        _check_fields(message, frame)
        for place, shape in message.shapes:
            if not shape(frame[place]):
                raise ProtocolError(
                    f"{message.name}: the content of field {message.fields[place - 1]!r} is not as it must be"
                )
    return opcode


def blame(frame: list[Any]) -> None:
    """After the handler of a message has failed: `ProtocolError` if that was no wonder, as its fields are not
    what they must be. (Of hot messages they are not looked at before.)"""
    message = CATALOGUE[frame[0]]
    if frame[0] in HOT:
        _check_fields(message, frame)
    for place, shape in _LATE.get(frame[0], ()):
        if not shape(frame[place]):
            raise ProtocolError(f"{message.name}: the content of its fields is not as it must be")


_LATE: Final[dict[int, tuple[tuple[int, shapes.Shape], ...]]] = {
    TASKS: ((1, shapes.each(shapes.row(int, int, int, list, shapes.MAP, shapes.MAP))),),
    DONES: ((1, shapes.results),),
    BORROW: ((2, shapes.ids),),
    UNBORROW: ((1, shapes.ids),),
}


def _check_fields(message: Message, frame: list[Any]) -> None:
    for field, value, allowed in zip(message.fields, frame[1:], message.types, strict=True):
        if not isinstance(value, allowed):
            raise ProtocolError(f"{message.name}: field {field!r} cannot be {_brief(value)}")


def _brief(value: object) -> str:
    """What it is. (Not more of it: it may be large, deep, or nothing for the log of others.)"""
    if value is None or isinstance(value, bool | int | float):
        return f"{type(value).__name__} {value!r:.30}"
    size = f" of {len(value)}" if isinstance(value, str | bytes | list | dict) else ""
    return f"{type(value).__name__}{size}"
