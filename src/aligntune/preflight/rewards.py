"""Checks of a run's rewards on its own rows: gold answers earn the most, junk earns nothing, every component varies.

The rewards score three answers to each of some rows: the gold answer in the forms that are usual for it, junk, and the
gold answer of another row. A reward that reads the gold column must give one of the forms its highest score, and junk
its lowest; the sum of all must prefer gold to junk; and over all these answers each component must vary.

>>> checks(subject)[0].reason
'the gold answer earns the maximum of math_correctness in all 16 rows'
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from aligntune.errors import AlignTuneError
from aligntune.preflight.subject import Subject, said
from aligntune.preflight.verdict import Verdict, excerpt, numbers, percent
from aligntune.rewards.signature import GOLD, GOLD_COLUMNS, gold_column

ROWS = 16
"""Rows whose answers are scored."""
COSTLY = ("model", "judge")
"""Kinds of reward that a check does not call."""
JUNK = ("", "?", "I do not know.", "lorem ipsum dolor sit amet consectetur", "yes yes yes yes yes yes yes yes")
"""Answers that answer nothing."""
FORMS = (
    "{0}",
    "The answer is {0}.",
    "#### {0}",
    "\\boxed{{{0}}}",
    "<answer>{0}</answer>",
    "<think>\nI work it out.\n</think>\n<answer>{0}</answer>",
    "```python\n{0}\n```",
    "```sql\n{0}\n```",
    "<think>\nI work it out.\n</think>\n\\boxed{{{0}}}",
)
"""Ways in which a right answer is written, around the gold answer."""


def checks(subject: Subject, composite: Any = None) -> list[Verdict]:
    """Every check of the run's rewards; nothing where it has none.

    Args:
        subject: with its training rows.
        composite: the run's `CompositeReward`, if it is made already.
    """
    if not subject.config.algorithm.uses_rewards or subject.train is None:
        return []
    try:
        made, costly = (composite, []) if composite is not None else _build(subject)
        found = []
        if costly:
            told = f"{', '.join(costly)} asks a model or a judge, which costs time or money; `--smoke` calls it"
            found.append(Verdict("costly-rewards", "rewards", "skip", told))
        if made is not None:
            rows = subject.train.dataset
            made.check_columns(rows.column_names)
            found += _score(made, rows.select(range(min(ROWS, len(rows)))), whole=not costly)
        return found
    except AlignTuneError as error:
        return [Verdict("rewards", "rewards", "fail", error.message, fix=error.hint or "")]


def _build(subject: Subject) -> tuple[Any, list[str]]:
    """The run's rewards without those that ask a model or a judge (None where that is all), and the names of those."""
    from aligntune.rewards import build_rewards

    config: Any = subject.config
    made = build_rewards(config.rewards, composition=config.composition, judge=config.judge)
    costly = [c.name for c in made.components if c.reward.kind in COSTLY]
    if not costly:
        return config.algorithm.rewards(made), []
    pairs = zip(config.rewards, made.components, strict=True)
    cheap = [given for given, component in pairs if component.name not in costly]
    return (build_rewards(cheap) if cheap else None), costly


def _score(made: Any, rows: Any, *, whole: bool) -> list[Verdict]:
    columns = {name: list(rows[name]) for name in rows.column_names}
    gold = gold_column(columns)
    count = len(rows)
    junk = _scores(made, [[text] * count for text in JUNK], columns)
    if gold is None:
        told = f"the rows have no gold answer ({', '.join(GOLD_COLUMNS)})"
        return [Verdict("gold-reward", "rewards", "skip", told), _varies(made, junk)]
    answers = [[form.format(said(value)) for value in columns[gold]] for form in FORMS]
    answers += [[said(v) for v in columns[name]] for name in GOLD_COLUMNS if name in columns and name != gold]
    shifted = [columns[gold][(i + 1) % count] for i in range(count)]
    right = _scores(made, answers, columns)
    other = _scores(made, [[form.format(said(value)) for value in shifted] for form in FORMS], columns)
    readers = [c.name for c in made.components if _reads_gold(c, columns)]
    found = [_gold(made, readers, right, columns[gold]), _junk(made, readers, junk)]
    if whole and readers:
        found.append(_prefers(right, junk))
    found.append(_varies(made, {n: right[n] + junk[n] + other[n] for n in right}))
    return found


def _scores(
    made: Any, answers: Sequence[Sequence[str]], columns: Mapping[str, list[Any]]
) -> dict[str, list[list[Any]]]:
    """Component (and `total`) to a list for each way of answering, of one score for each row."""
    names = [c.name for c in made.components]
    result: dict[str, list[list[Any]]] = {name: [] for name in (*names, "total")}
    for texts in answers:
        scored = made.score_batch(list(texts), dict(columns))
        for name in names:
            result[name].append(scored.raw[name])
        result["total"].append(scored.total)
    return result


def _reads_gold(component: Any, columns: Mapping[str, Any]) -> bool:
    """Whether a reward needs the gold answer, under its own name or another."""
    named = set(component.reward.columns)
    return bool(named & {GOLD, *GOLD_COLUMNS}) and bool(set(columns) & set(GOLD_COLUMNS))


def _best(scores: Sequence[Sequence[Any]]) -> list[float | None]:
    """The highest score of each row over the ways of answering."""
    best: list[float | None] = []
    for row in zip(*scores, strict=True):
        known = [s for s in row if s is not None]
        best.append(max(known) if known else None)
    return best


def _gold(made: Any, readers: list[str], right: Mapping[str, Any], golds: Sequence[Any]) -> Verdict:
    evidence, rows, total = [], set[int](), len(golds)
    for c in made.components:
        high = c.reward.range[1]
        if c.name not in readers or not math.isfinite(high):
            continue
        best = _best(right[c.name])
        low = [i for i, score in enumerate(best) if score is None or score < high - 1e-9]
        if low:
            rows |= set(low)
            i = low[0]
            evidence.append(
                f"{c.name}: {percent(len(low), total)} rows, such as row {i + 1} with gold "
                f"{excerpt(said(golds[i]), 40)!r}: at most {best[i]} of {high:g}"
            )
    if not readers:
        return Verdict("gold-reward", "rewards", "pass", "no reward compares with the gold answer")
    if not rows:
        said_of = f"the gold answer earns the maximum of {', '.join(readers)} in all {total} rows"
        return Verdict("gold-reward", "rewards", "pass", said_of)
    return Verdict(
        "gold-reward",
        "rewards",
        "fail" if len(rows) > 0.5 * total else "warn",
        f"in {percent(len(rows), total)} rows the gold answer earns less than the maximum, however it is written",
        evidence,
        "check the gold column (column_mapping: {reference: ...}) and the form of answer that the reward reads",
        {"rows": sorted(rows)},
    )


def _junk(made: Any, readers: list[str], junk: Mapping[str, Any]) -> Verdict:
    evidence, worst = [], 0.0
    for c in made.components:
        low = c.reward.range[0]
        floor = max(low, 0.0) if math.isfinite(low) else 0.0
        if c.name not in readers:
            continue
        for text, scores in zip(JUNK, junk[c.name], strict=True):
            paid = [i for i, s in enumerate(scores) if s is not None and s > floor + 1e-9]
            if paid:
                worst = max(worst, len(paid) / len(scores))
                evidence.append(f"{c.name} pays {max(scores[i] for i in paid):g} for {text!r} ({numbers(paid)})")
    if not evidence:
        said_of = (
            f"junk earns nothing from {', '.join(readers)}" if readers else "no reward compares with the gold answer"
        )
        return Verdict("junk-reward", "rewards", "pass", said_of)
    return Verdict(
        "junk-reward", "rewards", "fail" if worst > 0.5 else "warn", "answers that say nothing are paid", evidence[:6],
        "make the reward compare with the whole gold answer, or set its threshold",
    )  # fmt: skip


def _prefers(right: Mapping[str, Any], junk: Mapping[str, Any]) -> Verdict:
    gold = [b for b in _best(right["total"]) if b is not None]
    trash = [s for scores in junk["total"] for s in scores if s is not None]
    if not gold or not trash:
        return Verdict("reward-order", "rewards", "skip", "the sum of the rewards is None for these answers")
    best, most = sum(gold) / len(gold), sum(trash) / len(trash)
    told = f"summed with their weights, gold earns {best:.3g} and junk {most:.3g} on average"
    if best > most:
        return Verdict("reward-order", "rewards", "pass", told)
    return Verdict("reward-order", "rewards", "fail", told, [], "change the weights: the run would learn to write junk")


def _varies(made: Any, scores: Mapping[str, Any]) -> Verdict:
    constant = []
    for c in made.components:
        values = {s for row in scores[c.name] for s in row}
        if len(values) <= 1:
            constant.append((c.name, next(iter(values), None)))
    count = sum(len(row) for row in scores[made.components[0].name])
    if not constant:
        return Verdict(
            "constant-reward", "rewards", "pass", f"each component varies over {count} answers, good and bad"
        )
    return Verdict(
        "constant-reward",
        "rewards",
        "warn",
        f"{', '.join(n for n, _ in constant)} gives each of {count} answers the same: nothing can be learned from it",
        [f"{name} is always {value}" for name, value in constant],
        "check its parameters and the columns that it reads, or remove it",
        {"components": [n for n, _ in constant]},
    )
