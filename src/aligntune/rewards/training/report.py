"""The validation report of a reward model: numbers with intervals, checks with stated thresholds, a verdict.

A check passes where the whole 95% interval is on the good side of its threshold, fails where the whole interval is on
the other side (or touches it), and is undecided in between. The verdict is `fail` where any check fails, `undecided`
where a required one is undecided, else `pass`. Advisory checks are told and decide nothing.

>>> check("pair accuracy", Interval(0.6, 0.55, 0.65, 300, "wilson"), "above", 0.5, "ranks pairs").status
'pass'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from aligntune.eval.stats import Interval

Status = Literal["pass", "fail", "undecided"]


@dataclass(frozen=True)
class Thresholds:
    """What the verdict asks for.

    Attributes:
        accuracy: pair accuracy must be above this (a coin has 0.5).
        over_length: accuracy minus the length baseline's must be above this.
        matched: accuracy on pairs of equal length must be above this.
        matched_prompts: with pairs of equal length for fewer prompts nothing is said of them.
        length_correlation: the correlation of score and length differences must be below this, in size.
        perturbation: the clean answer must win more often than this against each disturbed one (advisory where reward
            functions labelled the pairs, because they may themselves prefer the disturbed one).
        flat: the share of prompts whose answers all score the same must be below this.
        calibration: the expected calibration error should be below this (advisory).
    """

    accuracy: float = 0.5
    over_length: float = 0.0
    matched: float = 0.5
    matched_prompts: int = 30
    length_correlation: float = 0.5
    perturbation: float = 0.5
    flat: float = 0.5
    calibration: float = 0.1


@dataclass(frozen=True)
class Check:
    """One line of the verdict.

    Attributes:
        name: what is checked.
        status: pass, fail or undecided.
        required: whether an undecided one leaves the verdict undecided.
        advisory: it is told, and never decides.
        sentence: what was found, and the threshold.
    """

    name: str
    status: Status
    sentence: str
    required: bool = True
    advisory: bool = False


def check(
    name: str,
    found: Interval,
    side: Literal["above", "below"],
    threshold: float,
    meaning: str,
    *,
    required: bool = True,
    advisory: bool = False,
) -> Check:
    """Judge an interval against a threshold; without bounds the check is undecided."""
    status: Status = "undecided"
    if found.low is not None and found.high is not None:
        good = found.low > threshold if side == "above" else found.high < threshold
        bad = found.high <= threshold if side == "above" else found.low >= threshold
        status = "pass" if good else "fail" if bad else "undecided"
    word = {"pass": "shown", "fail": "refuted", "undecided": "not shown"}[status]
    sentence = f"{meaning}: {word} ({name} {shown(found)}; asked for: {side} {threshold:g})"
    return Check(name, status, sentence, required, advisory)


def shown(found: Interval | None) -> str:
    """`0.612 [0.580, 0.643], n = 1052`."""
    if found is None:
        return "undefined"
    bounds = "no interval" if found.low is None else f"[{found.low:.3f}, {found.high:.3f}]"
    return f"{found.estimate:.3f} {bounds}, n = {found.n}"


@dataclass(frozen=True)
class ValidationReport:
    """What a validation found.

    Attributes:
        values: name of a measure to its interval (None where it is undefined), or to a table.
        checks: the judged ones.
        notes: what was left out, and what cannot be said.
        model: where the model was loaded from.
        source: the data in words.
    """

    values: dict[str, Any]
    checks: list[Check]
    notes: list[str] = field(default_factory=list)
    model: str = ""
    source: str = ""

    @property
    def status(self) -> Status:
        """pass, fail or undecided."""
        deciding = [c for c in self.checks if not c.advisory]
        if any(c.status == "fail" for c in deciding):
            return "fail"
        return "undecided" if any(c.status == "undecided" and c.required for c in deciding) else "pass"

    @property
    def passed(self) -> bool:
        """Whether the verdict is `pass`."""
        return self.status == "pass"

    @property
    def verdict(self) -> str:
        """The verdict in sentences."""
        deciding = [c for c in self.checks if not c.advisory]
        failed = [c for c in deciding if c.status == "fail"]
        open_ = [c for c in deciding if c.status == "undecided" and c.required]
        heads = {
            "pass": "PASS: nothing that was checked speaks against training with this reward model.",
            "fail": f"FAIL: {len(failed)} of {len(deciding)} checks failed. Do not train with this model as it is.",
            "undecided": f"UNDECIDED: {len(open_)} of {len(deciding)} checks are not decided by these data.",
        }
        order = {"fail": 0, "undecided": 1, "pass": 2}
        lines = [f"- {c.sentence}{' (advisory)' if c.advisory else ''}" for c in sorted(self.checks, key=_by(order))]
        return "\n".join([heads[self.status], *lines, *(f"- note: {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "status": self.status,
            "passed": self.passed,
            "model": self.model,
            "source": self.source,
            "values": _plain(self.values),
            "checks": [asdict(c) for c in self.checks],
            "notes": self.notes,
            "verdict": self.verdict,
        }

    def text(self) -> str:
        """All measures, then the verdict."""
        lines = [f"reward model {self.model} on {self.source}", ""]
        lines += [f"  {name:<34} {_cell(value)}" for name, value in _flat(self.values)]
        return "\n".join([*lines, "", self.verdict])


def _by(order: dict[str, int]) -> Any:
    return lambda c: (c.advisory, order[c.status])


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return value.to_dict()
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _flat(values: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """(name, interval or number) of nested tables, lists of bins as one row each."""
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        if value == {}:
            continue  # nothing of the kind was measured
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{name}/")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            rows += [(f"{prefix}{name}/{i}", bin_) for i, bin_ in enumerate(value)]
        else:
            rows.append((f"{prefix}{name}", value))
    return rows


def _cell(value: Any) -> str:
    if isinstance(value, Interval) or value is None:
        return shown(value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {_cell(v)}" for k, v in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(_cell(v) for v in value) + "]"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
