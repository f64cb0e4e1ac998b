"""What an audit says: the numbers of each component, the findings, and both as text or plain values.

A finding is a sentence, with its evidence, the threshold that it crossed and where that comes from, example rows, and
the key to change. Severities: `critical` (the run learns something else than its reward's name says, or nothing),
`warning` (a part of the reward does not do what it was given for), `note` (worth knowing).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from aligntune.rewards.audit.ranks import Estimate

SEVERITIES = ("critical", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """Something that the audit found.

    Attributes:
        code: short name of the check.
        severity: one of `SEVERITIES`.
        subject: the component, or `total`.
        message: one sentence.
        evidence: the numbers behind it.
        threshold: what they crossed.
        source: where the threshold comes from.
        advice: what to change, with its key.
        rows: indices of example rows.
        rank: strength within its severity; larger first.
    """

    code: str
    severity: str
    subject: str
    message: str
    evidence: dict[str, Any]
    threshold: str
    source: str
    advice: str
    rows: list[int] = field(default_factory=list)
    rank: float = 0.0


@dataclass(frozen=True)
class ComponentAudit:
    """The numbers of one component (or of the total), over all rows that have a score.

    Attributes:
        weight: mean weight.
        within_variance: variance among the answers to one prompt, averaged over prompts.
        dead_groups: share of groups in which it does not differ.
        at_min, at_max: share at the bounds of the declared range; None where there is no finite bound.
        length: correlation with the length of the answer, within groups.
        share: of the advantage; the components' shares and the residual's add up to 1.
        first, last: means of the first and the last fifth of the steps.
        change: last less first, with a 95% interval over groups.
        trend: Spearman's correlation of the steps' means with the step.
    """

    name: str
    kind: str
    weight: float
    range: tuple[float, float]
    mean: float | None
    std: float | None
    none: float
    within_variance: float | None
    dead_groups: float | None
    at_min: float | None
    at_max: float | None
    length: Estimate | None
    share: float | None
    first: float | None
    last: float | None
    change: Estimate | None
    trend: float | None


@dataclass(frozen=True)
class AuditReport:
    """The audit of a run.

    Attributes:
        run: the folder.
        facts: rows, groups, steps, rows without a total, mean length.
        components: by name; `total` is the last.
        correlations: (a, b) to the correlation within groups.
        how: how the advantage was split.
        residual: share of the advantage that no component explains.
        findings: by severity, strongest first.
        notes: what was missing, and what was not looked at.
        examples: index to the row, for the findings' rows.
    """

    run: str
    facts: dict[str, Any]
    components: dict[str, ComponentAudit]
    correlations: dict[tuple[str, str], Estimate]
    how: str
    residual: float | None
    findings: list[Finding]
    notes: list[str]
    examples: dict[int, dict[str, Any]]

    def worst(self) -> str | None:
        """The highest severity among the findings; None without findings."""
        return self.findings[0].severity if self.findings else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; each finding holds its example rows."""
        return {
            "run": self.run,
            "facts": self.facts,
            "components": [asdict(c) for c in self.components.values()],
            "correlations": [{"a": a, "b": b, **asdict(e)} for (a, b), e in self.correlations.items()],
            "attribution": {"how": self.how, "residual": self.residual},
            "findings": [
                {**asdict(f), "rows": [self.examples[i] for i in f.rows if i in self.examples]} for f in self.findings
            ],
            "notes": self.notes,
        }

    def text(self) -> str:
        """The report for people."""
        facts = ", ".join(f"{key} {_number(value)}" for key, value in self.facts.items())
        lines = [f"{self.run}: {facts}", "", _table([_cells(c) for c in self.components.values()]), ""]
        lines.append(f"share: of the advantage; {self.how}.")
        if self.residual is not None and abs(self.residual) > 0.005:
            lines.append(f"No component explains {self.residual:.1%} of the advantage's variance.")
        pairs = [f"{a} and {b} {e.value:+.2f}" for (a, b), e in self.correlations.items() if abs(e.value) >= 0.3]
        if pairs:
            lines.append(f"correlation within groups: {', '.join(pairs)}")
        lines += [f"note: {note}" for note in self.notes]
        lines.append("")
        count = len(self.findings)
        lines.append(f"{count} finding{'s' if count > 1 else ''}" if count else "no findings")
        for finding in self.findings:
            lines += ["", *self._finding(finding)]
        return "\n".join(lines)

    def _finding(self, finding: Finding) -> list[str]:
        evidence = ", ".join(f"{k} {_number(v)}" for k, v in finding.evidence.items())
        lines = [
            f"{finding.severity.upper()}  {finding.code}  {finding.message}",
            f"  evidence   {evidence}",
            f"  threshold  {finding.threshold} ({finding.source})",
            f"  advice     {finding.advice}",
        ]
        for i in finding.rows:
            if i in self.examples:
                row = self.examples[i]
                scores = ", ".join(f"{k} {_number(v)}" for k, v in row["scores"].items())
                lines.append(f"  step {row['step']}  {scores}  {clip(row['completion'], 70)!r}")
        return lines


def clip(text: str, limit: int) -> str:
    """A text in one line of at most `limit` characters, with its end where it is cut."""
    text = " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit // 2]} ... {text[-(limit // 2 - 5) :]}"


_HEADERS = (
    "component",
    "weight",
    "mean",
    "std",
    "in groups",
    "dead",
    "at min",
    "at max",
    "share",
    "r length",
    "change",
)


def _cells(c: ComponentAudit) -> list[str]:
    spread = None if c.within_variance is None else math.sqrt(c.within_variance)
    change = "" if c.first is None or c.last is None else f"{c.first:.3g} to {c.last:.3g}"
    return [
        c.name,
        "" if c.name == "total" else f"{c.weight:.3g}",
        *("" if v is None else f"{v:.3g}" for v in (c.mean, c.std, spread)),
        *("" if v is None else f"{round(v, 2) + 0.0:.0%}" for v in (c.dead_groups, c.at_min, c.at_max, c.share)),
        "" if c.length is None else f"{c.length.value:+.2f}",
        change,
    ]


def _table(rows: Sequence[Sequence[str]]) -> str:
    cells = [list(_HEADERS), *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(_HEADERS))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(line.rstrip() for line in lines)


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
