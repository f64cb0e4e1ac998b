"""Results of evaluations for tests of the report, with answers that try to run scripts.

`import reporting` works in every test, because pytest puts this folder on the path with `conftest.py`.
"""

from __future__ import annotations

import random
from typing import Any

from aligntune.eval.metrics.base import MeanMetric, Metric
from aligntune.eval.metrics.calibration import CalibrationMetric
from aligntune.eval.metrics.likelihood import NLLMetric, PerplexityMetric
from aligntune.eval.result import EvalResult, TaskResult

ATTACK = "</pre></svg></style></script><script>document.title='taken'</script><img src=x onerror=alert(1)>\"'&\u202e\0x"
LABELS = ("card_lost", "card_late", "refund <b>", "other")


def task(name: str, kind: str, items: list[dict[str, Any]], metrics: list[Metric], **changes: Any) -> TaskResult:
    """A task's result from its items."""
    values = {}
    for metric in metrics:
        scores = metric.scores(items)
        values[metric.name] = metric.aggregate(items, scores)
        for item, score in zip(items, scores, strict=True):
            if metric.paired:
                item.setdefault("scores", {})[metric.name] = score
    settings = {"source": "data/test.jsonl", "chat_template": True}
    return TaskResult(name, kind, values, items, settings, seconds=3.2, **changes)


def result(model: str, share: float, seed: int, n: int = 200, text: str = "") -> EvalResult:
    """Sums, a classifier's labels and a perplexity of a model that is right in a share of cases.

    Args:
        model: its name.
        share: of right answers.
        seed: of which are right; the items are the same for every seed.
        n: items of each task.
        text: further text of each answer.
    """
    rng = random.Random(seed)
    sums, labels, nll = [], [], []
    for i in range(n):
        right = rng.random() < share
        prompt = [{"role": "user", "content": f"What is {i} + {i % 7}?" + (ATTACK if i % 50 == 0 else "")}]
        said = f"It is {i + i % 7 + (0 if right else 1)}.{text}" + (ATTACK if i % 40 == 0 else "")
        sums.append({"id": f"s{i}", "prompt": prompt, "reference": str(i + i % 7), "output": said, "correct": right})
        gold = LABELS[i % len(LABELS)]
        guess = gold if right else LABELS[rng.randrange(len(LABELS))]
        confidence = min(0.99, max(0.26, share + rng.uniform(-0.3, 0.3)))
        labels.append(
            {"id": f"l{i}", "prompt": f"Question {i}", "reference": gold, "prediction": guess,
             "confidence": confidence, "correct": float(guess == gold)}
        )  # fmt: skip
        nll.append({"id": f"n{i}", "nll": 20 * (1.2 - share) + rng.random(), "tokens": 20})
    tasks = [
        task("sums", "exact_match", sums, [MeanMetric("correct", "accuracy")]),
        task(
            "intents",
            "classification",
            labels,
            [MeanMetric("correct", "accuracy"), CalibrationMetric("brier")],
        ),
        task("stories", "perplexity", nll, [PerplexityMetric(), NLLMetric()], notes=[ATTACK]),
    ]
    return EvalResult(model, {one.name: one for one in tasks})
