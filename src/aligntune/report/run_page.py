"""`report.html` of one run: key numbers, health, curves, values with intervals, rewards, answers, configuration,
environment.

>>> single_report(read_run("out/grpo"), [], None)
PosixPath('out/grpo/report.html')

It shows what the run has written so far, so also a run that still trains or that was stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aligntune.report.curves import charts, first_and_last, table
from aligntune.report.evaluation import MOST_ITEMS_BYTES, evaluation_block, label_results, run_results
from aligntune.report.facts import chips, facts
from aligntune.report.numbers import compact, percent, seconds, size
from aligntune.report.page import message_text, shortened, write_fitting
from aligntune.report.read import RunData
from aligntune.report.rewards import reward_block
from aligntune.report.sampled import components, spread

MOST_PROMPTS = 12
MOST_ANSWERS = 5
MOST_EVENTS = 50
MOST_MANIFEST = 200_000
"""Characters of the manifest."""
STATUS_WORDS = {
    "running": "This run is still going on, or was killed.",
    "interrupted": "This run was stopped by the user before its end.",
    "failed": "This run failed.",
}


@dataclass(frozen=True)
class Tile:
    """One key number: label, value as text, what it was at the beginning, if that is known, and its 95% interval."""

    label: str
    value: str
    before: str = ""
    interval: str = ""


@dataclass(frozen=True)
class OverTime:
    """The answers to one prompt along the run, as (when, text), oldest first; the reference where it is known."""

    prompt: str
    reference: str
    answers: list[tuple[str, str]]


def single_report(run: RunData, measured: Sequence[Any], out: str | os.PathLike[str] | None) -> Path:
    """Write the report of one run, with evaluations beside it; return the file's path."""
    packages = run.manifest.get("packages") or {}
    own, unread = run_results(run.path)
    results = [*own, *label_results(measured)]
    samples = over_time(run)
    shown = {
        "title": run.name,
        "status": run.status,
        "status_words": STATUS_WORDS.get(run.status, f"The state of this run is {run.status}."),
        "error": run.manifest.get("error"),
        "chips": chips(run.manifest),
        "tiles": tiles(run),
        "health": health(run),
        "notes": [*own_notes(run), *unread],
        "charts": charts(run),
        "numbers": table(run),
        "rewards": reward_block(run.path),
        "samples": samples[:MOST_PROMPTS],
        "samples_left": max(len(samples) - MOST_PROMPTS, 0),
        "rollouts": rollout_groups(run),
        "config_text": run.config_text,
        "manifest_text": manifest_text(run),
        "facts": facts(run.manifest),
        "packages": [f"{name} {version}" for name, version in sorted(packages.items())],
    }
    return write_fitting(
        Path(out) if out is not None else run.path / "report.html",
        "run.html.j2",
        lambda budget: {**shown, "evaluation": evaluation_block(results, history=run.path, budget=budget)},
        MOST_ITEMS_BYTES,
    )


@dataclass(frozen=True)
class Health:
    """What the health monitor told: a sentence, and (step, rule, severity, message, advice) of each event."""

    verdict: str
    events: list[tuple[str, str, str, str, str]]
    left: int = 0


def health(run: RunData) -> Health | None:
    """The health of a run; None where nobody watched it."""
    watched = ((run.manifest.get("config") or {}).get("health") or {}).get("enabled")
    if not run.events and not watched:
        return None
    rows = [
        (_word(row, "step"), _word(row, "rule"), _word(row, "severity"), _word(row, "message"), _word(row, "advice"))
        for row in run.events
    ]
    if not rows:
        return Health("The health rules found nothing to tell.", [])
    grave = sum(row[2] == "error" for row in rows)
    count = f"{len(rows)} {'event' if len(rows) == 1 else 'events'}"
    told = f"{count}, {grave} of them grave: the run is most likely lost." if grave else f"{count} to look at."
    return Health(told, rows[:MOST_EVENTS], max(len(rows) - MOST_EVENTS, 0))


def _word(row: Mapping[str, Any], key: str) -> str:
    return str(row.get(key, ""))


def own_notes(run: RunData) -> list[str]:
    """The manifest's notes, without the health events, which have a section of their own."""
    from aligntune.utils.health import Event

    told = {str(Event.of(row)) for row in run.events}
    return [str(note) for note in run.manifest.get("notes") or [] if str(note) not in told]


def manifest_text(run: RunData) -> str:
    """The manifest as JSON, without what the page shows elsewhere."""
    shown = {k: v for k, v in run.manifest.items() if k not in ("config", "packages", "notes")}
    return shortened(json.dumps(shown, indent=2, ensure_ascii=False), MOST_MANIFEST) if shown else ""


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
            interval = " to ".join(map(text, run.intervals.get(key, [])))
            found.append(Tile(label, last, first if first != last else "", interval))
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


def over_time(run: RunData) -> list[OverTime]:
    """The prompts of `samples.jsonl` with their answers: the first, the last, and some between."""
    by_prompt: dict[str, dict[Any, dict[str, Any]]] = {}
    for row in run.samples:
        by_prompt.setdefault(message_text(row.get("prompt")), {})[row.get("step")] = row  # a later one of a step counts
    found = []
    for prompt, rows in by_prompt.items():
        kept = spread(list(rows.values()), MOST_ANSWERS)
        reference = kept[-1].get("gold", kept[-1].get("reference"))
        found.append(
            OverTime(
                prompt=shortened(prompt),
                reference=shortened(" ".join(map(str, reference)) if isinstance(reference, list) else reference or ""),
                answers=[(_when(row), shortened(message_text(row.get("answer")))) for row in kept],
            )
        )
    return found


def _when(row: dict[str, Any]) -> str:
    share = row.get("share")
    told = f", {100 * share:.0f}% of training" if isinstance(share, (int, float)) else ""
    return f"Step {row.get('step')}{told}"


def rollout_groups(run: RunData) -> list[tuple[int, list[dict[str, Any]]]]:
    """Sampled completions by step, each with its components as (name, value) pairs."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in run.rollouts:
        groups.setdefault(row["step"], []).append({**row, "components": components(row)})
    return sorted(groups.items())
