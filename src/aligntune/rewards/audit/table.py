"""The rollouts of a run as arrays: what the audit and the second scoring read.

    rollouts = read(run_dir)
    rollouts.values("length")          # (N,) the component after its threshold or normalisation; NaN without a score

A row is one sampled completion. Two rows are of one group when they share `step`, `group` and prompt; where the column
`group` is missing (runs of an early version), runs of equal prompts within a step are taken for groups, and `notes`
says so. The same holds for `tokens` (characters instead), `weight/<name>` (the configuration's instead) and `advantage`
(computed again by the algorithm's rule).

It reads `rollouts/*.parquet` and `config.resolved.yaml`, and computes no statistic.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.errors import AlignTuneError, ValidationError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Integers = NDArray[np.int64]

CONFIG = "config.resolved.yaml"
REWARD, WEIGHT, COLUMN = "reward/", "weight/", "column/"
NEEDED = ("step", "prompt", "completion", "reward")
SCALE_EPSILON = 1e-4
"""What GRPO adds to the standard deviation it divides by (`GRPOTrainer` of TRL 1.14.2)."""


@dataclass(frozen=True)
class ComponentFacts:
    """What is known of a component beside its scores.

    Attributes:
        name: as in the columns.
        position: index among the run's `rewards`, for advice such as `rewards.0.weight`; None where it is not found.
        kind: one of the six kinds; "" where the reward cannot be found.
        range: declared (lowest, highest) raw score; infinite where undeclared or unknown.
        weight: the configured weight.
        threshold: from which a score is 1.
        normalization: `none` or `minmax`.
        needs: columns of the row that the reward compares with.
    """

    name: str
    position: int | None = None
    kind: str = ""
    range: tuple[float, float] = (-math.inf, math.inf)
    weight: float = 1.0
    threshold: float | None = None
    normalization: str = "none"
    needs: tuple[str, ...] = ()

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value after threshold or normalisation."""
        return self.range if self.threshold is None and self.normalization == "none" else (0.0, 1.0)

    def key(self, field_name: str) -> str:
        """The dotted key of a field, as `rewards.0.weight`."""
        return f"rewards.{self.name if self.position is None else self.position}.{field_name}"


@dataclass(frozen=True)
class Rollouts:
    """N sampled completions.

    Attributes:
        step: (N,) the step that learned from it.
        group: (N,) a number for each group of the run, 0 and up in order of appearance.
        prompt: N prompts.
        completion: N texts.
        length: (N,) tokens, or characters where tokens were not stored.
        length_unit: "tokens" or "characters".
        total: (N,) the reward; NaN for a row without one.
        advantage: (N,) as the trainer had it; None where it was not stored.
        raw: name to (N,) scores as the reward gave them; NaN without one.
        weight: name to (N,) weights.
        columns: data columns that rewards read, N values each.
        components: name to what is known of it, in the order of the columns.
        config: the resolved configuration; empty if there is none.
        notes: what was missing, and what stood in for it.
        absent: columns that the table does not have.
    """

    step: Integers
    group: Integers
    prompt: list[str]
    completion: list[str]
    length: Floats
    length_unit: str
    total: Floats
    advantage: Floats | None
    raw: dict[str, Floats]
    weight: dict[str, Floats]
    columns: dict[str, list[Any]]
    components: dict[str, ComponentFacts]
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    absent: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def names(self) -> list[str]:
        """Names of the components."""
        return list(self.components)

    @property
    def composition(self) -> Mapping[str, Any]:
        """The section `composition` of the configuration; empty where the total is the plain weighted sum."""
        found = self.config.get("composition")
        return found if isinstance(found, Mapping) else {}

    @property
    def mode(self) -> str:
        """How the components make the total."""
        return str(self.composition.get("mode", "sum"))

    def weighted(self, name: str) -> bool:
        """Whether the component has a weight in any row."""
        import numpy as np

        return bool(np.any(self.weight[name] != 0))

    def values(self, name: str) -> Floats:
        """(N,) the component after its threshold or normalisation, before the weight; NaN without a score."""
        import numpy as np

        raw, facts = self.raw[name], self.components[name]
        if facts.threshold is not None:
            return np.where(np.isnan(raw), np.nan, (raw >= facts.threshold).astype(float))
        if facts.normalization == "minmax" and all(math.isfinite(bound) for bound in facts.range):
            low, high = facts.range
            return np.asarray((raw - low) / (high - low))
        return raw


def read(run: str | os.PathLike[str], *, most_rows: int | None = None) -> Rollouts:
    """The rollouts of a run folder.

    Args:
        run: the folder.
        most_rows: above this, whole steps are left out, evenly, and `notes` says so; None reads all.

    Raises:
        ValidationError: there is no such folder, or it holds no rollouts.
    """
    import yaml

    from aligntune.utils.rollouts import read_rollouts

    folder = Path(run)
    if not folder.is_dir():
        raise ValidationError(f"there is no folder {folder}", hint="give the output_dir of a run")
    table = read_rollouts(folder)
    if table.num_rows == 0:
        raise ValidationError(
            f"{folder} holds no rollouts",
            hint="only runs with rewards sample completions; they are stored where logging.rollouts is true",
        )
    thinned = []
    if most_rows is not None and table.num_rows > most_rows and "step" in table.column_names:
        table, kept, steps = _thinned(table, most_rows)
        thinned = [f"{kept} of {steps} steps are looked at, evenly spread"]
    config = folder / CONFIG
    plain = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    found = from_columns(table.to_pydict(), plain if isinstance(plain, dict) else {}, str(folder))
    found.notes.extend(thinned)
    return found


def _thinned(table: Any, most_rows: int) -> tuple[Any, int, int]:
    """The table with every n-th step, the number of steps kept, and the number there were."""
    import pyarrow as pa
    import pyarrow.compute as pc

    steps = sorted(set(table["step"].to_pylist()))
    kept = steps[:: -(-table.num_rows // most_rows)]
    return table.filter(pc.is_in(table["step"], value_set=pa.array(kept))), len(kept), len(steps)


def from_columns(
    columns: Mapping[str, Sequence[Any]], config: Mapping[str, Any] | None = None, where: str = "the table"
) -> Rollouts:
    """Rollouts out of plain columns, N values each.

    Args:
        columns: named as in the Parquet files.
        config: the resolved configuration as plain values.
        where: the source, for messages.

    Raises:
        ValidationError: `step`, `prompt`, `completion` or `reward` is missing.
    """
    import numpy as np

    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise ValidationError(
            f"{where}: the rollouts lack the column {', '.join(missing)}",
            hint=f"they have: {', '.join(columns) or 'none'}",
        )
    config = config or {}
    names = [name.removeprefix(REWARD) for name in columns if name.startswith(REWARD)]
    notes: list[str] = []
    components = _components(names, config, notes)
    step = np.asarray(columns["step"], dtype=np.int64)
    prompt = [text or "" for text in columns["prompt"]]
    completion = [text or "" for text in columns["completion"]]
    length, unit = _length(columns, completion, notes)
    return Rollouts(
        step=step,
        group=_groups(step, prompt, columns.get("group"), notes),
        prompt=prompt,
        completion=completion,
        length=length,
        length_unit=unit,
        total=_floats(columns["reward"]),
        advantage=_advantage(columns, notes),
        raw={name: _floats(columns[REWARD + name]) for name in names},
        weight=_weights(columns, components, notes),
        columns={k.removeprefix(COLUMN): list(v) for k, v in columns.items() if k.startswith(COLUMN)},
        components=components,
        config=config,
        notes=notes,
        absent=tuple(name for name in ("group", "tokens", "advantage") if name not in columns),
    )


def decoded(value: Any) -> Any:
    """A stored data column's value: JSON text of a list or a mapping as that, anything else as it is."""
    if not isinstance(value, str) or value[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _floats(values: Sequence[Any]) -> Floats:
    import numpy as np

    return np.asarray([math.nan if value is None else float(value) for value in values], dtype=np.float64)


def _length(columns: Mapping[str, Sequence[Any]], texts: list[str], notes: list[str]) -> tuple[Floats, str]:
    if "tokens" in columns and all(value is not None for value in columns["tokens"]):
        return _floats(columns["tokens"]), "tokens"
    notes.append("no column 'tokens': lengths are counted in characters")
    return _floats([len(text) for text in texts]), "characters"


def _advantage(columns: Mapping[str, Sequence[Any]], notes: list[str]) -> Floats | None:
    import numpy as np

    if "advantage" not in columns:
        notes.append("no column 'advantage': it is computed again from the stored totals, by the algorithm's rule")
        return None
    found = _floats(columns["advantage"])
    if np.isnan(found).all():
        notes.append("no advantages were stored (the algorithm has one for each token): the total itself is explained")
        return None
    return found


def _groups(step: Integers, prompts: list[str], given: Sequence[Any] | None, notes: list[str]) -> Integers:
    """A number for each (step, group, prompt), in order of appearance."""
    import numpy as np

    if given is None or any(value is None for value in given):
        notes.append("no column 'group': runs of one prompt within a step are taken for its groups")
        given, last, number = [], None, -1
        for key in zip(step.tolist(), prompts, strict=True):
            number += key != last
            last = key
            given.append(number)
    seen: dict[tuple[int, int, str], int] = {}
    keys = zip(step.tolist(), given, prompts, strict=True)
    return np.asarray([seen.setdefault((s, int(g), p), len(seen)) for s, g, p in keys], dtype=np.int64)


def _weights(
    columns: Mapping[str, Sequence[Any]], components: dict[str, ComponentFacts], notes: list[str]
) -> dict[str, Floats]:
    import numpy as np

    rows = len(columns["step"])
    found, absent = {}, []
    for name, facts in components.items():
        if WEIGHT + name in columns:
            found[name] = np.nan_to_num(_floats(columns[WEIGHT + name]))
        else:
            absent.append(name)
            found[name] = np.full(rows, facts.weight)
    if absent:
        known = all(components[name].position is not None for name in absent)
        source = "those of the configuration" if known else "1 where the configuration does not say"
        notes.append(f"no column '{WEIGHT}{absent[0]}': the weights are {source}")
    return found


def _components(names: list[str], config: Mapping[str, Any], notes: list[str]) -> dict[str, ComponentFacts]:
    listed = config.get("rewards")
    entries = [e if isinstance(e, Mapping) else {"type": e} for e in listed] if isinstance(listed, list) else []
    unknown: list[str] = []
    found = {name: _facts(name, names, entries, unknown) for name in names}
    if unknown:
        notes.append(f"the range of {', '.join(unknown)} is unknown, because the reward cannot be loaded here")
    return found


def _facts(name: str, names: list[str], entries: list[Mapping[str, Any]], unknown: list[str]) -> ComponentFacts:
    from aligntune.rewards.registry import RewardRegistry

    titles = [str(e.get("name") or str(e.get("type", "")).rpartition(":")[2]) for e in entries]
    position = titles.index(name) if name in titles else None
    if position is None and len(entries) == len(names):
        position = names.index(name)
    entry = entries[position] if position is not None else {}
    facts: dict[str, Any] = {
        "position": position,
        "weight": float(entry.get("weight", 1.0)),
        "threshold": entry.get("threshold"),
        "normalization": str(entry.get("normalization", "none")),
    }
    try:
        info = RewardRegistry.describe(str(entry.get("type", name)))
    except AlignTuneError:  # a user's file that has gone, or a name that another version had
        unknown.append(name)
        return ComponentFacts(name, **facts)
    return ComponentFacts(name, kind=info.kind, range=info.range, needs=info.columns, **facts)
