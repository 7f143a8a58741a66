"""One run of one seed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from framework._sim import user_programs, weather
from framework._sim.explore import faults_text
from framework._sim.faults import Faults
from framework._sim.preload import preload
from framework._sim.user_programs import Report


def simulate(
    program: Callable[[], Any],
    *,
    seed: int = 0,
    nodes: int | Sequence[Mapping[str, Any]] = 1,
    faults: Faults | str | None = None,
    scheduler: str = "walk",
    limit: float = 600.0,
    trace: bool | str | os.PathLike[str] = False,
) -> Report:
    """Run a program in a simulated cluster, as the seed decides, and return a `Report`.

    - `program`: a function or coroutine function without arguments. It is connected to the cluster already,
      and uses the API as ever; its tasks and actors may be defined anywhere.
    - `nodes`: how many, with 2 CPUs each; or a list of dicts, one for each, with the options ``num_cpus``,
      ``num_gpus``, ``resources``, ``labels`` and ``object_store_memory`` (bytes; 16 MiB). The program runs
      on the first, which has the head too, and which no fault ends.
    - `faults`: what goes wrong, and how often (by default nothing does); ``"weather"`` leaves that to the
      seed. Faults begin when all nodes have joined, and end with the program.
    - `scheduler`: ``"walk"``: of the threads that could go on any does; ``"priorities"``: the one with the
      highest priority does, and priorities change at few moments, so that some thread is slow for long.
    - `limit`: virtual seconds for the program, from its start.
    - `trace`: keep a line for each event in `Report.trace`, or write them to a file of this name.

    What the program raises reaches the caller as it is, with a note that says how to have the same run again.
    `SimulationError` when it does not end within the limit (it says who waits where), when its process ends
    before it does, or where it calls what cannot be simulated: real sockets, processes and the like. Not to
    be called inside of a simulation, in a coroutine, or while this process is connected to a session.
    """
    user_programs.check(program, nodes, scheduler, limit)
    chosen = faults_of(faults, seed)
    preload()
    path = None if isinstance(trace, bool) else os.fspath(trace)
    kept: list[Report] = []
    try:
        return user_programs.run_program(
            program,
            seed=seed,
            nodes=nodes,
            faults=chosen,
            scheduler=scheduler,
            limit=limit,
            trace=bool(trace),
            on_end=kept.append,
        )
    except Exception as error:
        error.add_note(
            f"in a simulation; to have it again: {call_text(program, seed, nodes, faults, scheduler, limit)}"
        )
        raise
    finally:
        if path is not None and kept:
            with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(f"{line}\n" for line in kept[0].trace or ())


def faults_of(faults: Faults | str | None, seed: int) -> Faults | None:
    """What goes wrong in the run of a seed."""
    if faults is None or isinstance(faults, Faults):
        return faults
    if faults == "weather":
        return weather.draw(seed).faults
    raise TypeError(f'faults is a Faults, "weather" or None; got {faults!r}')


def call_text(program: Any, seed: int, nodes: Any, faults: Any, scheduler: str, limit: float) -> str:
    """The call that has this run again."""
    name = getattr(program, "__qualname__", repr(program)).replace("<locals>.", "")
    parts = [name, f"seed={seed}"]
    parts += [f"nodes={nodes!r}"] if nodes != 1 else []
    if isinstance(faults, Faults):
        text = faults_text(faults)
        parts.append(f"faults=Faults({text.replace(',', ', ') if text != 'none' else ''})")
    elif faults is not None:
        parts.append(f"faults={faults!r}")
    parts += [f"scheduler={scheduler!r}"] if scheduler != "walk" else []
    parts += [f"limit={limit:g}"] if limit != 600.0 else []
    return f"framework.testing.simulate({', '.join(parts)})"
