"""A report over several stages: base, SFT, GRPO, DPO ..., measured on the same held-out problems.

>>> stages = [
...     Stage("Base", accuracy=Interval(0.12, 0.09, 0.15)),
...     Stage("SFT", run_dir="out/sft", accuracy=Interval(0.55, 0.51, 0.59),
...           difference=Interval(0.43, 0.39, 0.47), parent="Base", seconds=41.0, memory_bytes=900_000_000),
... ]
>>> build_story("Quickstart", stages, "out/report.html", lead="A small model learns to add.")
PosixPath('out/report.html')

It shows intervals that the caller has computed, and computes none. A number that was not measured stays empty.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from aligntune.errors import ValidationError
from aligntune.report.curves import charts, table
from aligntune.report.facts import chips, facts
from aligntune.report.numbers import percent, points, whole_percent, whole_points
from aligntune.report.page import write_page
from aligntune.report.read import RunData, read_run
from aligntune.report.svg import interval_chart


@dataclass(frozen=True)
class Interval:
    """A value with its 95% interval. Accuracies and differences are shares (0.43, not 43).

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        slack = 1e-9  # a Wilson interval of 20 right out of 20 ends at 1 but for rounding
        if not self.low - slack <= self.value <= self.high + slack:
            raise ValidationError(
                f"the interval [{self.low}, {self.high}] does not contain {self.value}", hint="low <= value <= high"
            )


@dataclass(frozen=True)
class Stage:
    """One row of the story.

    Attributes:
        name: as it stands in the table ("GRPO").
        run_dir: its run folder, for curves, configuration and environment; None for a model that was not trained.
        about: one sentence on what the stage does.
        accuracy: share of held-out problems that it answers right.
        difference: paired difference in accuracy to `parent`.
        parent: name of the stage that `difference` compares with.
        mean_reward: mean reward of its answers.
        preference_accuracy: share of held-out pairs that it ranks as the reward does.
        seconds: wall time of the stage.
        memory_bytes: largest resident memory.
    """

    name: str
    run_dir: str | os.PathLike[str] | None = None
    about: str = ""
    accuracy: Interval | None = None
    difference: Interval | None = None
    parent: str | None = None
    mean_reward: float | None = None
    preference_accuracy: Interval | None = None
    seconds: float | None = None
    memory_bytes: float | None = None


@dataclass(frozen=True)
class Answer:
    """What one stage answered to a sample: the stage's name, its text, and whether it is right (None: not graded)."""

    stage: str
    text: str
    correct: bool | None = None


@dataclass(frozen=True)
class Sample:
    """One held-out problem with the answers of several stages, in the order in which they are shown."""

    prompt: str
    answers: Sequence[Answer]
    reference: str | None = None


@dataclass(frozen=True)
class Table:
    """A table behind the results: its heading, column heads, rows of text with the row's head first, and a note."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class _Chapter:
    """What the page shows of one stage's run."""

    stage: Stage
    chips: list[str] = field(default_factory=list)
    charts: list[Any] = field(default_factory=list)
    numbers: list[Any] = field(default_factory=list)
    config_text: str = ""
    folder: str = ""
    facts: list[tuple[str, str]] = field(default_factory=list)


def build_story(
    title: str,
    stages: Sequence[Stage],
    out: str | os.PathLike[str],
    *,
    lead: str = "",
    samples: Sequence[Sample] = (),
    measured_on: str = "",
    facts_of: Mapping[str, str] | None = None,
    tables: Sequence[Table] = (),
) -> Path:
    """Write the story as one HTML file; return its path.

    Args:
        title: the heading.
        stages: in the order of the story; names must differ, and every `parent` must be one of them.
        out: the HTML file.
        lead: a paragraph under the heading: what was done, for a reader who knows nothing of it.
        samples: held-out problems with the answers of the stages.
        measured_on: what the table's numbers were measured on ("600 held-out problems, greedy decoding").
        facts_of: more lines for the environment, such as the exact command.
        tables: further results, such as several metrics of several models.

    Raises:
        ValidationError: there is no stage, a name stands twice, a parent is unknown, or a run folder is none.
        ConfigurationError: the disk is full or writing is not permitted.
    """
    _check(stages)
    runs = {stage.name: read_run(stage.run_dir) for stage in stages if stage.run_dir is not None}
    last = next((runs[stage.name] for stage in reversed(stages) if stage.name in runs), None)
    packages = (last.manifest.get("packages") or {}) if last else {}
    return write_page(
        Path(out),
        "story.html.j2",
        title=title,
        lead=lead,
        chips=chips({**last.manifest, "algorithm": None}) if last else [],
        stages=stages,
        measured=any(_measured(stage) for stage in stages),
        tables=tables,
        verdicts=verdicts(stages),
        measured_on=measured_on,
        accuracy_chart=_accuracy_chart(stages),
        difference_chart=_difference_chart(stages),
        samples=samples,
        chapters=[_chapter(stage, runs[stage.name]) for stage in stages if stage.name in runs],
        facts=[*(facts_of or {}).items(), *(_common_facts(last) if last else [])],
        packages=[f"{name} {version}" for name, version in sorted(packages.items())],
    )


def _measured(stage: Stage) -> bool:
    """Whether there is anything for the columns of measurements."""
    given = (stage.accuracy, stage.difference, stage.mean_reward, stage.preference_accuracy)
    return any(value is not None for value in given)


def _check(stages: Sequence[Stage]) -> None:
    names = [stage.name for stage in stages]
    if not names:
        raise ValidationError("a story needs at least one stage", hint="give the stages that you have measured")
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValidationError(f"two stages have the name '{sorted(twice)[0]}'", hint="give each its own name")
    for stage in stages:
        if stage.difference is not None and stage.parent not in names:
            raise ValidationError(
                f"stage '{stage.name}' has a difference to '{stage.parent}', which is no stage",
                hint=f"parent is one of {', '.join(names)}",
            )


def verdicts(stages: Sequence[Stage]) -> list[tuple[str, str]]:
    """One sentence per comparison, with up, down or flat: the interval decides, not the estimate.

    Preference accuracy counts as higher than the parent's only where the two intervals do not touch.
    """
    by_name = {stage.name: stage for stage in stages}
    found: list[tuple[str, str]] = []
    for stage in stages:
        if stage.difference is not None:
            found.append(_accuracy_verdict(stage, stage.difference))
        parent = by_name.get(stage.parent or "")
        if stage.preference_accuracy and parent and parent.preference_accuracy:
            found.append(_preference_verdict(stage, stage.preference_accuracy, parent, parent.preference_accuracy))
    return found


def _accuracy_verdict(stage: Stage, gap: Interval) -> tuple[str, str]:
    interval = f"95% interval {points(gap.low)} to {points(gap.high)}"
    size = f"{abs(100 * gap.value):.1f}"
    if gap.low > 0:
        return "up", f"{stage.name} is {size} points more accurate than {stage.parent} ({interval})."
    if gap.high < 0:
        return "down", f"{stage.name} is {size} points less accurate than {stage.parent} ({interval})."
    return "flat", f"No clear difference in accuracy between {stage.name} and {stage.parent} ({interval})."


def _preference_verdict(stage: Stage, own: Interval, parent: Stage, before: Interval) -> tuple[str, str]:
    text = (
        f"{stage.name} prefers the better answer in {percent(own.value)} of held-out pairs "
        f"(95% interval {percent(own.low)} to {percent(own.high)}), {parent.name} in {percent(before.value)}."
    )
    kind = "up" if own.low > before.high else ("down" if own.high < before.low else "flat")
    return kind, text


def _accuracy_chart(stages: Sequence[Stage]) -> Markup | None:
    rows = [
        (stage.name, stage.accuracy.value, stage.accuracy.low, stage.accuracy.high, i)
        for i, stage in enumerate(stages)
        if stage.accuracy is not None
    ]
    if not rows:
        return None
    describe = ", ".join(f"{row[0]} {percent(row[1])}" for row in rows)
    return interval_chart(
        "Accuracy by stage", rows, describe=describe, text=percent, tick_text=whole_percent, x_range=(0.0, 1.0)
    )


def _difference_chart(stages: Sequence[Stage]) -> Markup | None:
    rows = [
        (f"{s.name} vs {s.parent}", s.difference.value, s.difference.low, s.difference.high, i)
        for i, s in enumerate(stages)
        if s.difference is not None
    ]
    if not rows:
        return None
    describe = ", ".join(f"{row[0]} {points(row[1])} points" for row in rows)
    return interval_chart(
        "Paired difference in points", rows, describe=describe, text=points, tick_text=whole_points, zero=True
    )


def _chapter(stage: Stage, run: RunData) -> _Chapter:
    return _Chapter(
        stage=stage,
        chips=chips(run.manifest)[:2],
        charts=charts(run),
        numbers=table(run),
        config_text=run.config_text,
        folder=str(run.path),
        facts=[fact for fact in facts(run.manifest) if fact[0] in _PER_STAGE],
    )


_PER_STAGE = {
    "Model",
    "Weights (SHA-256)",
    "Data",
    "Rows (SHA-256)",
    "Chat template (SHA-256)",
    "Seed",
}


def _common_facts(run: RunData) -> list[tuple[str, str]]:
    return [fact for fact in facts(run.manifest) if fact[0] not in _PER_STAGE and fact[0] != "Time"]
