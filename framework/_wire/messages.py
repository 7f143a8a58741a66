"""The catalogue: every message that one process may send to another.

A message is a msgpack array ``[opcode, field, ...]``. `CATALOGUE` gives each opcode its name and the type of
each field; `check` holds a received frame against it. Messages with a field ``rid`` first are *calls*: they
are answered by REPLY or FAIL with the same number.

`value` fields hold wire values (see `framework._serial.values`); the services of head and node pass them on
and never unpickle them.
"""

from __future__ import annotations

from typing import Final

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
# owner -> worker
FUNCTION: Final = 30
TEMPLATE: Final = 31
LEASE_BEGIN: Final = 32
TASK: Final = 33
CANCEL: Final = 34
RECLAIM: Final = 35
CREDIT: Final = 36
RELEASE_HELD: Final = 37
# worker -> owner
DONE: Final = 40
DONE_MANY: Final = 41
ITEM: Final = 42
RETURNED: Final = 43
RETIRING: Final = 44
FAILED: Final = 45
ARG_LOST: Final = 46
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

    __slots__ = ("arity", "fields", "is_call", "name", "types")

    def __init__(self, name: str, /, **fields: Types) -> None:
        self.name = name
        self.fields = tuple(fields)
        self.types: tuple[Types, ...] = tuple(fields.values())
        self.arity = 1 + len(fields)
        self.is_call = self.fields[:1] == ("rid",)


CATALOGUE: Final[dict[int, Message]] = {
    HELLO: Message("hello", version=int, kind=str, ident=bytes, pid=int, address=str, info=dict),
    WELCOME: Message("welcome", version=int, ident=bytes, info=dict),
    REPLY: Message("reply", rid=int, value=ANY),
    FAIL: Message("fail", rid=int, error=list),
    # A scheduling key (resource shape, environment, strategy) is described once and then named by a number.
    LEASE_KEY: Message(
        "lease_key", key=int, resources=dict, env=_OPT_MAP, strategy=(list, NoneType), retriable=bool
    ),
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
    FUNCTION: Message("function", hash=bytes, payload=bytes),
    TEMPLATE: Message("template", template=int, spec=dict),
    LEASE_BEGIN: Message("lease_begin", lease=int, gpus=list, omp=int),
    TASK: Message("task", unique=int, template=int, args=list, kwargs=_OPT_MAP, extra=_OPT_MAP),
    CANCEL: Message("cancel", unique=int, force=bool, recursive=bool, reason=str),
    RECLAIM: Message("reclaim", most=int),
    CREDIT: Message("credit", unique=int, credits=int),
    RELEASE_HELD: Message("release_held", unique=int, index=int),
    DONE: Message("done", unique=int, micros=int, value=ANY),
    DONE_MANY: Message("done_many", unique=int, micros=int, values=list),
    FAILED: Message("failed", unique=int, micros=int, retryable=bool, error=list),
    ARG_LOST: Message("arg_lost", unique=int, object=bytes),
    ITEM: Message("item", unique=int, index=int, value=ANY),
    RETURNED: Message("returned", uniques=list, blocked=bool),
    RETIRING: Message("retiring"),
    FETCH: Message("fetch", rid=int, object=bytes, value_wanted=bool),
    BORROW: Message("borrow", rid=int, objects=list),
    UNBORROW: Message("unborrow", objects=list),
    NEXT_ITEM: Message("next_item", rid=int, generator=bytes),
    CANCEL_REF: Message("cancel_ref", object=bytes, force=bool, recursive=bool),
    CLOSE_STREAM: Message("close_stream", generator=bytes),
    RECOVER: Message("recover", rid=int, object=bytes, stored=bytes),
    LIST_OBJECTS: Message("list_objects", rid=int),
    PROCESSES: Message("processes", rid=int),
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
    NODE_JOIN: Message("node_join", info=dict),
    NODE_LOAD: Message("node_load", available=dict),
    NODES: Message("nodes", rid=int),
    RESOURCES: Message("resources", rid=int, available=bool),
    ACTOR_LIST: Message("actor_list", rid=int, namespace=_OPT_STR),
    NODE_STOP: Message("node_stop", reason=str),
    STORE_CREATE: Message("store_create", rid=int, object=bytes, size=int, owner=bytes),
    STORE_LEASE: Message("store_lease", rid=int, size=int),
    STORE_ADOPT: Message("store_adopt", object=bytes, offset=int, size=int, owner=bytes),
    STORE_SEAL: Message("store_seal", object=bytes, offset=int, owner=bytes, keep=bool),
    STORE_ABORT: Message("store_abort", object=bytes, offset=int),
    STORE_PIN: Message("store_pin", rid=int, object=bytes),
    STORE_UNPIN: Message("store_unpin", objects=list, offsets=list),
    STORE_FREE: Message("store_free", objects=list),
    STORE_RETURN: Message("store_return", offset=int),
    STORE_RECALL: Message("store_recall", objects=list),
    STORE_LIST: Message("store_list", rid=int),
    STORE_PIN_MANY: Message("store_pin_many", rid=int, objects=list),
}

#: Frames of the hot path: their fields are taken apart by the handler, so only the length is checked here.
HOT: Final = frozenset({TASK, DONE, ITEM, REPLY, DONE_MANY})


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
        for field, value, allowed in zip(message.fields, frame[1:], message.types, strict=True):
            if not isinstance(value, allowed):
                raise ProtocolError(f"{message.name}: field {field!r} cannot be {_brief(value)}")
    return opcode


def _brief(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
