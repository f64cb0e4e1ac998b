"""From the runs of a comparison to verdicts: every arm against the first, seed by seed.

    comparison = analyse(runs, ["backend=trl", "backend=unsloth"], margin=0.02)
    comparison.row("backend=unsloth", "eval_reward").verdict      # 'equivalent within 0.02'

For each value and each arm after the first, runs of one seed are a pair (same data, same order). Differences of
held-out values and curves' ends: mean with Student's t interval over the seeds, and two one-sided tests against the
margin. Times, throughput and memory: the ratio, by the same tests on its logarithm. Where evaluations kept their items,
the scores are compared item by item, with the seeds and the items as samples (`aligntune.compare.crossed`); where all
seeds gave the same scores, as two models are (`aligntune.eval.significance`).

"different" is said where a difference of zero is refused at 5% after Holm's correction over all values of that arm;
with few seeds nothing but large differences can be told, and the row says how many seeds it would take. Medians,
because one run on a busy machine must not decide. No verdict stands on one seed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from aligntune.compare.crossed import crossed
from aligntune.compare.measure import RATIOS, Measured, direction
from aligntune.errors import ValidationError
from aligntune.eval.significance import Equivalence, adjust, equivalent_proportions, tost
from aligntune.eval.stats import mean_interval, paired_difference, paired_t_test

Kind = Literal["ratio", "difference", "items"]
HELD_OUT = ("eval_", "eval/", "items/")
"""How the names of held-out values begin: of the held-out rows, of `evaluation.tasks`, and of scores of items."""
SAME = ("packages", "system", "device")
"""Facts that ought to be the same in all runs; where they are not, a note says so."""


@dataclass(frozen=True)
class Row:
    """One value of one arm against the first.

    Attributes:
        arm: the arm.
        value: its name.
        kind: ratio (of positive values), difference, or items (scores of the same items).
        arm_median: over the seeds.
        base_median: of the first arm.
        change: median over the seeds of the ratio arm / base, or mean difference arm - base.
        low: lower bound of its interval.
        high: upper bound.
        n: seeds, or items.
        p_value: of no change; corrected over the arm's values in `p_adjusted`.
        p_adjusted: Holm.
        margin: as stated; None where none is.
        verdict: in words.
        needed: seeds (or items) that equivalence would take with 80% power.
        better: whether the change is for the better; None where the name does not say, or nothing is shown.
    """

    arm: str
    value: str
    kind: Kind
    arm_median: float
    base_median: float
    change: float
    low: float | None
    high: float | None
    n: int
    p_value: float | None = None
    p_adjusted: float | None = None
    margin: float | None = None
    verdict: str = ""
    needed: int | None = None
    better: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """Arms, their runs, and what was concluded.

    Attributes:
        arms: names; the first is what the others are compared with.
        runs: all of them, failed ones too.
        rows: conclusions.
        notes: sentences that a reader must know (failed runs, too few seeds, differing environments).
    """

    arms: list[str]
    runs: list[Measured]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    def row(self, arm: str, value: str) -> Row:
        """The conclusion on one value of an arm.

        Raises:
            ValidationError: there is none.
        """
        for row in self.rows:
            if (row.arm, row.value) == (arm, value):
                return row
        raise ValidationError(
            f"nothing was concluded on {value} of {arm}",
            hint=f"values: {', '.join(sorted({r.value for r in self.rows}))}",
        )

    @property
    def failed(self) -> list[Measured]:
        """Runs that did not finish."""
        return [run for run in self.runs if run.status != "finished"]

    @property
    def empty(self) -> list[str]:
        """Arms of which no run finished, so that nothing is known of them."""
        finished = {run.arm for run in self.runs if run.status == "finished"}
        return [arm for arm in self.arms if arm not in finished]

    def medians(self, arm: str) -> dict[str, float]:
        """Value to its median over the finished runs of an arm."""
        found: dict[str, list[float]] = {}
        for run in self.runs:
            if run.arm == arm and run.status == "finished":
                for name, value in run.values.items():
                    found.setdefault(name, []).append(value)
        return {name: statistics.median(values) for name, values in found.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "arms": self.arms,
            "rows": [row.to_dict() for row in self.rows],
            "runs": [run.to_dict() for run in self.runs],
            "notes": self.notes,
        }


def analyse(
    runs: Sequence[Measured],
    arms: Sequence[str],
    *,
    margin: float | Mapping[str, float] | None = None,
    ratio_margin: float = 0.05,
) -> Comparison:
    """Conclusions on the runs of a comparison.

    Args:
        runs: of all arms and seeds.
        arms: names, the first one first.
        margin: largest difference that does not matter: one for every held-out value (`eval_...`, and `eval/...` of
            tasks) and score of items that is better one way, or one for each by name.
        ratio_margin: largest share by which times, throughput and memory may differ.

    Raises:
        ValidationError: a margin that is not positive, or for a value that no run has.
    """
    check_margins(margin, ratio_margin)
    _check_names(runs, margin)
    good = {(r.arm, r.seed): r for r in runs if r.status == "finished"}
    seeds = list(dict.fromkeys(r.seed for r in runs))
    rows: list[Row] = []
    for arm in arms[1:]:
        pairs = [(good[arm, s], good[arms[0], s]) for s in seeds if (arm, s) in good and (arms[0], s) in good]
        if pairs:
            rows += _corrected([*_values(arm, pairs, margin, ratio_margin), *_items(arm, pairs, margin)])
    return Comparison(list(arms), list(runs), rows, _notes(runs, arms, seeds, margin))


def check_margins(margin: float | Mapping[str, float] | None, ratio_margin: float) -> None:
    """Refuse what cannot be a margin; to be called before anything is run, too.

    Raises:
        ValidationError: one that is not positive and finite.
    """
    stated = margin if isinstance(margin, Mapping) else {} if margin is None else {"every value": margin}
    for name, number in {**stated, "times and memory": ratio_margin}.items():
        if not (number > 0 and math.isfinite(number)):
            raise ValidationError(f"the margin of {name} is {number:g}", hint="state the largest change that is none")


def _check_names(runs: Sequence[Measured], margin: float | Mapping[str, float] | None) -> None:
    known = {name for run in runs for name in [*run.values, *map(_item_name, run.items)]}
    for name in margin if isinstance(margin, Mapping) and known else ():
        if name not in known:
            raise ValidationError(
                f"no run has the value '{name}'",
                hint=f"nothing is lost: name one of {', '.join(sorted(known))}, and read the runs again (--resume)",
            )


def _item_name(name: str) -> str:
    return f"items/{name}"


def _margin(name: str, margin: float | Mapping[str, float] | None) -> float | None:
    """The margin of a value: by name, or the one for held-out values that are better one way."""
    if isinstance(margin, Mapping):
        return margin.get(name)
    return margin if name.startswith(HELD_OUT) and direction(name) is not None else None


def _values(
    arm: str, pairs: Sequence[tuple[Measured, Measured]], margin: float | Mapping[str, float] | None, share: float
) -> list[Row]:
    names = [n for n in pairs[0][0].values if all(n in a.values and n in b.values for a, b in pairs)]
    rows = []
    for name in names:
        xs, ys = [a.values[name] for a, _ in pairs], [b.values[name] for _, b in pairs]
        if name in RATIOS and min(*xs, *ys) > 0:
            rows.append(_ratio(arm, name, xs, ys, share))
        else:
            rows.append(_difference(arm, name, xs, ys, _margin(name, margin)))
    return rows


def _ratio(arm: str, name: str, xs: list[float], ys: list[float], share: float) -> Row:
    """Ratios are compared on a logarithmic scale, on which twice and half are equally far."""
    logs = [math.log(x / y) for x, y in zip(xs, ys, strict=True)]
    interval = mean_interval(logs)
    test = tost(logs, math.log1p(share)) if len(logs) > 1 else None
    low, high = (None if bound is None else math.exp(bound) for bound in (interval.low, interval.high))
    return Row(
        arm, name, "ratio", statistics.median(xs), statistics.median(ys), math.exp(statistics.median(logs)), low, high,
        len(logs), None if test is None else test.p_different, None, share, _verdict(test, f"{share:.0%}"),
        None if test is None else test.needed,
    )  # fmt: skip


def _difference(arm: str, name: str, xs: list[float], ys: list[float], margin: float | None) -> Row:
    gaps = [x - y for x, y in zip(xs, ys, strict=True)]
    interval = mean_interval(gaps)
    test = tost(gaps, margin) if margin is not None and len(gaps) > 1 else None
    p = paired_t_test(gaps) if test is None else test.p_different
    return Row(
        arm, name, "difference", statistics.median(xs), statistics.median(ys), interval.estimate, interval.low,
        interval.high, len(gaps), p, None, margin, _verdict(test, None if margin is None else f"{margin:g}"),
        None if test is None else test.needed,
    )  # fmt: skip


def _items(
    arm: str, pairs: Sequence[tuple[Measured, Measured]], margin: float | Mapping[str, float] | None
) -> list[Row]:
    """Scores of the items that both arms answered under every seed."""
    rows = []
    for name in pairs[0][0].items:
        if not all(name in a.items and name in b.items for a, b in pairs):
            continue
        shared = set.intersection(*(set(side.items[name]) for pair in pairs for side in pair))
        ids = [i for i in pairs[0][0].items[name] if i in shared]
        if len(ids) < 2:
            continue
        sides = [[[run.items[name][i] for i in ids] for run in pair] for pair in pairs]
        rows.append(_item_row(arm, _item_name(name), sides, _margin(_item_name(name), margin)))
    return rows


def _item_row(arm: str, name: str, sides: Sequence[Sequence[Sequence[float]]], margin: float | None) -> Row:
    """The row of one score; `sides` holds for each seed the arm's and the first arm's scores of the same items."""
    k, n = len(sides), len(sides[0][0])
    xs, ys = ([math.fsum(column) / k for column in zip(*(s[i] for s in sides), strict=True)] for i in (0, 1))
    means = math.fsum(xs) / n, math.fsum(ys) / n
    gaps = [[x - y for x, y in zip(*side, strict=True)] for side in sides]
    test: Equivalence | None
    if all(row == gaps[0] for row in gaps):  # nothing varies between the seeds, or there is one
        found = paired_difference(xs, ys)
        p = found.p_value if k > 1 else None
        test = _equivalence(xs, ys, margin) if margin is not None and k > 1 else None
        change, low, high = found.difference, found.low, found.high
    else:
        both = crossed(gaps)
        test = both.tost(margin) if margin is not None else None
        change, p, (low, high) = both.mean, both.p_value, both.interval()
    stated = None if margin is None else f"{margin:g}"
    needed = None if test is None else test.needed
    return Row(arm, name, "items", *means, change, low, high, n, p, None, margin, _verdict(test, stated), needed)


def _equivalence(xs: Sequence[float], ys: Sequence[float], margin: float) -> Equivalence:
    if margin < 1 and all(v in (0, 1) for v in [*xs, *ys]):
        pairs = list(zip(xs, ys, strict=True))
        both, first, second, neither = (pairs.count(cell) for cell in ((1, 1), (1, 0), (0, 1), (0, 0)))
        return equivalent_proportions(both, first, second, neither, margin)
    return tost([x - y for x, y in zip(xs, ys, strict=True)], margin)


def _verdict(test: Equivalence | None, margin: str | None) -> str:
    """Equivalence or its lack; a difference is told after the correction (`_corrected`)."""
    if test is None:
        return "no verdict: one seed" if margin is not None else ""
    if test.verdict == "equivalent":
        return f"equivalent within {margin}"
    return "not enough data" + (f": about {test.needed} needed" if test.needed and test.needed > test.n else "")


def _corrected(rows: Sequence[Row]) -> list[Row]:
    """Holm over the arm's values; a difference that stands becomes the verdict, unless the arms are equivalent."""
    done = []
    for row, p in zip(rows, adjust([row.p_value for row in rows]), strict=True):
        changed = p is not None and p < 0.05
        verdict = row.verdict
        if changed and not verdict.startswith("equivalent"):
            verdict = "different"
        elif not verdict and p is not None:
            verdict = "no difference shown"
        gain = row.change > (1.0 if row.kind == "ratio" else 0.0)
        larger = direction(row.value)
        better = None if larger is None or not changed else gain == larger
        done.append(Row(**{**asdict(row), "p_adjusted": p, "verdict": verdict, "better": better}))
    return done


def _notes(
    runs: Sequence[Measured],
    arms: Sequence[str],
    seeds: Sequence[int],
    margin: float | Mapping[str, float] | None,
) -> list[str]:
    notes = [f"{r.arm}, seed {r.seed} failed: {r.error}" for r in runs if r.status != "finished"]
    if len(seeds) < 3:
        notes.append(
            f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}: the spread between training runs is "
            f"{'not measured' if len(seeds) == 1 else 'hardly measured'}; 3 are the least, 5 are better"
        )
    if margin is None:
        notes.append("no margin was stated, so nothing on held-out values can be called equivalent (--margin)")
    for key in SAME:
        kinds = {str(r.facts.get(key)) for r in runs if r.facts.get(key) is not None}
        if len(kinds) > 1:
            notes.append(f"the runs differ in {key}: see each run's manifest.json")
    return [*notes, *_order_notes(runs, arms, seeds)]


def _order_notes(runs: Sequence[Measured], arms: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """A sentence for each arm that trained on other batches than the first, or on the same in another order."""
    orders = {(r.arm, r.seed): r.facts["data_order"].get("sha256") for r in runs if r.facts.get("data_order")}
    notes = []
    for arm in arms[1:]:
        both = [s for s in seeds if (arm, s) in orders and (arms[0], s) in orders]
        if other := [str(s) for s in both if orders[arm, s] != orders[arms[0], s]]:
            which = f"seed{'s' if len(other) > 1 else ''} {', '.join(other)}"
            notes.append(f"{arm} did not see the batches of {arms[0]} in their order ({which}): see order.jsonl")
    return notes
