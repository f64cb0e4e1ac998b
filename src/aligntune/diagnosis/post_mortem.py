"""`diagnose_run`: what a run's files say about how it went, and what to do, the gravest first.

>>> found = diagnose_run("runs/a")
>>> found.verdict, found.problems[0].message
('killed', 'the process ended without a word after step 40 ...')

It reads manifest, metrics and events. What killed a process that wrote nothing is only guessed at, and said to be a
guess: the kernel's log and the job scheduler's know it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aligntune.diagnosis.stored import Stored, read_stored
from aligntune.errors import ConfigurationError
from aligntune.utils.health import Event, TrainingDiagnostics
from aligntune.utils.health.summary import OUTSIDE
from aligntune.utils.run_folder import CONFIG, MANIFEST, METRICS

GRAVITY = ("error", "warning", "note")
OOM = re.compile(r"out of memory|OutOfMemory|can't allocate memory|DefaultCPUAllocator", re.IGNORECASE)
FULL = re.compile(r"no space left|disk quota", re.IGNORECASE)
SMALLER = (
    "lower train.per_device_batch_size and raise train.gradient_accumulation_steps by the same factor; then "
    "train.gradient_checkpointing, model.max_seq_length, model.peft, model.quantization (`aligntune check FILE` "
    "estimates each)"
)


@dataclass(frozen=True)
class Problem:
    """One thing that went wrong.

    Attributes:
        severity: error (the run is lost or incomplete), warning, or note.
        message: what the files show; `fix`: what to do.
    """

    severity: str
    message: str
    fix: str


@dataclass(frozen=True)
class PostMortem:
    """What a run's files say.

    Attributes:
        run: the folder.
        status: as the manifest has it, or `killed` where it says running and the process is gone.
        step: the last logged step.
        problems: the gravest first.
        health: what the health rules find in its log.
    """

    run: str
    status: str
    step: int
    problems: list[Problem] = field(default_factory=list)
    health: TrainingDiagnostics = field(default_factory=TrainingDiagnostics)

    @property
    def verdict(self) -> str:
        """The status, and for a finished run whether it was healthy."""
        return self.health.verdict if self.status == "finished" else self.status

    @property
    def failed(self) -> bool:
        """Whether something is graver than a warning."""
        return any(p.severity == "error" for p in self.problems)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "run": self.run,
            "status": self.status,
            "verdict": self.verdict,
            "step": self.step,
            "problems": [asdict(p) for p in self.problems],
            "health": self.health.to_dict(),
        }

    def __str__(self) -> str:
        lines = [f"{self.run}: {self.verdict}, last logged step {self.step}"]
        for problem in self.problems:
            lines += [f"  {problem.severity}: {problem.message}", f"    fix: {problem.fix}"]
        return "\n".join(lines if self.problems else [*lines, "  nothing in its files looks wrong"])


def diagnose_run(path: str | os.PathLike[str]) -> PostMortem:
    """Read a run folder, whatever state it is in.

    Raises:
        ValidationError: it is not a run folder.
    """
    stored = read_stored(path, strict=False)
    status, health = _status(stored), _health(stored)
    step = max((row["step"] for row in stored.metrics if isinstance(row.get("step"), int)), default=0)
    problems = [*_ending(stored, status, step), *_damage(stored), *_events(health), *_notes(stored)]
    problems.sort(key=lambda p: GRAVITY.index(p.severity))
    return PostMortem(str(stored.path), status, step, problems, health)


def _status(stored: Stored) -> str:
    from aligntune.utils.run_folder import _alive

    if stored.status == "running" and not _alive(stored.manifest.get("process") or {}):
        return "killed"
    return stored.status


def _health(stored: Stored) -> TrainingDiagnostics:
    """What the rules find; without a readable configuration nothing is known about the thresholds."""
    config = stored.manifest.get("config") or stored.config
    try:
        found = TrainingDiagnostics.of_rows(stored.metrics, {**config, "health": config.get("health") or {}})
    except ConfigurationError:  # a section of another version
        found = TrainingDiagnostics.of_rows(stored.metrics, {**config, "health": {}})
    noted = [Event.of(row) for row in stored.events if row.get("rule") in OUTSIDE]
    return TrainingDiagnostics([*found.events, *noted], found.steps, found.figures)


def _ending(stored: Stored, status: str, step: int) -> Iterator[Problem]:
    resume = _resume(stored)
    if status == "running":
        yield Problem("note", "it is still running", "wait for it, or look again later")
    elif status == "killed":
        noted = [str(row.get("rule")) for row in stored.events]
        pressed = "memory" in noted or "gpu_memory" in noted
        guess = (
            "its memory was nearly full, so the kernel most likely ended it"
            if pressed
            else "SIGKILL (the kernel out of memory, a job scheduler), a power cut or a lost session do that"
        )
        fix = f"look for `Out of memory: Killed process` in `dmesg` and in the scheduler's log; {resume}"
        yield Problem("error", f"the process ended without a word after step {step}: {guess}", fix)
    elif status == "interrupted":
        yield Problem("warning", f"it was stopped by the user or by a signal after step {step}", resume)
    elif status == "failed":
        yield _failure(stored.manifest.get("error") or {}, resume)
    elif MANIFEST in stored.damaged:
        yield Problem(
            "error",
            f"{MANIFEST} is damaged, so nobody can tell how it ended; a run replaces it whole, so the disk or another "
            "program did that",
            "bring it back from a copy; without it the run cannot go on, but its models are there: set "
            "model.name_or_path to its folder or to a checkpoint",
        )
    elif status == "unknown":
        yield Problem("warning", "there is no manifest.json, so nobody can tell how it ended", "look at metrics.jsonl")
    if status in ("failed", "killed", "interrupted") and not stored.metrics:
        yield Problem(
            "note", "it ended before the first line of the log", "`aligntune check FILE --smoke` tries the first steps"
        )


def _failure(error: dict[str, Any], resume: str) -> Problem:
    kind, message = str(error.get("type", "an error")), str(error.get("message", ""))
    if OOM.search(f"{kind} {message}"):
        return Problem("error", f"out of memory ({kind}: {_first(message)})", f"{SMALLER}; {resume}")
    if FULL.search(message):
        return Problem("error", f"the disk was full ({_first(message)})", f"free some space; {resume}")
    if "not a finite number" in message:
        return Problem("error", _first(message), f"lower train.learning_rate or add train.warmup_steps; {resume}")
    _, _, hint = message.partition("\n  hint: ")
    return Problem("error", f"it failed with {kind}: {_first(message)}", f"{hint or 'mend what it names'}; {resume}")


def _first(message: str) -> str:
    return message.strip().splitlines()[0] if message.strip() else "no message"


def _resume(stored: Stored) -> str:
    """How to go on: from the newest checkpoint, or from the beginning."""
    from aligntune.utils.checkpoints import CheckpointManager

    try:
        found = CheckpointManager(stored.path).latest()
    except ConfigurationError as error:
        return f"{error.message}; {error.hint}"
    if found is None:
        return (
            "there is no checkpoint, so the same command and --resume begins again at the first step (Meta-ES: goes on "
            "with the members that are done); train.save_steps writes checkpoints"
        )
    skipped = f"; {'; '.join(found.skipped)}" if found.skipped else ""
    return f"go on with the same command and --resume (from step {found.step}{skipped})"


def _damage(stored: Stored) -> Iterator[Problem]:
    if CONFIG in stored.damaged:
        yield Problem("warning", f"{CONFIG} cannot be read", f"{MANIFEST} holds the configuration, too")
    for name, count in stored.damaged.items():
        if name in (CONFIG, MANIFEST):
            continue
        yield Problem("warning", f"{count} lines of {name} are damaged", f"remove them from {Path(stored.path) / name}")
    if stored.status == "finished" and not stored.metrics:
        yield Problem("warning", f"it finished and has no {METRICS}", "nothing can be said about how it went")


def _events(health: TrainingDiagnostics) -> Iterator[Problem]:
    for event in health.events:
        yield Problem(event.severity, f"step {event.step}: {event.message} ({event.rule})", event.advice)


def _notes(stored: Stored) -> Iterator[Problem]:
    """Earlier ends of a run that was resumed."""
    attempts = stored.manifest.get("attempts") or []
    if attempts:
        ends = ", ".join(str(a.get("status")) for a in attempts)
        yield Problem("note", f"it was resumed {len(attempts)} times (before: {ends})", "nothing to do")
