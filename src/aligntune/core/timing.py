"""Where a run's time went: `timings` of the manifest, in seconds, each second counted once.

    {"start_up": 1.2, "data": 3.1, "model": 8.0, "training": 410.5, "evaluation": 22.7, "saving": 4.4}

`phased` is put on the trainer's class and wraps the methods of `PHASES`. A phase inside another (an evaluation during
training) counts for itself and not for the outer one, so the sum is the time in `train()`; `start_up` is what belongs
to no other phase. It measures this process, so a resumed run tells the time since its resume.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer

C = TypeVar("C")
PHASES = {
    "train": "start_up",
    "_train_rows": "data",
    "_eval_rows": "data",
    "_load": "model",
    "_loop": "training",
    "evaluate_now": "evaluation",
    "save_model": "saving",
}
"""Method of the trainer to the phase that it is."""


class Timings:
    """Seconds by phase, and which phases are open."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = 0.0

    def switch(self) -> None:
        """Book the time since the last switch on the innermost open phase."""
        now = time.monotonic()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    def measure(self, name: str, call: Callable[[], Any]) -> Any:
        """Call within a phase; what the call returns."""
        self.switch()
        self._open.append(name)
        try:
            return call()
        finally:
            self.switch()
            self._open.pop()

    def rounded(self) -> dict[str, float]:
        """The seconds so far, to the millisecond."""
        self.switch()
        return {name: round(seconds, 3) for name, seconds in self.seconds.items()}


def timings(trainer: Any) -> Timings:
    """The timings of a run."""
    found: Timings | None = trainer.__dict__.get("_timings")
    if found is None:
        found = trainer._timings = Timings()
    return found


def phased(cls: type[C]) -> type[C]:
    """Class decorator that times the methods of `PHASES`, and writes the result where the run is closed."""
    for method, phase in PHASES.items():
        setattr(cls, method, _timed(getattr(cls, method), phase))
    note_end = cls._note_end  # type: ignore[attr-defined]

    @wraps(note_end)
    def closing(self: Any, *args: Any) -> Any:
        result = note_end(self, *args)
        self._run.update_manifest({"timings": timings(self).rounded()})
        return result

    cls._note_end = closing  # type: ignore[attr-defined]
    return cls


def _timed(function: Callable[..., Any], phase: str) -> Callable[..., Any]:
    @wraps(function)
    def measured(self: Any, *args: Any, **kwargs: Any) -> Any:
        return timings(self).measure(phase, lambda: function(self, *args, **kwargs))

    return measured


def time_saving(trainer: Trainer, hf: Any) -> None:
    """Count the checkpoints of one library loop as saving."""
    save = hf._save_checkpoint
    hf._save_checkpoint = lambda *args, **kwargs: timings(trainer).measure("saving", lambda: save(*args, **kwargs))
