"""Policy: how far the model has moved from its reference, and how sure it is, on answers that it samples itself.

Answers are sampled at temperature 1 from the model, without truncation, because KL(policy || reference) is an
expectation over the policy's own answers. With a reference model: `kl` (exact over the vocabulary at each position),
the estimators `kl_k1` and `kl_k3`, and `log_ratio` (summed over an answer, nats); always `entropy`. Per token, nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aligntune.eval.generation import encode_prompts, evaluating, generate_ids, sampling_settings, seeded
from aligntune.eval.metrics.base import MeanMetric, Metric
from aligntune.eval.metrics.policy import KLDivergenceMetric, LogRatioMetric, PolicyEntropyMetric
from aligntune.eval.policy import token_statistics
from aligntune.eval.prompts import ask
from aligntune.eval.tasks.base import ASKING, EvalKind, Row, Subject

if TYPE_CHECKING:
    from aligntune.eval.config import EvalSettings


class Policy(EvalKind):
    """`kl`, `kl_k1`, `kl_k3`, `log_ratio` (with a reference model), `entropy`, `tokens`."""

    options = ASKING | {"max_new_tokens", "num_samples", "reference_model"}

    def items(
        self, rows: Sequence[Row], ids: Sequence[str], settings: EvalSettings, subject: Subject
    ) -> list[dict[str, Any]]:
        """One item per sampled answer, with the numbers of each of its tokens."""
        prompts = encode_prompts(subject.tokenizer, ask(rows, ids, settings, subject))
        jobs = [(i, k) for i in range(len(rows)) for k in range(settings.num_samples)]
        sampling = sampling_settings(subject.model, subject.tokenizer, 1.0, 1.0, 0)
        drawn: list[list[int]] = []
        with evaluating(subject.model), seeded(subject.model, subject.seed):
            for start in range(0, len(jobs), settings.batch_size):
                batch = [prompts[i] for i, _ in jobs[start : start + settings.batch_size]]
                drawn += generate_ids(subject.model, batch, sampling, settings.max_new_tokens)
        pad = subject.tokenizer.pad_token_id
        found = token_statistics(
            subject.model,
            subject.reference,
            [(prompts[i], answer) for (i, _), answer in zip(jobs, drawn, strict=True)],
            pad_id=pad if pad is not None else 0,
            batch_size=settings.batch_size,
        )
        return [
            self._item(ids[i], k, subject.tokenizer.decode(answer, skip_special_tokens=True), numbers)
            for (i, k), answer, numbers in zip(jobs, drawn, found, strict=True)
        ]

    @staticmethod
    def _item(i: str, k: int, output: str, numbers: dict[str, list[float]]) -> dict[str, Any]:
        item: dict[str, Any] = {"id": i, "sample": k, "output": output, "tokens": len(numbers["entropy"]), **numbers}
        for side in ("policy", "reference"):
            if f"{side}_logps" in numbers:
                item[f"{side}_logp"] = math.fsum(numbers[f"{side}_logps"])
        return item

    def metrics(self, settings: EvalSettings, items: Sequence[Mapping[str, Any]]) -> list[Metric]:
        """KL first, where there is a reference."""
        found: list[Metric] = [PolicyEntropyMetric(), MeanMetric("tokens", higher_is_better=False)]
        if items and "kl" in items[0]:
            kls = [KLDivergenceMetric(e) for e in ("exact", "k1", "k3")]  # type: ignore[arg-type]
            found = [*kls, LogRatioMetric(), *found]
        return found
