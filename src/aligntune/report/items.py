"""The items of an evaluation for looking through: wrong ones first, what changed between two results, bounded in size.

>>> browser([("before", task), ("after", other)], 100_000).entries[0].kind
'worse'

A row of `entries` is one question, with each model's answer. Kinds: `worse` and `better` (the score changed from the
first result to the last), `wrong`, `right`, `scored` (neither 0 nor 1), `unscored`. They are ordered so that what needs
a look comes first. Long texts are cut, and where the budget is used up the rest is left out; both are said. Everything
that a model wrote is plain text here, which the page escapes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aligntune.report.numbers import compact
from aligntune.report.page import message_text, shortened, weight

if TYPE_CHECKING:
    from aligntune.eval.result import TaskResult

ORDER = ("worse", "better", "wrong", "unscored", "scored", "right")
LONGEST_TEXT = 4000
MOST_ENTRIES = 2000
OVERHEAD = 700
"""Bytes of an entry's markup."""
SHOWN = ("prompt", "text")


@dataclass(frozen=True)
class Entry:
    """One question: its kind, its first line, its texts, and the answers as (label, text, score)."""

    kind: str
    title: str
    prompt: str
    reference: str
    answers: list[tuple[str, str, str]]


@dataclass(frozen=True)
class Browser:
    """Entries to show, how many of each kind there are in all, and how many were left out."""

    entries: list[Entry]
    counts: list[tuple[str, int]]
    left_out: int
    metric: str


def browser(having: Sequence[tuple[str, TaskResult]], budget: int) -> Browser | None:
    """The items of one task in one or several results; None where the items hold no text.

    Args:
        having: label and task.
        budget: bytes.
    """
    metric = having[-1][1].headline.name
    larger = having[-1][1].headline.higher_is_better
    grouped = [(label, _by_id(task.items)) for label, task in having]
    ids = list(dict.fromkeys(i for _, items in grouped for i in items))
    first = {i: next(items[i] for _, items in grouped if i in items)[0] for i in ids}
    if not any(isinstance(first[i].get(key), (str, list)) for i in ids[:10] for key in SHOWN):
        return None
    scores = {i: [_score(items.get(i, []), metric) for _, items in grouped] for i in ids}
    graded = {score for found in scores.values() for score in found if score is not None} <= {0.0, 1.0}
    kinds = {i: _kind(scores[i], larger=larger, graded=graded) for i in ids}
    order = sorted(ids, key=lambda i: (ORDER.index(kinds[i]), _badness(i, grouped, metric, larger)))
    entries: list[Entry] = []
    for i in order[:MOST_ENTRIES]:
        entry = _entry(first[i], kinds[i], [(label, items.get(i, [])) for label, items in grouped], metric)
        budget -= _size(entry)
        if budget < 0:
            break
        entries.append(entry)
    counts = [(kind, found) for kind in ORDER if (found := sum(k == kind for k in kinds.values()))]
    return Browser(entries, counts, len(ids) - len(entries), metric)


def _by_id(items: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for item in items:
        found.setdefault(str(item.get("id")), []).append(item)
    return found


def _score(samples: Sequence[Mapping[str, Any]], metric: str) -> float | None:
    """The mean score of a question's samples."""
    scores = [s for item in samples if isinstance(s := item.get("scores", {}).get(metric), (int, float))]
    return sum(scores) / len(scores) if scores else None


def _kind(scores: Sequence[float | None], *, larger: bool, graded: bool) -> str:
    """Of one question's scores; `graded` says that the metric is right or wrong for every question."""
    known = [score for score in scores if score is not None]
    if not known:
        return "unscored"
    if len(known) > 1 and known[-1] != known[0]:
        return "better" if (known[-1] > known[0]) == larger else "worse"
    if graded:
        return "right" if (known[-1] == 1.0) == larger else "wrong"
    return "scored"


def _badness(i: str, grouped: Sequence[tuple[str, Any]], metric: str, larger: bool) -> float:
    """Sorts the largest change, or else the worst score, to the front."""
    known = [s for _, items in grouped if (s := _score(items.get(i, []), metric)) is not None]
    if not known:
        return 0.0
    if len(known) > 1 and known[-1] != known[0]:
        return -abs(known[-1] - known[0])
    return known[-1] if larger else -known[-1]


def _entry(
    item: Mapping[str, Any], kind: str, sides: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], metric: str
) -> Entry:
    prompt = next((message_text(item[key]) for key in SHOWN if isinstance(item.get(key), (str, list))), "")
    lines = [line for line in prompt.strip().splitlines() if line.strip()] or ["(empty)"]
    answers = []
    for label, samples in sides:
        if not samples:
            answers.append((label, "(not measured)", ""))
            continue
        score = _score(samples, metric)
        more = f", the first of {len(samples)} answers" if len(samples) > 1 else ""
        answers.append((label, _said(samples[0]), ("no score" if score is None else compact(score)) + more))
    return Entry(kind, lines[-1].strip()[:160], _cut(prompt), _cut(_text(item.get("reference"))), answers)


def _said(item: Mapping[str, Any]) -> str:
    """What the model answered: its text, its label, or its tags."""
    value = item.get("output", item.get("prediction", item.get("predicted_tags")))
    return _cut(_text(value)) or "(empty)"


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list):
        if value and all(isinstance(part, str) for part in value):
            return " ".join(value)
        shown = message_text(value)
        return shown if shown else json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def _cut(text: str) -> str:
    return shortened(text, LONGEST_TEXT)


def _size(entry: Entry) -> int:
    """Bytes of an entry in the page."""
    texts = [entry.title, entry.prompt, entry.reference, *(part for answer in entry.answers for part in answer)]
    return OVERHEAD + weight(texts)
