"""What the programs of test_actor_programs.py run in workers, and how they are run: in a module of its own,
which loads neither pytest nor hypothesis.

Everything that happens is one line in a log file that all processes append to:

``init <incarnation> <pid>``                    a constructor begins
``restore <incarnation> <pid> <c:n,c:n,...>``   it has got this state back
``call <caller> <number> <pid>``                a call begins
``done <caller> <number> <pid>``                its last line
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import framework as fw
from framework._base.limits import POISON_DEATHS
from framework.exceptions import ActorDiedError, ActorUnavailableError, TaskCancelledError

LIMIT = 60


class Refused(Exception):
    """What calls raise that are to raise."""


def note(log: str, *words: object) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(fd)


def read(log: str) -> list[list[str]]:
    try:
        text = Path(log).read_text()
    except FileNotFoundError:
        return []
    return [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]


def gate(log: str, *words: object) -> str:
    """A file that opens the way for what waits."""
    return ".".join([log, *map(str, words)])


class Echo:
    async def say(self, value: Any) -> Any:
        return value


@fw.remote(num_cpus=0, max_retries=0)
def late(value: Any, before: Any) -> Any:
    """A value that is there a while after `before`."""
    time.sleep(0.02)
    return value


class _State:
    """The part that all kinds have in common: its state is the set of calls that were done."""

    def __init__(self, log: str, held: list[int], echo: list[Any]) -> None:
        self.log = log
        self.echo = echo[0]
        self.seen: list[str] = []
        self.lock = threading.Lock()
        incarnation = sum(line[0] == "init" for line in read(log))
        note(log, "init", incarnation, os.getpid())
        if incarnation in held:
            _wait_for_the_end()
        self.incarnation = incarnation

    def begin(self, caller: int, number: int) -> None:
        note(self.log, "call", caller, number, os.getpid())

    def end(self, caller: int, number: int) -> list[int]:
        with self.lock:
            self.seen.append(f"{caller}:{number}")
        note(self.log, "done", caller, number, os.getpid())
        return [caller, number]

    def special(self, what: str, caller: int, number: int) -> None:
        if what == "error":
            raise Refused(f"{caller}:{number}")
        if what == "die":
            path = gate(self.log, "died", caller, number)
            if not os.path.exists(path):
                open(path, "w").close()
                os._exit(1)

    def __framework_save__(self) -> list[str]:
        with self.lock:
            return list(self.seen)

    def __framework_restore__(self, seen: list[str]) -> None:
        self.seen = list(seen)
        note(self.log, "restore", self.incarnation, os.getpid(), ",".join(seen))


def _wait_for_the_end() -> None:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:  # whoever reads the log ends this process
        time.sleep(0.005)


class Plain(_State):
    def step(self, what: str, caller: int, number: int, value: Any) -> list[int]:
        self.begin(caller, number)
        if what == "slow":
            time.sleep(0.003)
        elif what == "held":
            while not os.path.exists(gate(self.log, caller, number)):
                time.sleep(0.002)
        elif what == "nested":
            assert fw.get(self.echo.say.remote(number), timeout=LIMIT) == number
        self.special(what, caller, number)
        return self.end(caller, number)


class Async(_State):
    async def step(self, what: str, caller: int, number: int, value: Any) -> list[int]:
        self.begin(caller, number)
        if what == "slow":
            await asyncio.sleep(0.003)
        elif what == "held":
            while not os.path.exists(gate(self.log, caller, number)):
                await asyncio.sleep(0.002)
        elif what == "nested":
            assert await self.echo.say.remote(number) == number
        self.special(what, caller, number)
        return self.end(caller, number)


def run_script(handle: Any, echo: Any, caller: int, script: list[str]) -> list[str]:
    """Make the calls of one caller; what became of each of them."""
    outcomes: list[str | None] = [None] * len(script)
    refs: list[Any] = []
    for number, what in enumerate(script):
        value: Any = None
        if what == "ref":
            value = late.remote(number, echo.say.remote(number))
        elif what == "large":
            value = bytes(200_000)
        ref = handle.step.remote(what, caller, number, value)
        refs.append(ref)
        if what == "cancel":
            fw.cancel(ref)
        elif what == "wait":
            outcomes[number] = outcome(ref, caller, number)
    return [known or outcome(refs[number], caller, number) for number, known in enumerate(outcomes)]


def outcome(ref: Any, caller: int, number: int) -> str:
    try:
        value = fw.get(ref, timeout=LIMIT)
    except Refused as error:
        return "refused" if f"{caller}:{number}" in str(error) else f"another's error: {error}"
    except ActorUnavailableError:
        return "unavailable"
    except ActorDiedError:
        return "died"
    except TaskCancelledError:
        return "cancelled"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "value" if value == [caller, number] else f"another's value: {value}"


@fw.remote(num_cpus=0, max_retries=0)
def task_caller(handle: Any, echo: Any, caller: int, script: list[str]) -> list[str]:
    return run_script(handle, echo, caller, script)


@fw.remote(num_cpus=0)
class ActorCaller:
    def run(self, handle: Any, echo: Any, caller: int, script: list[str]) -> list[str]:
        return run_script(handle, echo, caller, script)


class Program:
    """One program: the actor's kind and options, who calls what, and when its process is struck.

    `callers`: (where it runs: "thread", "task" or "actor", its calls). `held`: numbers of the incarnations
    that are killed in their constructor. `strikes`: (number of lines in the log, how): the process that wrote
    that line is killed by a signal, or the actor by `kill`. `drop`: nobody keeps the handle.
    """

    def __init__(
        self,
        kind: str,
        restarts: int,
        retries: int,
        save: bool,
        callers: list[tuple[str, list[str]]],
        held: list[int],
        strikes: list[tuple[int, str]],
        drop: bool,
    ) -> None:
        self.kind = kind
        self.restarts = restarts
        self.retries = retries
        self.save = save
        self.callers = callers
        self.held = held
        self.strikes = sorted(strikes)
        self.drop = drop
        self.failures: list[str] = []

    def __repr__(self) -> str:
        fields = ("kind", "restarts", "retries", "save", "callers", "held", "strikes", "drop")
        return "Program({})".format(", ".join(f"{name}={getattr(self, name)!r}" for name in fields))

    # ---- running it ----------------------------------------------------------------------------------

    def run(self, log: str, echo: Any, helper: Any) -> list[list[str]]:
        """What became of the calls of each caller."""
        options: dict[str, Any] = {"max_restarts": self.restarts, "max_task_retries": self.retries}
        if self.kind == "threads":
            options["max_concurrency"] = 3
        if self.save:
            options["save_every"] = 1
        cls: Any = Async if self.kind == "async" else Plain
        actor = fw.remote(num_cpus=0, **options)(cls).remote(log, self.held, [echo])
        over = threading.Event()
        striker = threading.Thread(target=self._strike, args=(log, None if self.drop else actor, over))
        striker.start()
        results: list[Any] = [None] * len(self.callers)
        threads = []
        for caller, (where, script) in enumerate(self.callers):
            if where == "task":
                results[caller] = task_caller.remote(actor, echo, caller, script)
            elif where == "actor":
                results[caller] = helper.run.remote(actor, echo, caller, script)
            else:
                thread = threading.Thread(target=self._in_thread, args=(results, actor, echo, caller, script))
                threads.append(thread)
        for thread in threads:
            thread.start()
        if self.drop:
            del actor
        try:
            for thread in threads:
                thread.join()
            return [
                found if isinstance(found, list) else fw.get(found, timeout=2 * LIMIT) for found in results
            ]
        finally:
            over.set()
            striker.join()

    @staticmethod
    def _in_thread(results: list[Any], actor: Any, echo: Any, caller: int, script: list[str]) -> None:
        results[caller] = run_script(actor, echo, caller, script)

    def _strike(self, log: str, actor: Any, over: threading.Event) -> None:
        """Read the log, and kill when it is time."""
        strikes, held, seen = list(self.strikes), set(self.held), 0
        while True:
            lines = read(log)
            for line in lines[seen:]:
                seen += 1
                how = ""
                if line[0] == "init" and int(line[1]) in held:
                    how = "signal"
                elif line[0] == "call" and self.callers[int(line[1])][1][int(line[2])] == "held":
                    path = gate(log, line[1], line[2])
                    if not os.path.exists(path):
                        open(path, "w").close()
                        how = "signal"
                if strikes and seen >= strikes[0][0]:
                    how = strikes.pop(0)[1]
                    if line[0] == "init" and int(line[1]) in held:
                        end(int(line[2]))
                if how == "signal":
                    end(int(line[2] if line[0] in ("init", "restore") else line[3]))
                elif how and actor is not None:
                    fw.kill(actor, no_restart=how == "kill")
            if over.is_set() and seen == len(read(log)):
                return
            if seen == len(lines):
                over.wait(0.002)

    # ---- what must hold ------------------------------------------------------------------------------

    def check(self, log: str, outcomes: list[list[str]]) -> list[str]:
        """What is wrong."""
        lines = read(log)
        self.failures = []
        begun = [(int(c), int(n), pid) for word, c, n, pid in (x for x in lines if x[0] == "call")]
        done = [(int(c), int(n), pid) for word, c, n, pid in (x for x in lines if x[0] == "done")]
        incarnations = [line[2] for line in lines if line[0] == "init"]
        deaths = len(incarnations) - 1
        if self.restarts >= 0 and deaths > self.restarts:
            self.failures.append(f"{deaths} restarts with max_restarts={self.restarts}")
        self._check_counts(begun, done, outcomes)
        self._check_losses(outcomes, deaths)
        self._check_order(begun)
        if self.save:
            self._check_state(lines, done, incarnations, outcomes)
        return self.failures

    def _check_counts(
        self, begun: list[tuple[int, int, str]], done: list[tuple[int, int, str]], outcomes: list[list[str]]
    ) -> None:
        runs = Counter((caller, number) for caller, number, _ in begun)
        ends = Counter((caller, number) for caller, number, _ in done)
        for call, count in runs.items():
            if 0 <= self.retries < count - 1:
                self.failures.append(f"{call} has run {count} times with max_task_retries={self.retries}")
        for caller, row in enumerate(outcomes):
            for number, what in enumerate(row):
                call = (caller, number)
                if what not in ("value", "refused", "unavailable", "died", "cancelled"):
                    self.failures.append(f"{call}: {what}")
                if what == "value" and not ends[call]:
                    self.failures.append(f"{call} has a value and was never done")
                if what == "refused" and not runs[call]:
                    self.failures.append(f"{call} has raised and has never run")
                expected = self.callers[caller][1][number]
                if (what == "cancelled") > (expected == "cancel"):
                    self.failures.append(f"{call}: nobody has cancelled it")
                if what in ("value", "refused") and (what == "refused") != (expected == "error"):
                    self.failures.append(f"{call} is {expected}, and ended with {what}")

    def _check_losses(self, outcomes: list[list[str]], deaths: int) -> None:
        killed = any(how == "kill" for _, how in self.strikes)
        every = [what for row in outcomes for what in row]
        crashing = any(what in ("held", "die") for _, script in self.callers for what in script)
        calm = not self.held and not self.strikes and not crashing
        if "died" in every and (calm or (self.restarts < 0 and not killed)):
            self.failures.append(f"calls have died, and the actor has not: {outcomes}")
        if "unavailable" in every and (calm or self.restarts == 0 or self.retries < 0):
            self.failures.append(f"calls were unavailable for no reason: {outcomes}")
        if self.restarts < 0 and not killed and self.retries < 0 and deaths < POISON_DEATHS:
            lost = [what for what in every if what not in ("value", "refused", "cancelled")]
            if lost:
                self.failures.append(f"calls are lost: {outcomes}")

    def _check_order(self, begun: list[tuple[int, int, str]]) -> None:
        """Within each incarnation, and for the first times: in the order of the calls."""
        if self.kind == "threads":
            return
        rows: dict[tuple[int, str], list[int]] = {}
        firsts: dict[int, list[int]] = {}
        for caller, number, pid in begun:
            if self.kind == "async" and self.callers[caller][1][number] in ("ref", "large"):
                continue  # may be overtaken
            rows.setdefault((caller, pid), []).append(number)
            if number not in firsts.setdefault(caller, []):
                firsts[caller].append(number)
        for (caller, pid), numbers in rows.items():
            if numbers != sorted(set(numbers)):
                self.failures.append(f"process {pid} ran the calls of caller {caller} in the order {numbers}")
        for caller, numbers in firsts.items():
            if numbers != sorted(numbers):
                self.failures.append(f"the calls of caller {caller} ran in the order {numbers}")

    def _check_state(
        self,
        lines: list[list[str]],
        done: list[tuple[int, int, str]],
        incarnations: list[str],
        outcomes: list[list[str]],
    ) -> None:
        """What its caller has the value of is in the state of all incarnations after the one that did it."""
        restored = {
            line[2]: set(line[3].split(",")) if len(line) > 3 else set()
            for line in lines
            if line[0] == "restore"
        }
        worked = {line[3] for line in lines if line[0] in ("call", "done")}
        last = {(caller, number): pid for caller, number, pid in done}
        for (caller, number), pid in last.items():
            if outcomes[caller][number] != "value":
                continue
            for later in incarnations[incarnations.index(pid) + 1 :]:
                if later in worked and f"{caller}:{number}" not in restored.get(later, set()):
                    self.failures.append(f"process {later} does not know of {caller}:{number}, done by {pid}")


def end(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
