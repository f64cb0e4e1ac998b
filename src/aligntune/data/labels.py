"""The labels of a classifier: a fixed list, in an order that does not depend on the order of the rows.

The order is, in this precedence: what the configuration lists (`task.labels`), what the model's head already has, what
the data set declares (`ClassLabel` of the hub), else the labels of the training rows, sorted (whole numbers by value,
everything else by name). A row names its label by name, or by its number in the list where no name is a number.

>>> labels = Labels.of(["card_lost", "age_limit", "card_lost"])
>>> labels.names, labels.id("card_lost"), labels.id("0")
(['age_limit', 'card_lost'], 1, 0)

Held-out rows with a label that is not in the list are refused with their place: counting them as wrong, or leaving
them out, would change what the score means.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from aligntune.errors import ValidationError
from aligntune.registry import nearest


@dataclass(frozen=True)
class Labels:
    """Names by number.

    Args:
        names: distinct, in the order of the head's outputs.
        origin: where the list comes from, such as "the training data".
        advice: what to do about a label that is not in it.
    """

    names: list[str]
    origin: str = "the training data"
    advice: str = "correct the row, leave it out, or list every label in task.labels"

    @classmethod
    def of(cls, found: Iterable[str]) -> Labels:
        """The distinct labels among `found`, sorted."""
        distinct = set(found)
        return cls(sorted(distinct, key=int) if all(is_number(name) for name in distinct) else sorted(distinct))

    def __len__(self) -> int:
        return len(self.names)

    def find(self, label: str) -> int | None:
        """The number of a label; None where it is none of ours."""
        if label in self._numbers:
            return self._numbers[label]
        by_number = is_number(label) and not any(is_number(name) for name in self.names)
        return int(label) if by_number and int(label) < len(self.names) else None

    def id(self, label: str) -> int:
        """The number of a label.

        Raises:
            ValidationError: it is none of ours; the nearest names are told.
        """
        number = self.find(label)
        if number is None:
            raise ValidationError(
                f"the label '{label}' is not among the {len(self)} labels of {self.origin}",
                hint=f"{nearest(label, self.names)}; {self.advice}",
                context={"label": label},
            )
        return number

    @property
    def _numbers(self) -> dict[str, int]:
        cached = self.__dict__.get("_by_name")
        if cached is None:
            cached = {name: i for i, name in enumerate(self.names)}
            object.__setattr__(self, "_by_name", cached)
        return cached  # type: ignore[no-any-return]


def is_number(label: str) -> bool:
    """Whether a label is a whole number from 0, as ids are written."""
    return label.isascii() and label.isdigit() and (label == "0" or not label.startswith("0"))


def declared_labels(parts: Sequence[list[str] | None]) -> list[str] | None:
    """The labels that data sets declare, joined; None unless each of them declares its own."""
    if not parts or any(part is None for part in parts):
        return None
    return list(dict.fromkeys(name for part in parts for name in part or []))


def describe_counts(labels: Labels, counts: Mapping[int, int], unit: str) -> list[str]:
    """Sentences about how often each label occurs: how many labels, the rarest, those with one row or none."""
    sizes = {name: counts.get(i, 0) for i, name in enumerate(labels.names)}
    present = {name: n for name, n in sizes.items() if n}
    rarest, most = min(present, key=lambda n: present[n]), max(present, key=lambda n: present[n])
    notes = [
        f"{len(labels)} labels; of {unit} most have '{most}' ({present[most]}), fewest '{rarest}' ({present[rarest]})."
    ]
    for number, said in ((1, f"one of {unit} only"), (0, f"none of {unit}")):
        names = [name for name, n in sizes.items() if n == number]
        if names:
            shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
            notes.append(f"{len(names)} of {len(labels)} labels have {said}: {shown}.")
    return notes


def class_weights(labels: Labels, counts: Mapping[int, int], wanted: str | Mapping[str, float]) -> list[float] | None:
    """The factor of each label's loss.

    `balanced` is w_c = N / (K n_c), with N labelled items, K labels that occur and n_c items of label c (King and Zeng
    2001, section 4; scikit-learn's formula): their mean over the items is 1. A mapping gives factors by label name,
    and 1 to the others. Labels that never occur get 1.

    Args:
        labels: the label list.
        counts: items of each label number.
        wanted: "none", "balanced" or the mapping.

    Returns:
        One factor for each label, or None for "none".

    Raises:
        ValidationError: the mapping names a label that there is not.
    """
    if wanted == "none":
        return None
    if isinstance(wanted, str):
        present = [i for i in range(len(labels)) if counts.get(i)]
        total = sum(counts[i] for i in present)
        return [total / (len(present) * counts[i]) if counts.get(i) else 1.0 for i in range(len(labels))]
    unknown = [name for name in wanted if labels.find(name) is None]
    if unknown:
        raise ValidationError(
            f"task.class_weights names '{unknown[0]}', which is not among the labels of {labels.origin}",
            hint=nearest(unknown[0], labels.names),
        )
    weights = [1.0] * len(labels)
    for name, weight in wanted.items():
        weights[labels.id(name)] = weight
    return weights


def count_labels(rows: Iterable[int | list[int]]) -> Counter[int]:
    """Items of each label number; -100 stands for no label."""
    counts: Counter[int] = Counter()
    for value in rows:
        counts.update([value] if isinstance(value, int) else value)
    del counts[-100]
    return counts
