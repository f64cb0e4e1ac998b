"""Parts, their cases, and the result file of a part, which is written after every case.

    part = Part("smoke", "each algorithm trains", cases)
    run_part(part, settings)                 # out/smoke.json: finished, or unfinished with what is left

A part ends within `settings.limit` seconds. A case that the end of the part cut short is left for the next call; one
that had its own time and did not end has failed. A case that has a result is not run again unless it is asked for.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

Values = dict[str, Any]
LEAST = 20.0
"""Seconds that must be left of a part for another case to begin."""


class OutOfTime(Exception):
    """A process did not end within its seconds."""


@dataclass(frozen=True)
class Settings:
    """What the command line said.

    Attributes:
        out: folder of the result files.
        work: folder of models, data and runs.
        tiny: models of 0.1M parameters and a few steps: the same code, in minutes on a CPU.
        cpu: use no GPU.
        limit: seconds of a part.
        jobs: cases side by side, in parts whose cases measure no time.
        hub: hub ids or folders by architecture, in place of models that are built here.
        seeds: of the two experiments.
    """

    out: Path
    work: Path
    tiny: bool = False
    cpu: bool = False
    limit: float = 480.0
    jobs: int = 1
    hub: dict[str, str] = field(default_factory=dict)
    seeds: int = 3

    @property
    def form(self) -> str:
        """What a result file says of how it was made; results of another form are not continued."""
        return ("tiny" if self.tiny else "full") + (", CPU" if self.cpu else "")


@dataclass(frozen=True)
class Case:
    """One measurement.

    Attributes:
        name: unique in its part.
        run: gets the seconds that it may take; returns plain values.
        most: seconds after which it has failed; None gives it the whole part.
    """

    name: str
    run: Callable[[float], Values]
    most: float | None = None


@dataclass(frozen=True)
class Part:
    """One result file.

    Attributes:
        name: of the file.
        what: one line on what it shows.
        cases: makes the cases, in order.
        together: whether cases may run side by side.
        facts: further values for the file, made once the device is known (such as its peak).
    """

    name: str
    what: str
    cases: Callable[[Settings], list[Case]]
    together: bool = False
    facts: Callable[[Settings], Values] | None = None


def read_result(path: Path) -> Values | None:
    """A result file; None where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and "cases" in found else None


def run_part(part: Part, settings: Settings, machine: Values, *, again: bool = False) -> Values:
    """Run what is left of a part; its result.

    Args:
        part: the part.
        settings: of the suite.
        machine: what it runs on, for the file.
        again: begin anew.
    """
    path = settings.out / f"{part.name}.json"
    before = None if again else read_result(path)
    if before is not None and before.get("form") != settings.form:
        before = None
    result = before or {"part": part.name, "what": part.what, "form": settings.form, "cases": {}, "seconds": 0.0}
    result["machine"] = machine
    begun, already = time.monotonic(), result["seconds"]
    if part.facts is not None and not result.get("facts", {}).get("ok"):
        result["facts"] = _one(Case("facts", lambda _, facts=part.facts: facts(settings)), settings.limit) or {}
        if error := result["facts"].get("error"):
            print(f"  facts: FAILED: {str(error)[:200]}", flush=True)
    cases = part.cases(settings)
    left = [case for case in cases if case.name not in result["cases"]]

    def note() -> None:
        result["seconds"] = round(already + time.monotonic() - begun, 1)
        result["left"] = [case.name for case in cases if case.name not in result["cases"]]
        result["status"] = "unfinished" if result["left"] else "finished"
        result["failed"] = [name for name, values in result["cases"].items() if not values["ok"]]
        write(path, result)

    note()
    _run_cases(left, part, settings, begun + settings.limit, result["cases"], note)
    note()
    return result


def _run_cases(
    left: list[Case], part: Part, settings: Settings, end: float, done: Values, note: Callable[[], None]
) -> None:
    """Take cases from the front of `left`, in one thread or in several, until they or the time are used up."""
    lock, broken = threading.Lock(), list[BaseException]()

    def work() -> None:
        while not broken:
            with lock:
                seconds = end - time.monotonic()
                if not left or seconds < min(LEAST, settings.limit / 2):
                    return
                case = left.pop(0)
            try:
                values = _one(case, seconds)
            except BaseException as error:
                broken.append(error)
                return
            with lock:
                if values is not None:
                    done[case.name] = values
                    told = "ok" if values["ok"] else f"FAILED: {str(values.get('error', ''))[:200]}"
                    print(f"  {case.name}: {told} ({values['seconds']:.0f} s)", flush=True)
                note()

    threads = [threading.Thread(target=work) for _ in range(settings.jobs if part.together else 1)]
    if len(threads) == 1:
        work()  # in the main thread, which an interrupt reaches
    else:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if broken:
        raise broken[0]


def _one(case: Case, seconds: float) -> Values | None:
    """The values of a case; None where the end of the part cut it short."""
    begun = time.monotonic()
    given = min(seconds, case.most or seconds)
    try:
        values = case.run(given)
    except OutOfTime as error:
        if case.most is None or given < case.most:
            print(f"  {case.name}: cut by the end of the part; the next call goes on", flush=True)
            return None
        values = {"ok": False, "error": str(error)}
    except (RuntimeError, OSError, ValueError, LookupError, TypeError, SubprocessError) as error:
        # One case must not end the parts after it; what went wrong stands in the file.
        told = "".join(traceback.format_exception(error)[-3:])
        values = {"ok": False, "error": f"{type(error).__name__}: {error}", "trace": told}
    return {**values, "ok": bool(values.get("ok", True)), "seconds": round(time.monotonic() - begun, 1)}


def write(path: Path, values: Values) -> None:
    """Write a result file whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(_finite(values), indent=1, default=str, allow_nan=False) + "\n", encoding="utf-8")
    aside.replace(path)


def _finite(value: Any) -> Any:
    """The value with text in the place of infinities and NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def say(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)
