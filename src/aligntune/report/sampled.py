"""A run's stored rollouts, found by step: which steps there are, and the rows of one of them.

>>> stored = Sampled.of(Path("out/grpo"))
>>> stored.steps[:3], len(stored.at(1))
([1, 2, 3], 16)

Only the parts that hold a step are read for it. A row has `prompt`, `completion`, `reward` and `reward/<name>`;
rollouts without these columns (SPIN's, which have no reward) are not shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligntune.utils.rollouts import part_columns, parts, read_part
from aligntune.utils.run_folder import ROLLOUTS

NEEDED = frozenset({"step", "prompt", "completion", "reward"})
COMPONENT = "reward/"


@dataclass(frozen=True)
class Sampled:
    """Where the rollouts of each step are.

    Attributes:
        where: step to the parts that hold rows of it.
    """

    where: Mapping[int, list[Path]] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> Sampled:
        """The rollouts of a run folder; none where it has none."""
        stored = parts(folder / ROLLOUTS)
        if not stored:
            return cls()
        import pyarrow.compute as pc

        where: dict[int, list[Path]] = {}
        for part in stored:
            if set(part_columns(part)) >= NEEDED:
                for step in pc.unique(read_part(part, ["step"])["step"]).to_pylist():
                    if step is not None:
                        where.setdefault(int(step), []).append(part)
        return cls(where)

    @property
    def steps(self) -> list[int]:
        """The steps that have rows, in order."""
        return sorted(self.where)

    def at(self, step: int) -> list[dict[str, Any]]:
        """The rows of a step, in the order of sampling; none for a step without rows."""
        rows: list[dict[str, Any]] = []
        for part in self.where.get(step, []):
            wanted = [name for name in part_columns(part) if name in NEEDED or name.startswith(COMPONENT)]
            rows += read_part(part, wanted, step).to_pylist()
        return rows


def spread(found: Sequence[Any], most: int) -> list[Any]:
    """The first, the last, and others at equal distances between: at most `most` of them."""
    if len(found) <= most:
        return list(found)
    return [found[round(i * (len(found) - 1) / max(most - 1, 1))] for i in range(most)]


def best_first(rows: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Some rows from the best reward to the worst; those without a reward come last."""
    ordered = sorted(rows, key=lambda row: -math.inf if row["reward"] is None else row["reward"], reverse=True)
    return spread(ordered, most)


def components(row: Mapping[str, Any]) -> list[tuple[str, float]]:
    """(name, raw score) of each reward of a row that has one."""
    return [
        (name.removeprefix(COMPONENT), value)
        for name, value in row.items()
        if name.startswith(COMPONENT) and isinstance(value, (int, float))
    ]
