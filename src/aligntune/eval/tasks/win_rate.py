"""Win rate: are the model's answers better than another's to the same prompts?

The other side is the row's reference, another model (`opponent`), or an earlier evaluation (the folder with its
`results.json`), whose answers are found by their questions. A judge sees each pair twice, with the answers swapped
(`rubric`, by default the shipped `pairwise`), and a verdict that turns with the order counts as a tie (Zheng et al.
2023, arXiv:2306.05685, section 3.4); `consistency` is the share of pairs on which both orders agree. With `rewards`
the answer with the higher total wins, and no judge is asked.

A pair without a verdict (the judge gave none, or nonsense) has no score and is counted. `longer` is the share of
answers longer than the other's, since judges like length; `tie` the share of ties. It does not rank several models:
compare each with the same opponent.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aligntune.errors import ConfigurationError, ValidationError
from aligntune.eval.metrics.base import MeanMetric, Metric
from aligntune.eval.metrics.win_rate import WinRateMetric
from aligntune.eval.tasks.base import GENERATION, EvalKind, Row, Subject, answers, generation_faults

if TYPE_CHECKING:
    from aligntune.eval.config import EvalSettings, EvalTask

SAID = {"first": "win", "second": "loss", "tie": "tie"}


class WinRate(EvalKind):
    """`win_rate` against references, another model or an earlier result, by a judge or by rewards."""

    options = (GENERATION - {"num_samples"}) | {"opponent", "rubric", "rewards", "composition"}

    @classmethod
    def faults(cls, task: EvalTask) -> list[tuple[str, str]]:
        """A rubric is for judges, and compares two answers."""
        found = generation_faults(task)
        if task.rewards:
            if task.rubric != type(task).rubric:
                found.append(("rubric", "has no effect where rewards decide; remove one of them"))
            return found
        from aligntune.rewards.judges import load_rubric

        try:
            rubric = load_rubric(task.rubric)
        except ConfigurationError as e:
            return [*found, ("rubric", f"{e.message}; {e.hint}")]
        if rubric.form != "winner":
            found.append(("rubric", f"'{rubric.name}' scores one answer; name one of form: winner"))
        return found

    @classmethod
    def asks_judge(cls, task: EvalTask) -> bool:
        """Unless rewards decide."""
        return not task.rewards

    def check(self, rows: Sequence[Row], rewards: Any = None) -> None:
        """The columns that the rewards read must be there."""
        super().check(rows, rewards)
        if rewards is not None:
            rewards.check_columns([*{name for row in rows for name in row}, "prompt", "completion"])

    def items(
        self, rows: Sequence[Row], ids: Sequence[str], settings: EvalSettings, subject: Subject
    ) -> list[dict[str, Any]]:
        """Answers of both sides, with both verdicts, or both scores."""
        ours = answers(rows, ids, settings, subject)
        theirs = self._others(rows, ids, settings, subject)
        pairs = [{**item, "opponent": text, "longer": _longer(item["output"], text)} for item, text in
                 zip(ours, theirs, strict=True)]  # fmt: skip
        if subject.rewards is not None:
            return self._scored(pairs, rows, subject)
        if subject.judge is None:
            raise ValidationError("the kind win_rate needs a judge or rewards", hint="pass judge= or rewards=")
        return self._judged(pairs, settings, subject)

    @staticmethod
    def _others(rows: Sequence[Row], ids: Sequence[str], settings: EvalSettings, subject: Subject) -> list[str | None]:
        """The other side's answers; None where it has none."""
        other = subject.opponent
        if other is None:
            return [None if row.get("reference") is None else str(row["reference"]) for row in rows]
        if other.answers is not None:
            return [other.answers.get(i) for i in ids]
        side = dataclasses.replace(subject, model=other.model, tokenizer=other.tokenizer)
        return [item["output"] for item in answers(rows, ids, settings, side)]

    @staticmethod
    def _scored(pairs: list[dict[str, Any]], rows: Sequence[Row], subject: Subject) -> list[dict[str, Any]]:
        columns = {name: [row.get(name) for row in rows] for name in sorted({n for row in rows for n in row})}
        own = subject.rewards.score_batch([pair["output"] for pair in pairs], columns).total
        other = subject.rewards.score_batch([pair["opponent"] or "" for pair in pairs], columns).total
        return [
            {**pair, "score": a, "other_score": None if pair["opponent"] is None else b}
            | {"tie": None if a is None or b is None or pair["opponent"] is None else float(a == b)}
            for pair, a, b in zip(pairs, own, other, strict=True)
        ]

    @staticmethod
    def _judged(pairs: list[dict[str, Any]], settings: EvalSettings, subject: Subject) -> list[dict[str, Any]]:
        from aligntune.rewards.judges import compare, load_rubric

        known = [pair for pair in pairs if pair["opponent"] is not None]
        asked = [(pair["prompt"], pair["output"], pair["opponent"]) for pair in known]
        verdicts = iter(compare(subject.judge, asked, load_rubric(settings.rubric)))
        found = []
        for pair in pairs:
            verdict = None if pair["opponent"] is None else next(verdicts)
            first, second = (None, None) if verdict is None else (verdict.straight, verdict.swapped)
            both = first is not None and second is not None
            found.append({
                **pair,
                "first": SAID[first] if first else None,
                "second": SAID[second] if second else None,
                "consistent": float(first == second) if both else None,
                "tie": float(first == second == "tie" or first != second) if both else None,
                "problem": "no_opponent" if verdict is None else verdict.problem,
            })  # fmt: skip
        return found

    def metrics(self, settings: EvalSettings, items: Sequence[Mapping[str, Any]]) -> list[Metric]:
        """The win rate first."""
        judged = bool(items) and "first" in items[0]
        rate = WinRateMetric("verdicts" if judged else "scores")
        rate.why_missing = (
            "the judge gave no verdict that could be read, or the other side has no answer"
            if judged
            else "an answer has no reward, or the other side has no answer"
        )
        consistency: list[Metric] = [MeanMetric("consistent", "consistency")] if judged else []
        return [
            rate,
            MeanMetric("tie", higher_is_better=False),
            *consistency,
            MeanMetric("longer", higher_is_better=False),
            MeanMetric("tokens", higher_is_better=False),
            MeanMetric("finished"),
        ]

    def details(self, settings: EvalSettings, items: Sequence[Mapping[str, Any]], subject: Subject) -> dict[str, Any]:
        """Who was met, who judged, and why pairs have no verdict."""
        problems = Counter(item["problem"] for item in items if item.get("problem"))
        return {
            "opponent": subject.opponent.name if subject.opponent else "reference",
            **({"judge": subject.judge.name} if items and "first" in items[0] else {}),
            **({"problems": dict(problems)} if problems else {}),
        }


def _longer(ours: str, theirs: str | None) -> float | None:
    """1 if our answer has more characters, 0.5 if as many, 0 if fewer."""
    if theirs is None:
        return None
    return 0.5 if len(ours) == len(theirs) else float(len(ours) > len(theirs))
