"""`HealthMonitor`: the rules, held over the rows of a run as they come; each thing that is wrong is told once.

>>> monitor = HealthMonitor(HealthConfig(), sampled=False)
>>> for step in range(1, 30): events = monitor.observe(step, {"loss": 2.0 if step < 29 else 90.0})
>>> events[0].rule, events[0].step
('loss_spike', 29)

An event is told when a rule begins to find something. While it goes on nothing more is said; once it was gone for a
window of rows, it may be told again. The state is the history itself, so a resumed run takes it back with `replay`.
`TrainingMonitor` does the same from outside, by reading a run's folder.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aligntune.core.config.health import HealthConfig
from aligntune.utils.files import number, read_lines
from aligntune.utils.health.rules import ONLY_LEVEL, ONLY_SAMPLED, RULES, History
from aligntune.utils.run_folder import METRICS, read_manifest

PLACES = ("step", "epoch", "time")
LONGEST = 4000
"""Rows of a metric that are kept; the first ones stay, because rules compare with the beginning."""


@dataclass(frozen=True)
class Event:
    """Something that is wrong, as `events.jsonl` has it.

    Attributes:
        step: optimizer step of the row that showed it.
        rule: name of the rule, which is its key in the section `health`.
        severity: warning, or error (the run is most likely lost).
        message: what was seen; `advice`: what to change.
        value: the number that was judged; `limit`: what it was held against.
    """

    step: int
    rule: str
    severity: str
    message: str
    advice: str
    value: float
    limit: float

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Event:
        """The event of a line of `events.jsonl`; what the line lacks is empty."""
        value, limit = (math.nan if (v := number(row.get(name))) is None else v for name in ("value", "limit"))
        rule, severity, message, advice = (str(row.get(name, "")) for name in ("rule", "severity", "message", "advice"))
        return cls(int(row.get("step") or 0), rule, severity, message, advice, value, limit)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"step {self.step}: {self.message} ({self.rule}); {self.advice}"


class HealthMonitor:
    """Watches one run.

    Args:
        health: the section `health`.
        sampled: whether the run learns from completions that it samples.
        best_reward: the highest reward that is possible; None where it is not known.
        room: most new tokens of a completion; None where nothing is sampled.
        grouped: whether several answers to one prompt are compared.
    """

    def __init__(
        self,
        health: HealthConfig | None = None,
        *,
        sampled: bool = False,
        best_reward: float | None = None,
        room: int | None = None,
        grouped: bool = True,
    ) -> None:
        self.health = health or HealthConfig()
        self.history = History(best_reward=best_reward, room=room, sampled=sampled, grouped=grouped)
        self.events: list[Event] = []
        off = ONLY_LEVEL if sampled else ONLY_SAMPLED
        self._rules = {name: rule for name, rule in RULES.items() if name not in off and self._is_on(name)}
        self._clear: dict[str, int] = {}
        self._clock: tuple[int, float] | None = None

    def _is_on(self, name: str) -> bool:
        return self.health.enabled and getattr(self.health, name, True) is not None

    def observe(self, step: int, row: Mapping[str, Any]) -> list[Event]:
        """Take one row of logged values; the events that begin with it.

        Args:
            step: the optimizer step.
            row: names to numbers; `time` in seconds gives the throughput, and what is no number is left out.
        """
        values = {k: v for k, raw in row.items() if k not in PLACES and (v := number(raw)) is not None}
        values |= self._pace(step, row)
        self.history.add(step, values)
        begun = [event for name in self._rules if (event := self._look(name, step, values)) is not None]
        self.events += begun
        self._forget()
        return begun

    def replay(self, rows: Iterable[Mapping[str, Any]]) -> list[Event]:
        """Take rows of `metrics.jsonl`; all their events."""
        found: list[Event] = []
        for row in rows:
            if isinstance(row.get("step"), int):
                found += self.observe(row["step"], row)
        self._clock = None  # the clock of what follows is another one
        return found

    def note(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Count events as told that the rows do not show again (memory, disk), as `events.jsonl` has them."""
        for event in events:
            self._clear.setdefault(str(event.get("rule")), 0)

    def _look(self, name: str, step: int, values: Mapping[str, float]) -> Event | None:
        rule, reads, severity = self._rules[name]
        if not any(metric in values for metric in reads):
            return None
        found = rule(self.history, self.health)
        if found is None:
            if name in self._clear:
                self._clear[name] += 1
                if self._clear[name] >= self.health.window:
                    del self._clear[name]
            return None
        told, self._clear[name] = name in self._clear, 0
        if told:
            return None
        return Event(step, name, severity, found.message, found.advice, found.value, found.limit)

    def _pace(self, step: int, row: Mapping[str, Any]) -> dict[str, float]:
        """Seconds per step since the row before; none across an evaluation, which takes time of its own."""
        clock = number(row.get("time"))
        if clock is None:
            return {}
        evaluated = any(name.startswith("eval") for name in row)
        before, self._clock = self._clock, None if evaluated else (step, clock)
        if evaluated or before is None or step <= before[0] or clock <= before[1]:
            return {}
        return {"seconds_per_step": (clock - before[1]) / (step - before[0])}

    def _forget(self) -> None:
        keep = LONGEST // 2
        for name, points in self.history.values.items():
            if len(points) > LONGEST:
                self.history.values[name] = points[:keep] + points[-keep:]


class TrainingMonitor:
    """Watches a run from outside, through its folder: `poll` reads what was added and gives the events.

    Args:
        folder: the run's folder; it need not be there yet.
        health: thresholds in place of the run's own.
    """

    def __init__(self, folder: str | os.PathLike[str], health: HealthConfig | None = None) -> None:
        self.folder = Path(folder)
        self._given, self._seen = health, 0
        self.monitor: HealthMonitor | None = None

    def poll(self) -> list[Event]:
        """The events of the rows that were added since the last call."""
        if self.monitor is None:
            config = (read_manifest(self.folder) or {}).get("config")
            if config is None:
                return []
            self.monitor = monitor_of(config, self._given)
        rows = read_lines(self.folder / METRICS)
        new, self._seen = rows[self._seen :], len(rows)
        return [event for row in new if isinstance(row.get("step"), int) for event in self._take(row)]

    def _take(self, row: dict[str, Any]) -> list[Event]:
        assert self.monitor is not None  # made in poll
        return self.monitor.observe(row["step"], row)


def monitor_of(config: Mapping[str, Any], health: HealthConfig | None = None) -> HealthMonitor:
    """The monitor of a stored configuration (plain values).

    Args:
        config: `config` of the manifest, or `config.resolved.yaml`.
        health: thresholds in place of the configuration's own.
    """
    from aligntune.core.config.io import parse_section

    section = parse_section(HealthConfig, dict(config.get("health") or {}), "health")
    sampled = bool(config.get("rewards"))
    generation = config.get("generation") or {}
    return HealthMonitor(
        health or section,
        sampled=sampled,
        room=generation.get("max_completion_length") if sampled else None,
        grouped=(config.get("algo") or {}).get("num_generations", 2) > 1,
    )
