"""`TrainingDiagnostics`: what the numbers of a run say about it as a whole.

>>> TrainingDiagnostics.of_folder("runs/a").verdict
'healthy'

It reads the log again with the same rules that watched the run, so it also works for runs that nobody watched.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligntune.core.config.health import HealthConfig
from aligntune.utils.files import read_lines
from aligntune.utils.health.monitor import Event, monitor_of
from aligntune.utils.run_folder import EVENTS, METRICS, read_manifest

OUTSIDE = ("memory", "disk_gb", "gpu_memory")
"""Rules over what the log does not hold; their events are only in `events.jsonl`."""


@dataclass(frozen=True)
class TrainingDiagnostics:
    """Events and key figures of one run.

    Attributes:
        events: in order of step.
        steps: the last logged step.
        figures: metric to its first, last, smallest and largest finite value.
    """

    events: list[Event] = field(default_factory=list)
    steps: int = 0
    figures: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """healthy, warnings, or unhealthy (an event that most likely lost the run)."""
        if any(event.severity == "error" for event in self.events):
            return "unhealthy"
        return "warnings" if self.events else "healthy"

    @classmethod
    def of_rows(
        cls, rows: Iterable[Mapping[str, Any]], config: Mapping[str, Any], health: HealthConfig | None = None
    ) -> TrainingDiagnostics:
        """Look at the rows of `metrics.jsonl` with the configuration (plain values) of their run."""
        monitor = monitor_of(config, health)
        monitor.replay(rows)
        points = {name: [v for _, v in found] for name, found in monitor.history.values.items()}
        figures = {n: {"first": v[0], "last": v[-1], "min": min(v), "max": max(v)} for n, v in points.items()}
        steps = max((found[-1][0] for found in monitor.history.values.values()), default=0)
        return cls(monitor.events, steps, figures)

    @classmethod
    def of_folder(cls, folder: str | os.PathLike[str], health: HealthConfig | None = None) -> TrainingDiagnostics:
        """Look at a run folder; what was noticed of memory and disk at the time is taken from `events.jsonl`."""
        path = Path(folder)
        config = (read_manifest(path) or {}).get("config") or {}
        found = cls.of_rows(read_lines(path / METRICS), config, health)
        noted = [Event.of(row) for row in read_lines(path / EVENTS) if row.get("rule") in OUTSIDE]
        events = [*found.events, *noted]
        return cls(sorted(events, key=lambda event: event.step), found.steps, found.figures)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "verdict": self.verdict,
            "steps": self.steps,
            "events": [event.to_dict() for event in self.events],
            "figures": self.figures,
        }
