"""Answers of several runs next to each other: the same prompts along the runs, and the same prompt of the same step.

>>> answers_beside({"a": first, "b": second}, {"a": 0, "b": 1}).steps[-1].prompts[0].sides[1].about
'8 answers, mean reward 0.53'

Two runs have a prompt in common where its text is the same; of sampled rollouts the step must be the same, too. For
each run the best and the worst answer to such a prompt are shown, with the mean reward of all its answers. Which
prompts are shown does not depend on the answers: the first ones of a step, in the order in which the first run sampled
them. Every run's own selection, from the best reward of a step to its worst, is folded up below.

Texts are bounded (`Answers.within`); what is left out is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from aligntune.report.numbers import compact
from aligntune.report.page import message_text, shortened, weight
from aligntune.report.read import RunData
from aligntune.report.run_page import over_time, rollout_groups
from aligntune.report.sampled import Sampled, best_first, components, spread

MOST_PROMPTS = 12
MOST_STEPS = 5
MOST_TRIED = 25
"""Steps that are searched for prompts in common."""
PROMPTS_OF_A_STEP = 2
ANSWERS_OF_A_PROMPT = 2
OVERHEAD = 400
"""Bytes of the markup around one text."""


@dataclass(frozen=True)
class Shown:
    """One answer: what stands over it, its text, and what stands under it."""

    head: str
    text: str
    under: str = ""


@dataclass(frozen=True)
class Side:
    """What one run answered to a prompt."""

    label: str
    colour: int
    about: str
    answers: list[Shown]


@dataclass(frozen=True)
class Matched:
    """One prompt with the answers of the runs that have it."""

    prompt: str
    reference: str
    sides: list[Side]


@dataclass(frozen=True)
class Step:
    """A step whose prompts several runs have in common: the first of `common` prompts."""

    step: int
    prompts: list[Matched]
    common: int


@dataclass(frozen=True)
class Own:
    """What one run sampled, as (step, rows) like in its own report."""

    label: str
    steps: list[tuple[int, list[dict[str, Any]]]]


@dataclass(frozen=True)
class Answers:
    """The part of a page.

    Attributes:
        samples: prompts that were answered along the runs; those of the most runs first.
        samples_left: prompts that are not shown.
        steps: matched rollouts, in order of step.
        own: each run's own selection.
        unmatched: several runs have rollouts, and no prompt at the same step.
        left_out: texts that did not fit in the page.
    """

    samples: list[Matched]
    samples_left: int
    steps: list[Step]
    own: list[Own]
    unmatched: bool = False
    left_out: int = 0

    def __bool__(self) -> bool:
        return bool(self.samples or self.steps or self.own or self.left_out)

    def within(self, budget: int) -> Answers:
        """As many texts as fit in so many bytes: last steps first, then prompts along the runs, then the runs' own."""
        left = _Room(budget)
        steps = [replace(one, prompts=[p for p in one.prompts if left.has(_texts(p))]) for one in reversed(self.steps)]
        samples = [one for one in self.samples if left.has(_texts(one))]
        own = [
            replace(one, steps=[(step, [row for row in rows if left.has(_row_texts(row))]) for step, rows in one.steps])
            for one in self.own
        ]
        own = [replace(one, steps=[(step, rows) for step, rows in one.steps if rows]) for one in own]
        return replace(
            self,
            samples=samples,
            steps=[one for one in reversed(steps) if one.prompts],
            own=[one for one in own if one.steps],
            left_out=left.refused,
        )


class _Room:
    """Bytes that are left; once something does not fit, nothing more does."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.refused = 0

    def has(self, texts: Sequence[str]) -> bool:
        self.budget -= weight(texts) + OVERHEAD * len(texts)
        self.refused += self.budget < 0
        return self.budget >= 0


def _texts(one: Matched) -> list[str]:
    shown = [part for side in one.sides for a in side.answers for part in (a.text, a.head + a.under)]
    return [one.prompt, one.reference, *(side.label + side.about for side in one.sides), *shown]


def _row_texts(row: Mapping[str, Any]) -> list[str]:
    texts = [shortened(message_text(row[name])) for name in ("prompt", "completion")]
    return [*texts, *(name for name, _ in row["components"])]


def answers_beside(runs: Mapping[str, RunData], colours: Mapping[str, int]) -> Answers:
    """The answers of several runs.

    Args:
        runs: label to run, in the page's order.
        colours: of each label's line in the charts, from 0.
    """
    samples = _samples(runs, colours)
    stored = {label: found for label, run in runs.items() if (found := Sampled.of(run.path)).steps}
    steps = _steps(stored, colours)
    own = [Own(label, groups) for label, run in runs.items() if (groups := rollout_groups(run))]
    return Answers(
        samples=samples[:MOST_PROMPTS],
        samples_left=max(len(samples) - MOST_PROMPTS, 0),
        steps=steps,
        own=own,
        unmatched=len(stored) > 1 and not steps,
    )


def _samples(runs: Mapping[str, RunData], colours: Mapping[str, int]) -> list[Matched]:
    found: dict[str, Matched] = {}
    for label, run in runs.items():
        for one in over_time(run):
            matched = found.setdefault(one.prompt, Matched(one.prompt, one.reference, []))
            answers = [Shown(when, text) for when, text in one.answers]
            matched.sides.append(Side(label, colours[label], "", answers))
    return sorted(found.values(), key=lambda one: -len(one.sides))  # stable: else the order of appearance


def _steps(stored: Mapping[str, Sampled], colours: Mapping[str, int]) -> list[Step]:
    """Some steps at which at least two runs have a prompt in common; those that all runs have come first."""
    counts: dict[int, int] = {}
    for one in stored.values():
        for step in one.steps:
            counts[step] = counts.get(step, 0) + 1
    most = max(counts.values(), default=0)
    if most < 2:
        return []
    common = sorted(step for step, count in counts.items() if count == most)
    found: dict[int, Step] = {}
    for step in dict.fromkeys([*spread(common, MOST_STEPS), *spread(common, MOST_TRIED)]):
        if len(found) < MOST_STEPS and (made := _step(step, stored, colours)) is not None:
            found[step] = made
    return [found[step] for step in sorted(found)]


def _step(step: int, stored: Mapping[str, Sampled], colours: Mapping[str, int]) -> Step | None:
    """The step's prompts that at least two runs have, those of the most runs first; None where there is none."""
    by_run: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for label, one in stored.items():
        for row in one.at(step):
            by_run.setdefault(label, {}).setdefault(str(row["prompt"]), []).append(row)
    prompts = dict.fromkeys(prompt for found in by_run.values() for prompt in found)
    having = {prompt: [label for label, found in by_run.items() if prompt in found] for prompt in prompts}
    common = sorted((p for p in prompts if len(having[p]) > 1), key=lambda p: -len(having[p]))
    if not common:
        return None
    shown = [
        Matched(shortened(p), "", [_side(label, colours[label], by_run[label][p]) for label in having[p]])
        for p in common[:PROMPTS_OF_A_STEP]
    ]
    return Step(step, shown, len(common))


def _side(label: str, colour: int, rows: Sequence[dict[str, Any]]) -> Side:
    rewards = [row["reward"] for row in rows if row["reward"] is not None]
    mean = f", mean reward {compact(sum(rewards) / len(rewards))}" if rewards else ", none with a reward"
    about = f"{len(rows)} answers{mean}" if len(rows) > 1 else ""
    picked = best_first(rows, ANSWERS_OF_A_PROMPT)
    heads = ["best", "worst"] if len(picked) > 1 else [""]
    answers = []
    for head, row in zip(heads, picked, strict=True):
        reward = "no reward" if row["reward"] is None else f"reward {compact(row['reward'])}"
        under = ", ".join(f"{name} {compact(value)}" for name, value in components(row))
        text = shortened(message_text(row["completion"]))
        answers.append(Shown(f"{head}: {reward}" if head else reward, text, under))
    return Side(label, colour, about, answers)
