"""`report.html` of one run, or a comparison of several: key numbers, curves, answers, configuration, environment.

>>> build_report("out/grpo")
PosixPath('out/grpo/report.html')

It reads what the run has written so far, so it also shows a run that still trains or that was stopped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligntune.errors import ValidationError
from aligntune.report.curves import charts, first_and_last, side_by_side, table
from aligntune.report.facts import chips, facts
from aligntune.report.numbers import compact, percent, seconds, size
from aligntune.report.page import message_text, write_page
from aligntune.report.read import RunData, read_run
from aligntune.report.rewards import reward_block

STATUS_WORDS = {
    "running": "This run is still going on, or was killed.",
    "interrupted": "This run was stopped by the user before its end.",
    "failed": "This run failed.",
}


@dataclass(frozen=True)
class Tile:
    """One key number: label, value as text, and what it was at the beginning, if that is known."""

    label: str
    value: str
    before: str = ""


@dataclass(frozen=True)
class BeforeAfter:
    """The answers of one held-out prompt at the first and at the last evaluation (None where there was one only)."""

    prompt: str
    before: str | None
    after: str
    before_step: int | None
    after_step: int | None


def build_report(
    run_dir: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], out: str | os.PathLike[str] | None = None
) -> Path:
    """Write the report of one run, or of several side by side; return the file's path.

    Args:
        run_dir: a run folder, or a list of them.
        out: the HTML file; None takes `report.html` in the run folder, and `comparison.html` in the folder that
            holds them all for several runs.

    Raises:
        ValidationError: a folder is no run's, no folder is given, or a line of its metrics is damaged.
        ConfigurationError: the disk is full or writing is not permitted.
    """
    folders = [run_dir] if isinstance(run_dir, (str, os.PathLike)) else list(run_dir)
    if not folders:
        raise ValidationError("a report needs at least one run folder", hint="give the output_dir of a run")
    if len(folders) == 1:
        return _single(read_run(folders[0]), out)
    return _several([read_run(folder) for folder in folders], out)


def _single(run: RunData, out: str | os.PathLike[str] | None) -> Path:
    packages = run.manifest.get("packages") or {}
    return write_page(
        Path(out) if out is not None else run.path / "report.html",
        "run.html.j2",
        title=run.name,
        status=run.status,
        status_words=STATUS_WORDS.get(run.status, f"The state of this run is {run.status}."),
        error=run.manifest.get("error"),
        chips=chips(run.manifest),
        tiles=tiles(run),
        notes=[str(note) for note in run.manifest.get("notes") or []],
        charts=charts(run),
        numbers=table(run),
        rewards=reward_block(run.path),
        samples=before_after(run),
        rollouts=rollout_groups(run),
        config_text=run.config_text,
        facts=facts(run.manifest),
        packages=[f"{name} {version}" for name, version in sorted(packages.items())],
    )


def _several(runs: Sequence[RunData], out: str | os.PathLike[str] | None) -> Path:
    """Runs beside each other: a table of key numbers, and each metric's curves in one chart."""
    names = [run.name for run in runs]
    labels = [run.name if names.count(run.name) == 1 else str(run.path) for run in runs]
    shown = [{tile.label: tile.value for tile in tiles(run)} for run in runs]
    rows = dict.fromkeys(label for one in shown for label in one)
    parent = Path(os.path.commonpath([run.path.absolute().parent for run in runs]))
    return write_page(
        Path(out) if out is not None else parent / "comparison.html",
        "runs.html.j2",
        title=" and ".join(labels) if len(labels) == 2 else f"{len(labels)} runs",
        runs=[
            {
                "label": label,
                "status": run.status,
                "chips": chips(run.manifest),
                "facts": facts(run.manifest),
                "config_text": run.config_text,
                "numbers": table(run),
            }
            for label, run in zip(labels, runs, strict=True)
        ],
        rows=[(label, [one.get(label) for one in shown]) for label in rows],
        charts=side_by_side(dict(zip(labels, runs, strict=True))),
    )


def tiles(run: RunData) -> list[Tile]:
    """The key numbers of a run: held-out quality first, then reward or loss, steps, time and memory."""
    found: list[Tile] = []
    for key, label, text in (
        ("eval_f1", "F1 of entities, held out", percent),
        ("eval_f1_macro", "F1 by label, held out", percent),
        ("eval_rewards/accuracies", "Preference accuracy, held out", percent),
        ("eval_reward", "Reward, held out", compact),
        ("eval_perplexity", "Perplexity, held out", compact),
        ("reward", "Reward, training", compact),
        ("loss", "Loss, training", compact),
    ):
        if key == "loss" and any(tile.label.startswith("Reward") for tile in found):
            continue  # a policy-gradient loss hovers around zero and says nothing about quality
        ends = first_and_last(run.values(key))
        if ends:
            first, last = text(ends[0]), text(ends[1])
            found.append(Tile(label, last, first if first != last else ""))
    steps = [row["step"] for row in run.metrics]
    summary = run.manifest.get("summary") or {}
    if steps:
        found.append(Tile("Steps", compact(max(steps))))
    duration = summary.get("training_time", run.manifest.get("seconds"))
    if isinstance(duration, (int, float)):
        found.append(Tile("Training time", seconds(duration)))
    if isinstance(summary.get("peak_memory"), (int, float)):
        found.append(Tile("Peak memory", size(summary["peak_memory"])))
    return found


def before_after(run: RunData) -> list[BeforeAfter]:
    """Held-out prompts with their first and last stored answer."""
    by_prompt: dict[str, list[dict[str, Any]]] = {}
    for row in run.samples:
        by_prompt.setdefault(message_text(row.get("prompt")), []).append(row)
    found = []
    for prompt, rows in by_prompt.items():
        first, last = rows[0], rows[-1]
        found.append(
            BeforeAfter(
                prompt=prompt,
                before=message_text(first.get("answer")) if len(rows) > 1 else None,
                after=message_text(last.get("answer")),
                before_step=first.get("step"),
                after_step=last.get("step"),
            )
        )
    return found


def rollout_groups(run: RunData) -> list[tuple[int, list[dict[str, Any]]]]:
    """Sampled completions by step, each with its components as (name, value) pairs."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in run.rollouts:
        components = [
            (name.removeprefix("reward/"), value)
            for name, value in row.items()
            if name.startswith("reward/") and isinstance(value, (int, float))
        ]
        groups.setdefault(row["step"], []).append({**row, "components": components})
    return sorted(groups.items())
