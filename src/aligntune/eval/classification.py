"""Scores of classifiers, for the evaluations of training runs.

- texts: `accuracy`; `precision`, `recall`, `f1` as `_macro` and `_weighted` means and for each label; `nll`; `rows`;
- tokens: entity scores (`aligntune.eval.entities`) where the tags mark entities, else those of single tags as for
  texts; `accuracy` (over tags), `nll`, `tags`, `rows`.

Precision of a label is the share of its predictions that are right, recall the share of its rows that are found, F1
their harmonic mean. Means are over the labels that occur among gold or predicted ones (scikit-learn's default), each
once (macro) or by its gold rows (weighted). A ratio over nothing is 0. `nll` is the mean of -log p(gold).

>>> label_scores(["a", "a", "b"], ["a", "b", "b"])["accuracy"]
0.6666666666666666

In training's evaluations accuracy, `nll`, the macro F1 and the entities' three scores have intervals (shares by Wilson,
of tags by sentence, F1 by a bootstrap); the values of single labels have theirs in the details of the evaluation kinds.

A word that was cut off, or has no token, counts as predicted O (or as wrong, where there is no O): a shorter limit
cannot raise a score. Calibration and thresholds are not here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from aligntune.data.encoding import IGNORED
from aligntune.eval.entities import OUTSIDE, averages, entity_scores, marks_entities, prf
from aligntune.eval.estimates import mean_of, ratio_of
from aligntune.eval.generation import evaluating
from aligntune.eval.metrics.base import Metric
from aligntune.eval.metrics.entities import EntityF1Metric
from aligntune.eval.metrics.labels import MacroF1Metric, TagAccuracyMetric, labels_in
from aligntune.eval.stats import Interval, wilson_interval

RESAMPLES = 400
"""Of an F1's interval in training, where an evaluation should take little time."""


def label_scores(gold: Sequence[str], predicted: Sequence[str | None]) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 by label, as macro and as weighted mean.

    Args:
        gold: a label for each item; at least one.
        predicted: as many; None is no prediction, which is wrong.
    """
    wanted, given = Counter(gold), Counter(label for label in predicted if label is not None)
    right = Counter(a for a, b in zip(gold, predicted, strict=True) if a == b)
    names = sorted({*wanted, *given})
    each = {name: prf(right[name], given[name], wanted[name]) for name in names}
    scores = {"accuracy": right.total() / len(gold), **averages(each, wanted)}
    for name in names:
        scores |= {f"{key}/{name}": v for key, v in zip(("precision", "recall", "f1"), each[name], strict=True)}
        scores[f"rows/{name}"] = float(wanted[name])
    return scores


def tag_scores(
    gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str | None]], names: Sequence[str]
) -> dict[str, float]:
    """Entity scores, or scores of single tags where the tag set marks no entities; and the accuracy over tags.

    Args:
        gold: tags of each sentence.
        predicted: as many; None is no prediction.
        names: the tag set.
    """
    flat_gold = [tag for tags in gold for tag in tags]
    flat = [tag for tags in predicted for tag in tags]
    count = {"tags": float(len(flat_gold))}
    if not marks_entities(names):
        scores = label_scores(flat_gold, flat)
        return {key.replace("rows/", "tags/"): value for key, value in scores.items()} | count
    guess = [[OUTSIDE if tag is None else tag for tag in tags] for tags in predicted]
    # Accuracy takes the same view of a missing prediction as the entities do.
    right = sum(a == b for true, tags in zip(gold, guess, strict=True) for a, b in zip(true, tags, strict=True))
    return {**entity_scores(gold, guess), "accuracy": right / len(flat_gold), **count}


def log_probabilities(model: Any, ids: Sequence[Sequence[int]], pad_id: int, batch_size: int) -> list[Any]:
    """Log-probabilities of the labels: (K,) for each text, or (T, K) for each sentence of T tokens, on the CPU.

    Args:
        model: a Transformers classifier; put back into the mode that it was in.
        ids: token ids of each row.
        pad_id: fills shorter rows of a batch.
        batch_size: rows per forward pass. Rows of like length go together.
    """
    import torch

    found: dict[int, Any] = {}
    with evaluating(model):
        for batch in _batches(ids, batch_size):
            longest = max(len(ids[i]) for i in batch)
            rows = [[*ids[i], *[pad_id] * (longest - len(ids[i]))] for i in batch]
            mask = [[1] * len(ids[i]) + [0] * (longest - len(ids[i])) for i in batch]
            device = next(model.parameters()).device
            logits = model(
                input_ids=torch.tensor(rows, device=device), attention_mask=torch.tensor(mask, device=device)
            ).logits
            for i, values in zip(batch, logits.float().log_softmax(-1).cpu(), strict=True):
                found[i] = values if values.dim() == 1 else values[: len(ids[i])]
    return [found[i] for i in range(len(ids))]


def _batches(ids: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in range(0, len(order), size):
        yield order[start : start + size]


def evaluate_texts(trainer: Any, rows: Any) -> dict[str, float | Interval]:
    """Scores of the run's model on encoded held-out texts."""
    labels, columns = trainer.labels, rows.to_dict()
    logps = _logps(trainer, columns["input_ids"])
    gold = columns["labels"]
    nll = mean_of([-float(row[number]) for row, number in zip(logps, gold, strict=True)])
    names = labels.names
    true, guess = [names[i] for i in gold], [names[int(row.argmax())] for row in logps]
    items = [{"reference": a, "prediction": b} for a, b in zip(true, guess, strict=True)]
    right = sum(a == b for a, b in zip(true, guess, strict=True))
    return {
        **_with_intervals(label_scores(true, guess), items, [MacroF1Metric({*true, *guess}, resamples=RESAMPLES)]),
        "accuracy": wilson_interval(right, len(true)),
        "nll": nll,
        "rows": float(len(gold)),
    }


def evaluate_tokens(trainer: Any, rows: Any) -> dict[str, float | Interval]:
    """Scores of the run's model on encoded held-out sentences."""
    labels, columns = trainer.labels, rows.to_dict()
    logps = _logps(trainer, columns["input_ids"])
    totals, counts = [], []
    for row, numbers in zip(logps, columns["labels"], strict=True):
        counted = [-float(row[at, number]) for at, number in enumerate(numbers) if number != IGNORED]
        totals.append(sum(counted))
        counts.append(float(len(counted)))
    predicted = [word_tags(row, at, labels.names) for row, at in zip(logps, columns["positions"], strict=True)]
    gold = [[labels.names[labels.id(tag)] for tag in tags] for tags in columns["tags"]]
    entities = marks_entities(labels.names)
    nothing = OUTSIDE if entities else None
    items: list[dict[str, Any]] = [
        {"tags": a, "predicted_tags": [nothing if tag is None else tag for tag in b], "words": len(a)}
        for a, b in zip(gold, predicted, strict=True)
    ]
    if entities:
        metrics: list[Metric] = [EntityF1Metric(m, m, resamples=RESAMPLES) for m in ("f1", "precision", "recall")]
    else:
        known = labels_in(items, "tags", "predicted_tags")
        metrics = [MacroF1Metric(known, "tags", "predicted_tags", resamples=RESAMPLES)]
    scores = tag_scores(gold, predicted, labels.names)
    return {
        **_with_intervals(scores, items, [TagAccuracyMetric(), *metrics]),
        "nll": ratio_of(totals, counts),
        "rows": float(len(gold)),
    }


def _with_intervals(
    scores: dict[str, float], items: list[dict[str, Any]], metrics: list[Metric]
) -> dict[str, float | Interval]:
    """The scores, with the intervals of those that a metric measures too."""
    found: dict[str, float | Interval] = dict(scores)
    for metric in metrics:
        m = metric.compute(items)
        if m.value is not None and metric.name in scores:
            found[metric.name] = Interval(scores[metric.name], m.low, m.high, m.n, m.method, m.confidence)
    return found


def word_tags(logps: Any, positions: Sequence[int], names: Sequence[str]) -> list[str | None]:
    """The likeliest tag at each word's first sub-token; None for words without one."""
    best = logps.argmax(-1).tolist()
    return [names[best[at]] if at >= 0 else None for at in positions]


def _logps(trainer: Any, ids: list[list[int]]) -> list[Any]:
    return log_probabilities(trainer.model, ids, trainer.tokenizer.pad_token_id, trainer.config.evaluation.batch_size)
