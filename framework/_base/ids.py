"""Identities, after Ray's ID specification.

======== ===== =====================================================================
id       bytes layout
======== ===== =====================================================================
JobID      4   little-endian number of the job
ActorID   16   12 unique bytes + JobID
TaskID    24   8 unique bytes + ActorID (twelve 0xff + JobID when no actor is involved)
ObjectID  28   TaskID + little-endian index: returns count from 1, puts from 2**31
NodeID    28   random
WorkerID  28   random
======== ===== =====================================================================

Hot paths carry the raw ``bytes``; the classes are what users see. The eight unique bytes of a task are
a number that each process counts up from a random base, so that no random call is needed per task.
"""

from __future__ import annotations

TYPE_CHECKING = False  # (until a node has been started, nothing loads `typing`: see `framework._session`)
if TYPE_CHECKING:
    from typing import ClassVar, Self

JOB_ID_SIZE = 4
ACTOR_UNIQUE_SIZE = 12
ACTOR_ID_SIZE = 16
TASK_UNIQUE_SIZE = 8
TASK_ID_SIZE = 24
OBJECT_ID_SIZE = 28
NODE_ID_SIZE = 28
WORKER_ID_SIZE = 28
PLACEMENT_GROUP_ID_SIZE = 18

UNIQUE_MASK = 2**64 - 1
SEVERAL_TASKS = UNIQUE_MASK  #: in place of the number of a running task: there may be many
FIRST_RETURN_INDEX = 1
FIRST_PUT_INDEX = 2**31
NO_ACTOR_PREFIX = b"\xff" * ACTOR_UNIQUE_SIZE


def job_id_bytes(number: int) -> bytes:
    """The 4-byte id of job `number`."""
    return number.to_bytes(JOB_ID_SIZE, "little")


def task_scope(job_id: bytes, actor_id: bytes | None = None) -> bytes:
    """The last 16 bytes of the id of every task of this job (or of this actor)."""
    return actor_id if actor_id is not None else NO_ACTOR_PREFIX + job_id


def task_id_bytes(unique: int, scope: bytes) -> bytes:
    """Task id from its 64-bit unique number and its `task_scope`."""
    return unique.to_bytes(TASK_UNIQUE_SIZE, "little") + scope


def task_unique(task_or_object_id: bytes) -> int:
    """The 64-bit unique number in a task id, or in the task part of an object id."""
    return int.from_bytes(task_or_object_id[:TASK_UNIQUE_SIZE], "little")


def object_id_bytes(task_id: bytes, index: int) -> bytes:
    """Object id number `index` of a task."""
    return task_id + index.to_bytes(4, "little")


def tail_of(scope: bytes) -> bytes:
    """What follows the unique number in the ids of objects that are first returns of tasks of this scope."""
    return object_id_bytes(scope, FIRST_RETURN_INDEX)


def object_index(object_id: bytes) -> int:
    """The index within its task of an object."""
    return int.from_bytes(object_id[TASK_ID_SIZE:], "little")


class BaseID:
    """A fixed-size binary identity. Immutable, hashable, comparable with its own kind."""

    SIZE: ClassVar[int] = 0
    __slots__ = ("_binary",)

    def __init__(self, binary: bytes) -> None:
        if not isinstance(binary, bytes) or len(binary) != self.SIZE:
            raise ValueError(f"{type(self).__name__} takes exactly {self.SIZE} bytes, got {binary!r}")
        self._binary = binary

    @classmethod
    def from_binary(cls, binary: bytes) -> Self:
        """The id with these bytes; `ValueError` when the length is wrong."""
        return cls(binary)

    @classmethod
    def from_hex(cls, text: str) -> Self:
        """The id written as hexadecimal digits; `ValueError` when it is none."""
        return cls(bytes.fromhex(text))

    @classmethod
    def nil(cls) -> Self:
        """The id that means «none»: all bits set."""
        return cls(b"\xff" * cls.SIZE)

    @classmethod
    def size(cls) -> int:
        """Length in bytes."""
        return cls.SIZE

    def is_nil(self) -> bool:
        return self._binary == b"\xff" * self.SIZE

    def binary(self) -> bytes:
        """The raw bytes."""
        return self._binary

    def hex(self) -> str:
        """The bytes as hexadecimal digits."""
        return self._binary.hex()

    def __bytes__(self) -> bytes:
        return self._binary

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other._binary == self._binary

    def __hash__(self) -> int:
        return hash(self._binary)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._binary.hex()})"

    def __reduce__(self) -> tuple[type[Self], tuple[bytes]]:
        return (type(self), (self._binary,))


class JobID(BaseID):
    """A driver's job."""

    SIZE = JOB_ID_SIZE
    __slots__ = ()

    @classmethod
    def from_int(cls, number: int) -> Self:
        """The id of job `number`."""
        return cls(job_id_bytes(number))

    def int(self) -> int:
        """The number of the job."""
        return int.from_bytes(self._binary, "little")


class ActorID(BaseID):
    """One actor, through all its restarts."""

    SIZE = ACTOR_ID_SIZE
    __slots__ = ()

    def job_id(self) -> JobID:
        return JobID(self._binary[ACTOR_UNIQUE_SIZE:])


class TaskID(BaseID):
    """One task, through all its attempts."""

    SIZE = TASK_ID_SIZE
    __slots__ = ()

    def actor_id(self) -> ActorID:
        """The actor whose method this task is; an id with twelve 0xff for plain tasks."""
        return ActorID(self._binary[TASK_UNIQUE_SIZE:])

    def job_id(self) -> JobID:
        return JobID(self._binary[-JOB_ID_SIZE:])


class ObjectID(BaseID):
    """One object: a return of a task, or a put."""

    SIZE = OBJECT_ID_SIZE
    __slots__ = ()

    def task_id(self) -> TaskID:
        return TaskID(self._binary[:TASK_ID_SIZE])

    def job_id(self) -> JobID:
        return self.task_id().job_id()

    def index(self) -> int:
        return object_index(self._binary)


class NodeID(BaseID):
    """One node."""

    SIZE = NODE_ID_SIZE
    __slots__ = ()


class WorkerID(BaseID):
    """One process that runs user code: a worker or a driver."""

    SIZE = WORKER_ID_SIZE
    __slots__ = ()


class PlacementGroupID(BaseID):
    """One placement group."""

    SIZE = PLACEMENT_GROUP_ID_SIZE
    __slots__ = ()
