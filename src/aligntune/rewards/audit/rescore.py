"""Stored rollouts under other rewards: would the run have learned something else?

    result = rescore(read("runs/grpo"), read_reward_list("new.yaml").build())
    result.within["spearman"], result.flips, result.died

Both totals become advantages by the run's own rule (`attribution.group_advantages`); a flip is a row whose advantage
changes its sign. A group dies when its totals differed and no longer do, and wakes in the opposite case. Each step is
scored as one batch, so that rewards which compare the answers to one prompt see them together.

It answers for these completions only: under the new reward the policy would soon have sampled others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.errors import ValidationError
from aligntune.rewards.audit.attribution import baseline_cells, group_advantages, scaling
from aligntune.rewards.audit.measure import SAME
from aligntune.rewards.audit.ranks import group_spans, kendall, spearman
from aligntune.rewards.audit.report import clip
from aligntune.rewards.audit.table import Rollouts, decoded

if TYPE_CHECKING:
    from aligntune.rewards.audit.table import Floats
    from aligntune.rewards.composite import CompositeReward

SHOWN = 5


@dataclass(frozen=True)
class Rescored:
    """Two scores of the same completions.

    Attributes:
        total: (N,) new totals; NaN for a row without one.
        components: name to (N,) new raw scores.
        old, new: (N,) advantages under the stored and under the new reward.
        overall: `spearman` and `kendall` over all rows that have both totals; None where either never varies.
        within: the same within groups, averaged over those in which both vary.
        groups: groups in which both vary.
        rows: rows with both totals.
        flips: share of those rows whose advantage changes its sign.
        died, woke: groups that lost or gained differences.
        died_rows: an index of a row in each group that died, at most five.
        changed: indices of the rows whose advantage changed most.
        counts: what the new rewards counted (errors, timeouts, missing references).
    """

    total: Floats
    components: dict[str, Floats]
    old: Floats
    new: Floats
    overall: dict[str, float | None]
    within: dict[str, float | None]
    groups: int
    rows: int
    flips: float
    died: int
    woke: int
    died_rows: list[int]
    changed: list[int]
    counts: dict[str, int]

    def to_dict(self, rollouts: Rollouts) -> dict[str, Any]:
        """Plain values for JSON, with the rows that changed most."""
        return {
            "rows": self.rows,
            "rank_correlation": {"overall": self.overall, "within_groups": self.within, "groups": self.groups},
            "sign_flips": self.flips,
            "groups_died": self.died,
            "groups_woke": self.woke,
            "counts": self.counts,
            "changed_most": [self._row(rollouts, i) for i in self.changed],
        }

    def text(self, rollouts: Rollouts) -> str:
        """The same for people."""
        pair = "  ".join(f"{k} {_text(v)}" for k, v in self.overall.items())
        inside = "  ".join(f"{k} {_text(v)}" for k, v in self.within.items())
        lines = [
            f"{self.rows} rows with both rewards",
            f"rank correlation, all rows        {pair}",
            f"rank correlation, within groups   {inside}   ({self.groups} groups in which both vary)",
            f"advantages that change their sign {self.flips:.1%}",
            f"groups that die {self.died}, that wake {self.woke}",
        ]
        lines += [f"counted: {name} {n}" for name, n in self.counts.items() if name != "rows" and n]
        lines += ["", "changed most:"] if self.changed else []
        for row in (self._row(rollouts, i) for i in self.changed):
            change = f"reward {_text(row['reward'])} to {_text(row['new_reward'])}, advantage "
            change += f"{_text(row['advantage'])} to {_text(row['new_advantage'])}"
            lines.append(f"  step {row['step']}  {change}  {clip(row['completion'], 70)!r}")
        return "\n".join(lines)

    def _row(self, rollouts: Rollouts, i: int) -> dict[str, Any]:
        values = {"reward": rollouts.total[i], "new_reward": self.total[i], "advantage": self.old[i],
                  "new_advantage": self.new[i]}  # fmt: skip
        numbers = {k: None if math.isnan(v) else float(v) for k, v in values.items()}
        where = {"row": i, "step": int(rollouts.step[i]), "group": int(rollouts.group[i])}
        return {**where, "prompt": rollouts.prompt[i], "completion": rollouts.completion[i], **numbers}


def rescore(rollouts: Rollouts, rewards: CompositeReward) -> Rescored:
    """Score rollouts again.

    Raises:
        ValidationError: the rollouts lack a column that the rewards read.
        RewardError: a reward failed, and its `on_error` is raise.
    """
    import numpy as np

    columns = {name: _column(values) for name, values in rollouts.columns.items()}
    try:
        rewards.check_columns([*columns, "prompt", "completion"])
    except ValidationError as e:
        raise ValidationError(
            f"{e.message}, which the rollouts do not hold",
            hint=f"stored columns: {', '.join(sorted(columns)) or 'none'}; a run stores those that its rewards read",
        ) from e
    n = len(rollouts)
    total = np.full(n, np.nan)
    components = {c.name: np.full(n, np.nan) for c in rewards.components}
    counts: dict[str, int] = {}
    for step in np.unique(rollouts.step):
        rows = np.flatnonzero(rollouts.step == step)
        rows = rows[np.argsort(rollouts.group[rows], kind="stable")]  # the answers to one prompt stand together
        batch = {name: [values[i] for i in rows] for name, values in columns.items()}
        batch["prompt"] = [rollouts.prompt[i] for i in rows]
        scores = rewards.score_batch([rollouts.completion[i] for i in rows], batch)
        total[rows] = _floats(scores.total)
        for name in components:
            components[name][rows] = _floats(scores.raw[name])
        for name, count in scores.stats.items():
            counts[name] = counts.get(name, 0) + count
    return compare(rollouts, total, components, counts)


def compare(
    rollouts: Rollouts, total: Floats, components: dict[str, Floats] | None = None, counts: Mapping[str, int] = {}
) -> Rescored:
    """The comparison of stored totals with new ones, (N,) with NaN for a row without."""
    import numpy as np

    cell, _ = baseline_cells(rollouts)
    scale = scaling(rollouts.config)
    old = group_advantages(rollouts.total, cell, scale, rollouts.step)
    new = group_advantages(total, cell, scale, rollouts.step)
    both = ~(np.isnan(rollouts.total) | np.isnan(total))
    before, after = (np.nan_to_num(group_spans(values, rollouts.group)) > SAME for values in (rollouts.total, total))
    died = np.flatnonzero(before & ~after)
    flips = np.sign(np.where(np.abs(old) > SAME, old, 0)) * np.sign(np.where(np.abs(new) > SAME, new, 0)) < 0
    change = np.where(both, np.abs(new - old), -1.0)
    order = np.argsort(-change, kind="stable")[:SHOWN]
    within = _within(rollouts, total, both, before & after)
    return Rescored(
        total=total,
        components=components or {},
        old=old,
        new=new,
        overall={"spearman": spearman(rollouts.total[both], total[both]),
                 "kendall": kendall(rollouts.total[both], total[both])},
        within={k: float(np.mean(v)) if v else None for k, v in within.items()},
        groups=len(within["kendall"]),
        rows=int(both.sum()),
        flips=float(flips[both].mean()) if both.any() else 0.0,
        died=len(died),
        woke=int((after & ~before).sum()),
        died_rows=[int(np.flatnonzero(rollouts.group == g)[0]) for g in died[:SHOWN]],
        changed=[int(i) for i in order if change[i] > SAME],
        counts={k: v for k, v in counts.items() if v},
    )  # fmt: skip


def write(path: Path, rollouts: Rollouts, result: Rescored) -> Path:
    """Write a Parquet file with both scores of each row beside each other; returns the path.

    Columns: step, group, prompt, completion, `reward` and `reward/<name>` (stored), `new/reward` and
    `new/reward/<name>`, `advantage`, `new/advantage`.

    Raises:
        ConfigurationError: the disk is full or writing is not permitted.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from aligntune.utils.files import disk_errors

    columns: dict[str, Any] = {
        "step": rollouts.step,
        "group": rollouts.group,
        "prompt": rollouts.prompt,
        "completion": rollouts.completion,
        "reward": rollouts.total,
        **{f"reward/{name}": values for name, values in rollouts.raw.items()},
        "advantage": result.old,
        "new/reward": result.total,
        **{f"new/reward/{name}": values for name, values in result.components.items()},
        "new/advantage": result.new,
    }
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = {k: pa.array(v, from_pandas=True) for k, v in columns.items()}  # NaN becomes null
        temporary = path.with_name(f".{path.name}.tmp")
        pq.write_table(pa.table(arrays), temporary, compression="zstd")
        temporary.replace(path)
    return path


def _column(values: list[Any]) -> list[Any]:
    """A stored column; JSON text of lists or mappings as those, where all of its values are such."""
    read = [decoded(value) for value in values]
    stored = [value for value in values if value is not None]
    changed = all(isinstance(value, (list, dict)) for value in read if value is not None)
    return read if stored and changed else values


def _floats(values: list[float | None]) -> Any:
    import numpy as np

    return np.asarray([np.nan if value is None else value for value in values], dtype=np.float64)


def _within(rollouts: Rollouts, total: Floats, both: Any, alive: Any) -> dict[str, list[float]]:
    import numpy as np

    found: dict[str, list[float]] = {"spearman": [], "kendall": []}
    order = np.argsort(rollouts.group, kind="stable")
    edges = np.searchsorted(rollouts.group[order], np.arange(len(alive) + 1))
    for g in np.flatnonzero(alive):
        rows = order[edges[g] : edges[g + 1]]
        rows = rows[both[rows]]
        for name, function in (("spearman", spearman), ("kendall", kendall)):
            value = function(rollouts.total[rows], total[rows]) if len(rows) > 1 else None
            if value is not None:
                found[name].append(value)
    return found


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
