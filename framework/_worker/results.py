"""From what a task returns, raises or yields to the frame that tells its owner."""

from __future__ import annotations

import asyncio
import pickle
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._base.ids import object_id_bytes
from framework._net.connection import Connection
from framework._runtime.context import TaskContext
from framework._serial import values
from framework._serial.errors import encode_error
from framework._serial.pickler import PROTOCOL
from framework._wire import messages as m
from framework._worker.arguments import ArgumentLost
from framework._worker.interruption import Interrupt
from framework._worker.replies import Result
from framework._worker.templates import ExecTemplate
from framework.exceptions import FrameworkError, TaskCancelledError

if TYPE_CHECKING:
    from framework._worker.executor import Executor

#: how pickles of short bytes begin, by their length: to write these takes less time than to have them written
_SHORT_BYTES = [
    pickle.PROTO + bytes((PROTOCOL,)) + pickle.SHORT_BINBYTES + bytes((size,)) for size in range(256)
]


class Results:
    """Frames of outcomes, made by the thread that ran the task."""

    __slots__ = ("_executor", "_runtime")

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._runtime = executor.runtime

    def encode(
        self, connection: Connection, template: ExecTemplate, unique: int, micros: int, result: Any
    ) -> tuple[bytes | Result, list[Any] | None]:
        """The reply with a result (its frame, or its fields if they are small), and the references in it."""
        returns = template.returns
        if returns == 1:
            kind = type(result)
            if kind in values.ATOM_TYPES and values.is_atom(result):
                if kind is not str or len(result) <= limits.LIGHT_ARGUMENT:
                    return (unique, micros, result), None
                return self._executor.thread.pack((m.DONE, unique, micros, result)), None
            if kind is bytes and (size := len(result)) <= limits.LIGHT_ARGUMENT:
                if size < 256:
                    return (unique, micros, _SHORT_BYTES[size] + result + pickle.STOP), None
                return (unique, micros, pickle.dumps(result, PROTOCOL)), None
            wire, refs = self._wire_of(
                connection, template, unique, 1, result, f"the result of {template.name}()"
            )
            if type(wire) is bytes and len(wire) <= limits.LIGHT_ARGUMENT:
                return (unique, micros, wire), refs
            return self._executor.thread.pack((m.DONE, unique, micros, wire)), refs
        pack = self._executor.thread.pack
        if returns < 0:
            return pack((m.DONE, unique, micros, result)), None
        if returns == 0:
            return pack((m.DONE_MANY, unique, micros, [])), None
        results = self._split(template, result)
        wires: list[Any] = []
        held: list[Any] = []
        atoms, is_atom = values.ATOM_TYPES, values.is_atom
        for index, value in enumerate(results):
            kind = type(value)
            if kind in atoms and is_atom(value) and (kind is not str or len(value) <= limits.FULL_INLINE):
                wires.append(value)
                continue
            where = f"result {index} of {template.name}()"
            wire, refs = self._wire_of(connection, template, unique, index + 1, value, where)
            wires.append(wire)
            held.extend(refs)
        return pack((m.DONE_MANY, unique, micros, wires)), held

    def _wire_of(
        self, connection: Connection, template: ExecTemplate, unique: int, index: int, value: Any, where: str
    ) -> tuple[Any, list[Any]]:
        """A result in wire form, and the references in it. Large ones go into the store, as objects of the
        caller.
        """
        sealed = self._runtime.store.seal_array(value, connection.ident, connection.state.address)
        if sealed is not None:
            return sealed, []
        encoded = values.encode(value, where=where, name="result")
        if encoded.size > (limits.FULL_INLINE if connection.full else limits.INLINE_LIMIT):
            object_id = object_id_bytes(self._executor.contexts[unique].task_id, index)
            store = self._runtime.store
            return store.put(object_id, encoded, connection.ident, connection.state.address), encoded.refs
        return encoded.wire, encoded.refs

    @staticmethod
    def _split(template: ExecTemplate, result: Any) -> list[Any]:
        try:
            results = list(result)
        except TypeError:
            raise ValueError(
                f"{template.name}() has num_returns={template.returns}, so it must return that many values; "
                f"it returned one {type(result).__name__}, which cannot be taken apart"
            ) from None
        if len(results) != template.returns:
            raise ValueError(
                f"{template.name}() has num_returns={template.returns}, but returned {len(results)} values"
            )
        return results

    def encode_error(
        self, template: ExecTemplate, context: TaskContext, micros: int, error: BaseException
    ) -> tuple[bytes, list[Any] | None]:
        """The frame of an exception, and the references in it. Never raises."""
        unique = context.unique
        if isinstance(error, ArgumentLost):
            return self._executor.thread.pack((m.ARG_LOST, unique, error.object_id)), None
        reason = self._executor.reasons.get(unique)
        retryable = False
        if reason is not None and isinstance(
            error, Interrupt | asyncio.CancelledError | GeneratorExit | FrameworkError
        ):
            error = self._executor.cancel_error(unique, reason)
        else:
            if isinstance(error, SystemExit):
                error = (
                    _exit_error(error)
                    if self._executor.actor is None
                    else self._executor.actor.exit_error(template, error)
                )
            try:
                retryable = template.retryable(error)
            except Exception as problem:
                error.__context__ = problem
        if isinstance(error, TaskCancelledError) and error.task_id is None:
            error = TaskCancelledError(context.task_id.hex(), error.reason)
        wire, refs = encode_error(
            error,
            function_name=template.name,
            pid=self._runtime.pid,
            ip=self._runtime.config.node_ip,
            task_id=context.task_id.hex(),
            actor=self._executor.actor.describe() if self._executor.actor is not None else None,
        )
        return self._executor.thread.pack((m.FAILED, unique, micros, retryable, wire)), refs

    def item(
        self, connection: Connection, template: ExecTemplate, unique: int, index: int, value: Any
    ) -> tuple[Any, list[Any]]:
        """An item of a stream in wire form, and the references in it."""
        where = f"item {index} of {template.name}()"
        return self._wire_of(connection, template, unique, index + 2, value, where)


def _exit_error(error: SystemExit) -> BaseException:
    exit_error = RuntimeError(
        f"the task called sys.exit({error.code!r}); the worker goes on, the task has failed"
    )
    exit_error.__traceback__ = error.__traceback__
    return exit_error
