"""Classification of texts by a model with a classification head: is the likeliest label the right one?

A label's probability is the softmax of the head's outputs. `accuracy` and `f1_macro` judge the likeliest label, `nll`
(-log p of the right one), `ece`, `adaptive_ece` and `brier` the probability: `confidence` is that of the likeliest
label, and the calibration metrics ask whether it is right that often. The result's `details` hold precision, recall
and F1 of each label, the confusion counts and the reliability curve.

Labels are those of the model's `config.json`; rows with another one are refused with their place. It does not ask a
model that writes text: that is the kind `exact_match` with `match: text`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from aligntune.algorithms.base import Schema
from aligntune.data.encoding import encode_texts
from aligntune.eval.classification import label_scores, log_probabilities
from aligntune.eval.heads import labels_of
from aligntune.eval.metrics.base import MeanMetric, Metric
from aligntune.eval.metrics.calibration import CalibrationMetric, reliability_curve
from aligntune.eval.metrics.labels import MacroF1Metric, labels_in
from aligntune.eval.stats import wilson_interval
from aligntune.eval.tasks.base import EvalKind, Row, Subject

if TYPE_CHECKING:
    from aligntune.eval.config import EvalSettings


class Classification(EvalKind):
    """`accuracy`, `f1_macro`, `nll`, `ece`, `adaptive_ece`, `brier` of a classifier, and the share of texts `cut`."""

    schema = Schema.CLASSIFICATION
    head = "sequence_classification"
    options = frozenset({"labels", "max_length"})

    def items(
        self, rows: Sequence[Row], ids: Sequence[str], settings: EvalSettings, subject: Subject
    ) -> list[dict[str, Any]]:
        """One item per text: the likeliest label, its probability, and whether it is right."""
        labels = labels_of(subject.model, settings.labels)
        gold = [labels.id(row["label"]) for row in rows]
        limit = token_limit(subject.model, subject.tokenizer, settings.max_length)
        encoded = encode_texts(subject.tokenizer, [row["text"] for row in rows], limit)
        known = [i for i, text in enumerate(encoded) if text.ids]
        pad = subject.tokenizer.pad_token_id or 0
        scored = log_probabilities(subject.model, [encoded[i].ids for i in known], pad, settings.batch_size)
        logps = dict(zip(known, scored, strict=True))
        found = []
        for i, (row, text) in enumerate(zip(rows, encoded, strict=True)):
            right = labels.names[gold[i]]
            item: dict[str, Any] = {"id": ids[i], "prompt": row["text"], "reference": right}
            if i not in logps:  # the tokenizer drops every character: there is nothing to predict from
                found.append({**item, "prediction": None, "confidence": None, "nll": None, "correct": 0.0, "cut": 0.0})
                continue
            best = int(logps[i].argmax())
            found.append({
                **item,
                "prediction": labels.names[best],
                "confidence": min(1.0, float(logps[i][best].exp())),
                "nll": -float(logps[i][gold[i]]),
                "correct": float(best == gold[i]),
                "cut": float(text.length > len(text.ids)),
            })  # fmt: skip
        return found

    def metrics(self, settings: EvalSettings, items: Sequence[Mapping[str, Any]]) -> list[Metric]:
        """Accuracy first."""
        return [
            MeanMetric("correct", "accuracy"),
            MacroF1Metric(labels_in(items, "reference", "prediction")),
            MeanMetric("nll", higher_is_better=False),
            CalibrationMetric("ece"),
            CalibrationMetric("adaptive_ece"),
            CalibrationMetric("brier"),
            MeanMetric("cut", higher_is_better=False),
        ]

    def details(self, settings: EvalSettings, items: Sequence[Mapping[str, Any]], subject: Subject) -> dict[str, Any]:
        """Scores of each label, confusion counts, and the reliability curve."""
        pairs = [(item["reference"], item["prediction"]) for item in items]
        return {
            "labels": each_label(pairs),
            "confusion": confusion(pairs),
            "reliability": [asdict(b) for b in reliability_curve(items)],
        }


def token_limit(model: Any, tokenizer: Any, max_length: int | None) -> int:
    """Most tokens of a text: the setting, the model's positions, the tokenizer's own limit, the smallest of them."""
    from aligntune.eval.generation import context_length
    from aligntune.utils.classifier_loader import positions

    limits = (max_length, positions(model), context_length(model), tokenizer.model_max_length)
    return min(int(limit) for limit in limits if limit)


def each_label(pairs: Sequence[tuple[str, str | None]]) -> dict[str, dict[str, Any]]:
    """Precision, recall and F1 of each label that occurs, with Wilson's intervals of the two shares, and its rows."""
    wanted = Counter(gold for gold, _ in pairs)
    given = Counter(label for _, label in pairs if label is not None)
    right = Counter(gold for gold, label in pairs if gold == label)
    scores = label_scores(*zip(*pairs, strict=True)) if pairs else {}
    table: dict[str, dict[str, Any]] = {}
    for name in sorted({*wanted, *given}):
        row: dict[str, Any] = {key: scores[f"{key}/{name}"] for key in ("precision", "recall", "f1")}
        for key, count in (("precision", given[name]), ("recall", wanted[name])):
            interval = wilson_interval(right[name], count) if count else None
            # A share of nothing is no share: training logs call it 0, here it is missing.
            row[key] = interval.estimate if interval else None
            row[f"{key}_interval"] = [interval.low, interval.high] if interval else None
        table[name] = {**row, "rows": wanted[name], "predicted": given[name]}
    return table


def confusion(pairs: Iterable[tuple[str, str | None]]) -> dict[str, Any]:
    """How often each gold label was taken for each label.

    Returns:
        `labels`, and `counts`: rows of (number of the gold label, number of the predicted one or None, how often),
        the most frequent first.
    """
    counts = Counter(pairs)
    names = sorted({label for pair in counts for label in pair if label is not None})
    number = {name: i for i, name in enumerate(names)}
    rows: list[list[Any]] = [
        [number[gold], None if label is None else number[label], n] for (gold, label), n in counts.items()
    ]
    rows.sort(key=lambda row: (-row[2], row[0], -1 if row[1] is None else row[1]))
    return {"labels": names, "counts": rows}
