"""What a check says: one verdict with its reason, evidence and fix; and the report that collects them.

>>> report = Report([Verdict("warm-up", "config", "fail", "warm-up is longer than the run", fix="lower it")])
>>> report.exit_code()
1

Statuses: `pass`; `warn`, worth a look; `fail`, the run would not do what its file says; `skip`, not looked at, with the
reason. Only `fail` makes the exit code 1, and with `strict` also `warn`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["pass", "warn", "fail", "skip"]
GROUPS = {
    "config": "Configuration and environment",
    "batch": "Batch arithmetic",
    "memory": "Memory",
    "template": "Tokenizer and chat template",
    "rows": "Rows as trained",
    "data": "Data",
    "rewards": "Rewards",
    "smoke": "Smoke run",
}
"""Key of a group of checks to its title, in the order in which they are shown."""


@dataclass(frozen=True)
class Verdict:
    """What one check found.

    Attributes:
        name: the check's name, unique in a report.
        group: a key of `GROUPS`.
        status: pass, warn, fail or skip.
        reason: one sentence.
        evidence: numbers, row numbers and excerpts that show it, a line each.
        fix: what to change; empty where there is nothing to change.
        data: the same as values, for programs.
    """

    name: str
    group: str
    status: Status
    reason: str
    evidence: list[str] = field(default_factory=list)
    fix: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass
class Report:
    """Every verdict of a configuration, and what was shown beside them.

    Attributes:
        verdicts: in the order in which they were found.
        rows: the rows as trained (`preflight.trained.TrainedRow`) that are shown token by token.
        settings: every key of the resolved configuration with value and source.
        special: texts of the tokenizer's special tokens, which are shown apart.
    """

    verdicts: list[Verdict] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)
    settings: list[dict[str, Any]] = field(default_factory=list)
    special: list[str] = field(default_factory=list)

    def add(self, verdicts: Iterable[Verdict]) -> None:
        """Append verdicts."""
        self.verdicts.extend(verdicts)

    def named(self, name: str) -> Verdict:
        """The verdict of one check.

        Raises:
            KeyError: the check did not run.
        """
        for verdict in self.verdicts:
            if verdict.name == name:
                return verdict
        raise KeyError(name)

    def with_status(self, status: Status) -> list[Verdict]:
        """Verdicts of one status, in order."""
        return [v for v in self.verdicts if v.status == status]

    def exit_code(self, *, strict: bool = False) -> int:
        """0 where nothing fails, else 1; with `strict` a warning counts as a failure."""
        return int(any(v.status == "fail" or (strict and v.status == "warn") for v in self.verdicts))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: counts, verdicts, settings and rows."""
        counts = {status: len(self.with_status(status)) for status in ("pass", "warn", "fail", "skip")}
        return {
            "counts": counts,
            "verdicts": [v.to_dict() for v in self.verdicts],
            "settings": self.settings,
            "rows": [row.to_dict() for row in self.rows],
        }


def numbers(rows: Iterable[int], most: int = 5) -> str:
    """Row numbers as text, the first `most` of them: "rows 3, 7, 12 ..."; counted from 1."""
    listed = list(rows)
    shown = ", ".join(str(i + 1) for i in listed[:most])
    return f"row{'s' if len(listed) > 1 else ''} {shown}" + (" ..." if len(listed) > most else "")


def excerpt(text: str, width: int = 60) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 3].rstrip() + "..."


def percent(part: int, whole: int) -> str:
    """A share as text: "3 of 200 (1.5%)"."""
    return f"{part} of {whole} ({100 * part / max(whole, 1):.3g}%)"
