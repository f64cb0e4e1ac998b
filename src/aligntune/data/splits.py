"""Training and test rows of one source: by chance, in groups, by class in proportion, or with classes of one size.

| how | test rows | training rows |
|---|---|---|
| plain | a share of all rows, drawn with the seed | the others |
| grouped | groups of rows in random order, each whole, that do not exceed the share | the others |
| stratified | the share of each class (largest remainders), at least one of each class of two | the others |
| balanced | as stratified | of each class as many as the smallest has |

>>> parts = split_rows(["a", "a", "b", "b"], test=0.5, seed=0, stratify=True)
>>> sorted(parts.train + parts.test)
[0, 1, 2, 3]

Both parts are in file order, and together with `left_out` they are a permutation of the rows.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligntune.algorithms.base import Schema
from aligntune.core.config import DatasetConfig
from aligntune.data.examples import lookup
from aligntune.data.rows import Rows
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.registry import nearest


@dataclass(frozen=True)
class Split:
    """Row numbers of both parts, and of the rows that balancing leaves out."""

    train: list[int]
    test: list[int]
    left_out: list[int] = field(default_factory=list)

    def report(self, labels: Sequence[str]) -> list[dict[str, object]]:
        """How many rows of each class stand where: `label`, `rows`, `train`, `test`, `left_out`."""
        parts = {"train": self.train, "test": self.test, "left_out": self.left_out}
        counts = {name: Counter(labels[i] for i in part) for name, part in parts.items()}
        total = Counter(labels)
        return [
            {"label": label, "rows": total[label], **{name: count[label] for name, count in counts.items()}}
            for label in sorted(total, key=lambda label: (-total[label], label))
        ]


def split_rows(
    labels: Sequence[str],
    *,
    test: float,
    seed: int = 42,
    stratify: bool = False,
    balance: bool = False,
    groups: Sequence[str] | None = None,
) -> Split:
    """Split rows.

    Args:
        labels: the class of each row; anything where there are no classes.
        groups: rows of one group stand in one part, so that no conversation or repeated question is in both; not with
            `stratify` or `balance`.
        test: share of the rows that are held out, between 0 and 1, or a number of rows from 1.
        seed: of the draw.
        stratify: hold out each class in proportion.
        balance: as `stratify`, and leave out training rows until every class has as many as the smallest.

    Raises:
        ConfigurationError: the share leaves no row on one side.
        ValidationError: balancing needs each class among the training rows.
    """
    count = round(test * len(labels)) if 0 < test < 1 else int(test)
    if count < 1 or count >= len(labels) or (test >= 1 and test != int(test)):
        raise ConfigurationError(
            f"a test part of {test:g} leaves one part of {len(labels)} rows empty",
            hint="give a share between 0 and 1, or a number of rows below the total",
        )
    generator = random.Random(seed)
    if groups is not None:
        if stratify or balance:
            raise ConfigurationError("rows cannot be held out by group and by class at once", hint="leave one out")
        return _grouped(groups, count, generator)
    if not stratify and not balance:
        held = set(generator.sample(range(len(labels)), count))
        return Split([i for i in range(len(labels)) if i not in held], sorted(held))
    classes: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        classes.setdefault(label, []).append(i)
    held, left_out = set(), set()
    shares = _shares({label: len(rows) for label, rows in classes.items()}, count)
    for label in sorted(classes):
        generator.shuffle(classes[label])
        held |= set(classes[label][: shares[label]])
    if balance:
        rest = {label: [i for i in rows if i not in held] for label, rows in classes.items()}
        smallest = min(rest, key=lambda label: (len(rest[label]), label))
        if not rest[smallest]:
            raise ValidationError(
                f"the class '{smallest}' has {len(classes[smallest])} rows, none of them left to train on",
                hint="leave the class out, or split without balancing",
            )
        left_out = {i for rows in rest.values() for i in rows[len(rest[smallest]) :]}
    train = [i for i in range(len(labels)) if i not in held and i not in left_out]
    return Split(train, sorted(held), sorted(left_out))


def _grouped(groups: Sequence[str], count: int, generator: random.Random) -> Split:
    """Hold out whole groups, at most `count` rows."""
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group, []).append(i)
    names = sorted(members)
    generator.shuffle(names)
    held: set[int] = set()
    for name in names:
        if len(held) + len(members[name]) <= count:
            held |= set(members[name])
    if not held:
        raise ValidationError(
            f"no group is as small as the test part of {count} rows",
            hint="raise the test part, or split without groups",
        )
    return Split([i for i in range(len(groups)) if i not in held], sorted(held))


def write_split(
    source: DatasetConfig,
    folder: str | Path,
    *,
    test: float,
    by: str | None = None,
    stratify: bool = False,
    balance: bool = False,
    seed: int = 42,
    group: str | None = None,
) -> dict[str, Any]:
    """Write the parts of a source as `train.jsonl`, `test.jsonl` (and `left_out.jsonl`), and `split.json` about them.

    Args:
        source: as in a configuration.
        folder: is made; files of these names must not be there.
        test, stratify, balance, seed: see `split_rows`.
        by: the column of the classes, or a dotted path.
        group: the column whose equal values stay in one part.

    Returns:
        `source`, `notes`, `seed`, `parts` (rows, file, SHA-256 by part), `classes` (see `Split.report`) and `skipped`.

    Raises:
        ConfigurationError: a file is there already, or the share leaves a part empty.
        ValidationError: the source cannot be read, or a row has no class.
    """
    from aligntune.data.manager import DataManager, preset_of
    from aligntune.utils.files import write_atomic, write_json

    root = Path(folder).expanduser()
    names = {"train": "train.jsonl", "test": "test.jsonl", "left_out": "left_out.jsonl"}
    for name in [*names.values(), "split.json"]:
        if (root / name).exists():
            raise ConfigurationError(f"{root / name} is there already", hint="give another --out")
    manager = DataManager(Schema.TEXT)
    _, source, notes = preset_of(source)
    rows = manager.load(source)
    labels = _labels(rows, by)
    groups = None if group is None else _labels(rows, group, "--group")
    parts = split_rows(labels, test=test, seed=seed, stratify=stratify, balance=balance, groups=groups)
    root.mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = {}
    for part, name in names.items():
        numbers = getattr(parts, part)
        if numbers or part != "left_out":
            text = "".join(json.dumps(rows.rows[i], ensure_ascii=False, default=str) + "\n" for i in numbers)
            data = text.encode("utf-8", "surrogatepass")
            write_atomic(root / name, data)
            digest = hashlib.sha256(data).hexdigest()
            told[part] = {"rows": len(numbers), "file": str(root / name), "sha256": digest}
    report = {
        "source": rows.source,
        "notes": [*notes, *manager.resolver.notes, *rows.notes],
        "seed": seed,
        "test": test,
        "by": by,
        "group": group,
        "stratify": stratify,
        "balance": balance,
        "parts": told,
        "classes": parts.report(labels) if by is not None else [],
        "skipped": rows.skipped,
    }
    write_json(root / "split.json", report)
    return report


def _labels(rows: Rows, by: str | None, flag: str = "--by") -> list[str]:
    if by is None:
        return [""] * len(rows)
    if by.split(".")[0] not in rows.columns:
        raise ValidationError(
            f"{rows.source} has no column '{by}'; columns found: {', '.join(rows.columns)}",
            hint=f"{flag} " + nearest(by, rows.columns),
        )
    named = rows.with_class_names({by}).rows
    labels = []
    for i, row in enumerate(named):
        value = lookup(row, by)
        if value is None or isinstance(value, (list, dict)) or not str(value).strip():
            raise ValidationError(f"{rows.place(i)}: no value in '{by}'", hint="mend the row, or give another column")
        labels.append(str(value))
    return labels


def _shares(sizes: dict[str, int], count: int) -> dict[str, int]:
    """Held-out rows of each class: its exact share, rounded by largest remainder; classes of two rows give one."""
    total = sum(sizes.values())
    exact = {label: count * size / total for label, size in sizes.items()}
    shares = {label: int(share) for label, share in exact.items()}
    order = sorted(sizes, key=lambda label: (shares[label] - exact[label], label))
    for label in order[: count - sum(shares.values())]:
        shares[label] += 1
    for label, size in sizes.items():
        shares[label] = min(max(shares[label], 1 if size > 1 else 0), size - 1 if size > 1 else shares[label])
    return shares
