"""From the arguments of a call to what travels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from framework._base import limits
from framework._serial import values
from framework._state.objects import Entry
from framework._state.tasks import Template

if TYPE_CHECKING:
    from framework._runtime.runtime import Runtime


def encode_args(
    runtime: Runtime, template: Template, args: Iterable[Any], kwargs: Mapping[str, Any] | None
) -> tuple[list[Any], dict[str, Any] | None, list[Any] | None, list[tuple[Any, Entry]] | None]:
    """Any thread: wire values, references to keep, and (place, entry) of arguments that are
    references.
    """
    refs: list[Any] = []
    deps: list[tuple[Any, Entry]] = []
    wire = []
    for position, value in enumerate(args):
        if values.is_atom(value):
            wire.append(value)
        else:
            wire.append(_encode_arg(runtime, template, position, value, refs, deps))
    wire_kwargs = None
    if kwargs:
        wire_kwargs = {
            name: value if values.is_atom(value) else _encode_arg(runtime, template, name, value, refs, deps)
            for name, value in kwargs.items()
        }
    return wire, wire_kwargs, refs or None, deps or None


def is_plain(args: Iterable[Any]) -> bool:
    """Whether all of these travel as they are, and are light (see `is_light`)."""
    for value in args:
        kind = type(value)
        if kind is int:
            if not values.MIN_INT <= value <= values.MAX_INT:
                return False
        elif kind is str:
            if len(value) > limits.LIGHT_ARGUMENT or not value.isascii():
                return False
        elif kind is not float and kind is not bool and value is not None:
            return False
    return True


def is_light(wire: list[Any], wire_kwargs: dict[str, Any] | None) -> bool:
    """Whether encoded arguments are so small that the loop may pack those of many tasks at a time."""
    if len(wire) > limits.LIGHT_ARGUMENTS:
        return False
    for value in wire:
        kind = type(value)
        if kind is list or ((kind is bytes or kind is str) and len(value) > limits.LIGHT_ARGUMENT):
            return False
    return not wire_kwargs or is_light(list(wire_kwargs.values()), None)


def _encode_arg(
    runtime: Runtime,
    template: Template,
    place: Any,
    value: Any,
    refs: list[Any],
    deps: list[tuple[Any, Entry]],
) -> Any:
    if isinstance(value, runtime.ref_class):
        refs.append(value)
        deps.append((place, value._entry))
        return None
    label = f"argument {place + 1}" if isinstance(place, int) else f"the argument {place!r}"
    name = f"args[{place}]" if isinstance(place, int) else place
    encoded = values.encode(value, where=f"{label} of {template.name}()", name=name)
    if encoded.size > limits.INLINE_LIMIT and not _outlives_us(template, encoded.size):
        ref = runtime.put_encoded(encoded)
        refs.append(ref)
        deps.append((place, ref._entry))
        return None
    encoded.own()
    refs.extend(encoded.refs)
    return encoded.wire


def _outlives_us(template: Template, size: int) -> bool:
    """Whether this is an argument of a detached actor, which may be restarted when this process, and what it
    has put into the store, is gone: it travels in the actor's description, which the head keeps."""
    return size <= limits.DETACHED_INLINE_LIMIT and getattr(template.options, "lifetime", None) == "detached"
