"""Tests of a reward on real rows, before anybody trains with it: gold scores highest, what only looks right does not.

    trial = try_reward(reward, rows)
    trial.passed, [c.name for c in trial.checks if c.status == "fail"]

- `gold`: at least 98% of the rows score `least` (0.95) of the range with their gold text.
- `empty`, `echo`, `junk`, `keywords`, `hedge`, `another answer`, `gold in noise`, `shortest`, `longest`, `injection`:
  the mean stays below the gold's by `gap` of the range (0.2; 0.1 for overlap with a reference), and at most 10% of the
  rows reach their gold's score.
- `deterministic`, `batch`, `order`, `pickle`: equal scores a second time, one by one, in reverse, and of a copy.
- `hostile texts`, `exceptions`: no text raises.
- `latency` never fails: milliseconds of a call (p50, p95, p99) and texts a second in a batch.

Where no gold text is to be had, or the range has no ends, the checks take what can be compared: `empty` must not score
the maximum of a verifiable reward; on an unbounded range gold must beat a probe in 9 of 10 rows. What does not apply is
`not applicable`, with the reason, and never a pass. The texts are in `probes`.

It cannot know what the reward was meant to measure.
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from aligntune.errors import RewardError, ValidationError
from aligntune.rewards.audit.lists import columns_of
from aligntune.rewards.audit.probes import HOSTILE, Probe, gold_text, probes
from aligntune.rewards.base import RewardFunction, Score
from aligntune.rewards.signature import PROVIDED

PASS, FAIL, SKIP, MEASURED = "pass", "fail", "not applicable", "measured"
GOLD_COLUMNS = (
    "canonical_solution", "code", "completion", "response", "output", "solution", "answer", "query", "reference",
)  # fmt: skip
"""Where the gold text is looked for, in this order, unless the user names a column."""
LEAST, MOST_EQUAL, GOLD_ROWS, BEATS = 0.95, 0.1, 0.98, 0.9
GAPS = {"reference": 0.1}
"""Overlap gives "the right answer or another one" its due: chrF 0.82 (XSum), METEOR 0.88 (TruthfulQA)."""
GAP = 0.2
COMPARES = ("verifiable", "reference")
"""Kinds that compare with the row, so that its gold answer should score highest."""
SINGLES = 200
"""Texts that are timed one by one."""


@dataclass(frozen=True)
class Check:
    """One check: its status, what was seen, and for `not applicable` the reason."""

    name: str
    status: str
    detail: str


@dataclass(frozen=True)
class RewardTrial:
    """All checks of one reward."""

    name: str
    kind: str
    rows: int
    gold: str | None
    checks: list[Check]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.status != FAIL for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "passed": self.passed}


class _Scorer:
    """Scores texts of the rows, and counts what raised."""

    def __init__(self, reward: RewardFunction, rows: Sequence[Mapping[str, Any]]) -> None:
        self.reward = reward
        self.columns = columns_of(rows)
        self.failures: list[RewardError] = []

    def __call__(self, texts: Sequence[str | None], order: Sequence[int] | None = None) -> list[Score]:
        """Scores in a batch; None for a row without a text. `order` scores the rows in that order."""
        at = [i for i in (range(len(texts)) if order is None else order) if texts[i] is not None]
        given = {name: [values[i] for i in at] for name, values in self.columns.items()}
        found = self.reward.batch([texts[i] or "" for i in at], given, failures=self.failures)
        scores: list[Score] = [None] * len(texts)
        for i, score in zip(at, found, strict=True):
            scores[i] = score
        return scores

    def single(self, texts: Sequence[str | None], i: int) -> Score:
        """The score of one row alone."""
        given = {name: [values[i]] for name, values in self.columns.items()}
        return self.reward.batch([texts[i] or ""], given, failures=self.failures)[0]


def try_reward(
    reward: RewardFunction,
    rows: Sequence[Mapping[str, Any]],
    *,
    name: str | None = None,
    gold: str | None = None,
    least: float = LEAST,
    gap: float | None = None,
    seed: int = 0,
) -> RewardTrial:
    """Run every check.

    Args:
        reward: made with its parameters.
        rows: with `prompt` and the columns that the reward reads, at least two.
        name: in the result; the reward's own if left out.
        gold: the column with texts that should score highest.
        least: share of the range that gold must reach.
        gap: share of the range that probes must stay below gold; None takes that of the reward's kind.
        seed: of the probes.

    Raises:
        ValidationError: fewer than two rows, or a column is missing.
    """
    if len(rows) < 2:
        raise ValidationError("a reward is tested on at least two rows", hint="give more data")
    present = list(columns_of(rows))
    if missing := reward.missing(present):
        raise ValidationError(
            f"reward '{reward.label}' needs the column {', '.join(missing)}",
            hint=f"the data have: {', '.join(sorted(present))}; map one with column_mapping",
        )
    column, why = _gold_column(reward, rows, gold)
    golds = [gold_text(row.get(column)) for row in rows] if column else [None] * len(rows)
    score = _Scorer(reward, rows)
    gap = GAPS.get(reward.kind, GAP) if gap is None else gap
    checks, base = [], score(golds)
    checks.append(_gold(reward, golds, base, least, why))
    for probe in probes(rows, golds, seed=seed):
        checks.append(_probe(reward, probe, score, base, column, gap, why))
    checks += _stable(reward, rows, golds if column else [*_plain_texts(rows)], score)
    checks.append(_hostile(score))
    raised = len(score.failures)
    detail = f"{raised} texts raised" + (f", first: {score.failures[0].message}" if raised else "")
    checks.append(Check("exceptions", FAIL if raised else PASS, detail))
    return RewardTrial(name or reward.label, reward.kind, len(rows), column, checks)


def _gold_column(
    reward: RewardFunction, rows: Sequence[Mapping[str, Any]], given: str | None
) -> tuple[str | None, str]:
    """The column with the gold text, or the reason why there is none."""
    if given is not None:
        if not any(given in row for row in rows):
            raise ValidationError(f"there is no column '{given}'", hint=f"columns: {', '.join(sorted(rows[0]))}")
        return given, ""
    if reward.kind not in COMPARES:
        return (
            None,
            f"a {reward.kind} reward has no gold answer; name a column with good texts (--gold) to compare with",
        )
    read = reward.reads(list(columns_of(rows))) - PROVIDED
    if not read:
        return None, "it compares with no column of the row; name a column of good texts to compare with (--gold)"
    for name in GOLD_COLUMNS:
        if all(gold_text(row.get(name)) is not None for row in rows) and isinstance(rows[0].get(name), (str, list)):
            return name, ""
    return None, "the data have no gold text; name its column (--gold)"


def _gold(
    reward: RewardFunction, golds: Sequence[str | None], scores: Sequence[Score], least: float, why: str
) -> Check:
    low, high = reward.range
    if why:
        return Check("gold", SKIP, why)
    there = [s for s in scores if s is not None]
    if not there:
        return Check("gold", FAIL, f"none of {len(golds)} gold texts has a score")
    mean = sum(there) / len(there)
    if not (math.isfinite(low) and math.isfinite(high)):
        return Check("gold", SKIP, f"the range has no ends, so there is no maximum; gold scores {mean:.3g} on average")
    need = low + least * (high - low)
    good = sum(s >= need - 1e-9 for s in there) / len(there)
    detail = f"{good:.1%} of {len(there)} gold texts score at least {need:.3g}; mean {mean:.3g}"
    if len(there) < len(golds):
        detail += f"; {len(golds) - len(there)} rows without a score"
    if good < GOLD_ROWS:
        worst = min(range(len(scores)), key=lambda i: math.inf if scores[i] is None else scores[i] or 0.0)
        detail += f"; lowest {scores[worst]:.3g} in row {worst}"
    return Check("gold", PASS if good >= GOLD_ROWS else FAIL, detail)


def _probe(
    reward: RewardFunction,
    probe: Probe,
    score: _Scorer,
    base: Sequence[Score],
    column: str | None,
    gap: float,
    why: str,
) -> Check:
    low, high = reward.range
    if column is None and (probe.name != "empty" or reward.kind != "verifiable"):
        return Check(probe.name, SKIP, why)
    if column is None and not math.isfinite(high):
        return Check(probe.name, SKIP, f"the range has no upper end, so there is no maximum to reach; {why}")
    scores = score(probe.texts)
    if column is None:
        top = sum(s is not None and s >= high - 1e-9 for s in scores) / len(scores)
        return Check(
            probe.name, FAIL if top > MOST_EQUAL else PASS, f"{top:.0%} of the rows score the maximum {high:g}"
        )
    pairs = [(g, s) for g, s in zip(base, scores, strict=True) if g is not None and s is not None]
    if probe.needs_gold and not reward.reads(score.columns):
        return Check(probe.name, SKIP, "it compares with no column of the row, so every row's answer is as good")
    if not pairs:
        return Check(probe.name, SKIP, f"no row gives such a text with a score ({probe.about})")
    gold_mean, mean = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    equal = sum(s >= g - 1e-9 for g, s in pairs) / len(pairs)
    seen = f"mean {mean:.3g} against {gold_mean:.3g} for gold; {equal:.0%} of the rows reach their gold ({probe.about})"
    if math.isfinite(low) and math.isfinite(high):
        good = gold_mean - mean >= gap * (high - low) and equal <= MOST_EQUAL
    else:
        good = equal <= 1 - BEATS
    return Check(probe.name, PASS if good else FAIL, seen)


def _plain_texts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Some texts for the checks that need no right answer."""
    found = [next((t for n in GOLD_COLUMNS if (t := gold_text(row.get(n))) is not None), None) for row in rows]
    return [text if text is not None else f"Answer number {i}, in a few words." for i, text in enumerate(found)]


def _stable(
    reward: RewardFunction, rows: Sequence[Mapping[str, Any]], texts: Sequence[str | None], score: _Scorer
) -> list[Check]:
    """Determinism, batch against single, order, pickling and latency."""
    start = time.perf_counter()
    first = score(texts)
    whole = time.perf_counter() - start
    again = score(texts)
    checks = [_same("deterministic", first, again, reward, "the same batch a second time")]
    took, singles = [], []
    for i in range(min(len(rows), SINGLES)):
        start = time.perf_counter()
        singles.append(score.single(texts, i))
        took.append(1000 * (time.perf_counter() - start))
    if all(s is None for s in singles) and any(s is not None for s in first):
        reason = "it compares the answers to one prompt with each other: a text alone has no score"
        checks += [Check("batch", SKIP, reason), Check("order", SKIP, reason)]
    else:
        checks.append(_same("batch", first[: len(singles)], singles, reward, "one by one"))
        backwards = score(texts, range(len(rows) - 1, -1, -1))
        checks.append(_same("order", first, backwards, reward, "in reverse order"))
    checks.append(_pickled(reward, rows, texts, first))
    took.sort()
    p50, p95, p99 = (took[min(len(took) - 1, int(q * len(took)))] for q in (0.5, 0.95, 0.99))
    rate = len(rows) / whole if whole > 0 else math.inf
    detail = f"p50 {p50:.2f} ms, p95 {p95:.2f} ms, p99 {p99:.2f} ms a text; {rate:,.0f} texts a second in a batch"
    return [*checks, Check("latency", MEASURED, detail)]


def _same(name: str, a: Sequence[Score], b: Sequence[Score], reward: RewardFunction, how: str) -> Check:
    """Equal, or for a model's score within a rounding that batching may bring."""
    slack = 1e-4 if reward.kind in ("model", "judge") else 1e-9
    different = [
        i
        for i, (x, y) in enumerate(zip(a, b, strict=True))
        if (x is None) != (y is None) or (x is not None and y is not None and abs(x - y) > slack * max(1.0, abs(x)))
    ]
    if not different:
        return Check(name, PASS, f"equal scores {how}")
    i = different[0]
    return Check(name, FAIL, f"{len(different)} of {len(a)} scores differ {how}: row {i} {a[i]} and {b[i]}")


def _pickled(
    reward: RewardFunction, rows: Sequence[Mapping[str, Any]], texts: Sequence[str | None], first: Sequence[Score]
) -> Check:
    try:
        copy = pickle.loads(pickle.dumps(reward))  # noqa: S301 - written in the same breath
    except (pickle.PicklingError, TypeError, AttributeError) as e:
        return Check("pickle", FAIL, f"cannot be copied into another process: {e}")
    return _same("pickle", first, _Scorer(copy, rows)(texts), reward, "by a pickled copy")


def _hostile(score: _Scorer) -> Check:
    """Texts that nobody writes, on the first row."""
    before = len(score.failures)
    bad = []
    for name, text in HOSTILE.items():
        known = len(score.failures)
        score([text, *[None] * (len(next(iter(score.columns.values()))) - 1)])
        if len(score.failures) > known:
            bad.append(name)
    if len(score.failures) > before:
        return Check("hostile texts", FAIL, f"raised for: {', '.join(bad)}")
    return Check("hostile texts", PASS, f"none of {len(HOSTILE)} raised (NUL, surrogates, 500 KB, deep brackets ...)")
