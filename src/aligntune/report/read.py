"""Read a run folder for the report: whatever is there, also of a run that was killed.

>>> run = read_run("out/grpo")
>>> run.status, run.values("reward")[-1]
('finished', (100, 0.81))

It reads `manifest.json`, `config.resolved.yaml`, `metrics.jsonl`, `samples.jsonl`, `events.jsonl` and the rollouts, and
no weights.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligntune.core.held_out import Bounds, renew
from aligntune.errors import ValidationError
from aligntune.report.sampled import Sampled, best_first, spread
from aligntune.utils.files import number, read_lines
from aligntune.utils.run_folder import CONFIG, EVALUATIONS, EVENTS, METRICS, SAMPLES, read_manifest


@dataclass(frozen=True)
class RunData:
    """What a run folder holds.

    Attributes:
        path: the folder.
        manifest: `manifest.json`; empty if there is none.
        config_text: `config.resolved.yaml` as text.
        metrics: rows of `metrics.jsonl` in order of step; where a step was logged twice under one key, the later.
        samples: rows of `samples.jsonl`.
        rollouts: some rows of a few steps from the first to the last, best reward first.
        events: rows of `events.jsonl`, what the health monitor told.
        intervals: 95% bounds of the newest evaluation's values, by their names in `metrics.jsonl`.
    """

    path: Path
    manifest: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""
    metrics: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    rollouts: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    intervals: Bounds = field(default_factory=dict)

    @property
    def status(self) -> str:
        """running, finished, failed, interrupted or unknown."""
        return str(self.manifest.get("status", "unknown"))

    @property
    def name(self) -> str:
        """`logging.run_name`, or the folder's name."""
        config = self.manifest.get("config") or {}
        return str((config.get("logging") or {}).get("run_name") or self.path.name)

    def metric_names(self) -> list[str]:
        """Names of all numeric metrics, in the order of their first appearance."""
        skip = {"step", "epoch", "time"}
        found = (k for row in self.metrics for k, v in row.items() if k not in skip and number(v) is not None)
        return list(dict.fromkeys(found))

    def values(self, key: str) -> list[tuple[float, float | None]]:
        """(step, value) of one metric; None where rows of the same kind were logged without it, or without a number.

        Held-out rows (keys beginning with `eval_` or `eval/`) are one kind, training rows the other.
        """
        evaluated = held_out(key)
        points: list[tuple[float, float | None]] = []
        for row in self.metrics:
            if key in row:
                value = number(row[key])
                points.append((row["step"], value if value is not None and math.isfinite(value) else None))
            elif evaluated == any(map(held_out, row)):
                points.append((row["step"], None))
        present = [i for i, (_, value) in enumerate(points) if value is not None]
        return points[present[0] : present[-1] + 1] if present else []

    def not_finite(self, key: str) -> int:
        """How often the metric was logged as NaN or infinite."""
        found = (number(row[key]) for row in self.metrics if key in row)
        return sum(1 for value in found if value is not None and not math.isfinite(value))


def held_out(name: str) -> bool:
    """Whether a metric is an evaluation's, of held-out rows or of tasks."""
    return name.startswith(("eval_", "eval/"))


def read_run(path: str | os.PathLike[str]) -> RunData:
    """Read a run folder.

    Raises:
        ValidationError: there is no such folder, it is not a run's, or a line of its metrics is damaged.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    if manifest is None and not (folder / METRICS).exists():
        raise ValidationError(
            f"{folder} is not a run folder (no manifest.json, no {METRICS})",
            hint="give the output_dir of a run",
            context={"path": str(folder)},
        )
    config = folder / CONFIG
    return RunData(
        path=folder,
        manifest=manifest or {},
        config_text=config.read_text(encoding="utf-8") if config.exists() else "",
        metrics=_merge(_at_steps(folder / METRICS)),
        samples=read_lines(folder / SAMPLES),
        rollouts=_some_rollouts(folder),
        events=_at_steps(folder / EVENTS),
        intervals=_intervals(folder),
    )


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """The rows of `evaluations.jsonl` that hold what such a row does; none if there is no file."""
    rows = _at_steps(folder / EVALUATIONS)
    return [row for row in rows if isinstance(row.get("task", 0), (str, type(None))) and _nested(row.get("metrics"))]


def _at_steps(path: Path) -> list[dict[str, Any]]:
    """Rows that have a step; a line that someone has changed by hand may have none."""
    return [row for row in read_lines(path) if isinstance(row.get("step"), (int, float))]


def _nested(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(entry, dict) for entry in value.values())


def _intervals(folder: Path) -> Bounds:
    known: Bounds = {}
    renew(known, read_evaluations(folder), "eval/")
    return known


def _merge(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Training rows and held-out rows in order of step, one of each kind per step."""
    merged: dict[tuple[float, bool], dict[str, Any]] = {}
    for row in rows:
        kind = any(map(held_out, row))
        merged.setdefault((row["step"], kind), {}).update(row)
    return [merged[key] for key in sorted(merged)]


def _some_rollouts(folder: Path, each: int = 3, steps: int = 5) -> list[dict[str, Any]]:
    """`each` completions of some steps from the first to the last, spread from the best reward to the worst."""
    stored = Sampled.of(folder)
    return [row for step in spread(stored.steps, steps) for row in best_first(stored.at(step), each)]
