"""Evaluate a model that is in memory: any kind on prepared rows, and the choice that RL training makes.

>>> RLEvaluator(model, tokenizer, rewards=composite, max_new_tokens=64).evaluate(rows)
{'reward': 0.41, 'rewards/math_correctness': 0.32, 'tokens': 18.2, 'finished': 1.0}

`BaseEvaluator.run` is what `EvalRunner` calls for each task of a file, so numbers of a training run and of
`aligntune eval` come from the same code. It loads no data and no models.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from typing import Any

from aligntune.core.config.base import to_plain
from aligntune.eval.config import EvalSettings
from aligntune.eval.heads import check_head
from aligntune.eval.journal import Journal
from aligntune.eval.metrics.corpus import CorpusMetric
from aligntune.eval.prompts import Shots, templated
from aligntune.eval.registry import EvalRegistry
from aligntune.eval.result import TaskResult
from aligntune.eval.tasks.base import EvalKind, Opponent, Subject, item_ids
from aligntune.utils.logging import get_logger

log = get_logger(__name__)

CHUNK = 256
"""Rows that are measured before they are stored: what a killed evaluation loses at most."""


class BaseEvaluator:
    """Evaluates one model.

    Args:
        model: a causal language model, or a classifier for the kinds that measure one.
        tokenizer: its tokenizer.
        seed: of sampling.
        rewards: a `CompositeReward`, for the kinds `reward`, `reward_accuracy` and `win_rate`.
        reference: the model of implicit rewards and KL, for the kinds `preference` and `policy`.
        shots: solved rows to show before each question.
        judge: a `Judge`, for the kind `win_rate`.
        opponent: the other side of `win_rate`; None takes the rows' references.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        seed: int = 42,
        rewards: Any = None,
        reference: Any = None,
        shots: Shots | None = None,
        judge: Any = None,
        opponent: Opponent | None = None,
    ) -> None:
        self.subject = Subject(model, tokenizer, seed, rewards, reference, shots, judge, opponent)

    def run(
        self,
        kind: str | EvalKind,
        rows: Iterable[Mapping[str, Any]],
        settings: EvalSettings | None = None,
        *,
        name: str | None = None,
        journal: Journal | None = None,
    ) -> TaskResult:
        """Values and items of one kind of evaluation.

        Rows are measured in chunks of `CHUNK` (or 16 batches, if that is more). Sampling in each chunk has a seed of
        its own, so that a chunk does not depend on those before it.

        Args:
            kind: a registered name, or an instance.
            rows: canonical rows of the kind's schema (`aligntune.data.prepare_dataset`).
            settings: how; None takes the defaults.
            name: of the task in the result; None takes the kind's.
            journal: holds the chunks that are done, and takes the others.

        Raises:
            ConfigurationError: unknown kind, or one that needs a model with another head.
            ValidationError: no rows, or rows that lack what the kind needs.
        """
        start = time.monotonic()
        settings = settings or EvalSettings()
        measure = EvalRegistry.get(kind)() if isinstance(kind, str) else kind
        label = kind if isinstance(kind, str) else type(kind).__name__
        data = [dict(row) for row in rows]
        measure.check(data, self.subject.rewards)
        measure.check_settings(data, settings)
        check_head(self.subject.model, measure.head, label)
        items = self._items(measure, data, settings, journal)
        metrics = {}
        for metric in measure.metrics(settings, items):
            scores = metric.scores(items)
            metrics[metric.name] = metric.aggregate(items, scores)
            for item, score in zip(items, scores, strict=True):
                if metric.paired:
                    item.setdefault("scores", {})[metric.name] = score
                elif isinstance(metric, CorpusMetric):
                    item.setdefault("statistics", {})[metric.name] = metric.statistics(item)
        return TaskResult(
            name=name or label,
            kind=label,
            metrics=metrics,
            items=items,
            settings=self._settings(measure, settings),
            notes=[f"{m.name}: {m.missing} without a score: {m.reason}" for m in metrics.values() if m.missing],
            seconds=time.monotonic() - start,
            details=measure.details(settings, items, self.subject),
        )

    def _items(
        self, measure: EvalKind, rows: list[dict[str, Any]], settings: EvalSettings, journal: Journal | None
    ) -> list[dict[str, Any]]:
        ids = item_ids(rows)
        size = max(CHUNK, 16 * settings.batch_size)
        found: list[dict[str, Any]] = []
        for k, start in enumerate(range(0, len(rows), size)):
            if journal is not None and k in journal.done:
                found += journal.done[k]
                continue
            subject = dataclasses.replace(self.subject, seed=self.subject.seed + k)
            items = measure.items(rows[start : start + size], ids[start : start + size], settings, subject)
            found += items if journal is None else journal.append(k, items)
            if len(rows) > size:
                log.info("%d of %d rows", min(start + size, len(rows)), len(rows))
        return found

    def _settings(self, measure: EvalKind, settings: EvalSettings) -> dict[str, Any]:
        """The settings that the kind reads, and what the tokenizer decides."""
        plain = {k: v for k, v in to_plain(settings).items() if k in measure.options}
        if measure.head != "causal_lm":
            return {**plain, "seed": self.subject.seed}
        return {**plain, "seed": self.subject.seed, "chat_template": templated(settings, self.subject.tokenizer)}

    def evaluate(
        self, rows: Iterable[Mapping[str, Any]], kind: str = "perplexity", settings: EvalSettings | None = None
    ) -> dict[str, float]:
        """Metric name to number; metrics without a value are left out."""
        return self.run(kind, rows, settings).values()


class RLEvaluator(BaseEvaluator):
    """Evaluates what preference and policy optimisation train: the kind follows from the rows.

    Rows with `chosen` and `rejected` give the preference metrics, rows with a prompt alone the rewards of generated
    answers.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        seed: of sampling.
        rewards: a `CompositeReward`, for prompts.
        reference: the reference model, for pairs.
        settings: fields of `EvalSettings`, as `max_new_tokens=64`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        seed: int = 42,
        rewards: Any = None,
        reference: Any = None,
        **settings: Any,
    ) -> None:
        super().__init__(model, tokenizer, seed=seed, rewards=rewards, reference=reference)
        self.settings = EvalSettings(**settings)

    def evaluate(
        self, rows: Iterable[Mapping[str, Any]], kind: str | None = None, settings: EvalSettings | None = None
    ) -> dict[str, float]:
        """Metric name to number, of the kind that the rows call for unless one is given."""
        data = list(rows)
        chosen = kind or ("preference" if data and "chosen" in data[0] else "reward")
        return super().evaluate(data, chosen, settings or self.settings)
