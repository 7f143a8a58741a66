"""From the wire arguments of a task to the values that its function is called with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from framework._serial import values
from framework.exceptions import ObjectLostError

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime


class ArgumentLost(Exception):
    """An argument is not in the store any more: the caller has it made again."""

    def __init__(self, object_id: bytes) -> None:
        super().__init__(object_id.hex())
        self.object_id = object_id


def decode_args(
    runtime: Runtime, args: list[Any], kwargs: dict[str, Any] | None
) -> tuple[list[Any], dict[str, Any]]:
    """The values of wire arguments; references among them are fetched."""
    plain = True
    for value in args:
        if type(value) is bytes or type(value) is list:
            plain = False
            break
    if plain and not kwargs:
        return args, {}
    if len(args) == 1 and not kwargs:
        return [_decode_arg(runtime, args[0], None)], {}
    every = [*args, *kwargs.values()] if kwargs else args
    refs = {
        position: runtime.make_ref(value[1], value[2])
        for position, value in enumerate(every)
        if type(value) is list and value[0] == values.FORM_REFERENCE
    }
    wires = every
    if refs:
        runtime.waiting.get([ref._entry for ref in refs.values()], None)
        wires = list(every)
        for position, ref in refs.items():
            wires[position] = ref._entry.value
    decoded: list[Any] = [None] * len(every)
    for position in runtime.store.in_batches(wires):
        decoded[position] = _decode_arg(runtime, every[position], refs.get(position))
    keywords = dict(zip(kwargs, decoded[len(args) :], strict=True)) if kwargs else {}
    return decoded[: len(args)], keywords


def _decode_arg(runtime: Runtime, value: Any, ref: Any) -> Any:
    if type(value) is list and value[0] == values.FORM_REFERENCE:
        if ref is None:
            ref = runtime.make_ref(value[1], value[2])
        entry = ref._entry
        if not entry.state:
            runtime.waiting.get([entry], None)
        return runtime.value(entry)
    try:
        return runtime.decode(value)
    except ObjectLostError as error:
        raise ArgumentLost(value[1]) from error
