"""Preference: does the model put the chosen answer of a pair above the rejected one?

`logprob_accuracy` ranks by the model's own log-probability of the answers. With a reference model,
`preference_accuracy` ranks by DPO's implicit reward, beta (log p - log p_ref) summed over the answer
(Rafailov et al. 2023, arXiv:2305.18290), and `reward_margin` is its mean difference.

Sums over tokens favour short answers; `logprob_accuracy_per_token` divides by their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aligntune.algorithms.base import Schema
from aligntune.eval.likelihood import preference_logprobs
from aligntune.eval.metrics.base import Metric
from aligntune.eval.metrics.policy import ImplicitRewardMetric, LogRatioMetric
from aligntune.eval.metrics.preference import PreferenceAccuracyMetric, RewardMarginMetric
from aligntune.eval.tasks.base import EvalKind, Row, Subject

if TYPE_CHECKING:
    from aligntune.eval.config import EvalSettings, EvalTask


class Preference(EvalKind):
    """`preference_accuracy` and `reward_margin` (with a reference), `logprob_accuracy`, also length-normalised."""

    schema = Schema.PREFERENCE
    options = frozenset({"reference_model", "beta", "max_length"})

    @classmethod
    def faults(cls, task: EvalTask) -> list[tuple[str, str]]:
        """`beta` scales the margin against a reference."""
        if task.reference_model is None and task.beta != type(task).beta:
            return [("beta", "has no effect without reference_model; set it, or remove beta")]
        return []

    def items(
        self, rows: Sequence[Row], ids: Sequence[str], settings: EvalSettings, subject: Subject
    ) -> list[dict[str, Any]]:
        """One item per pair: log-probabilities, token counts, and the implicit rewards where there is a reference."""

        def measure(model: Any) -> list[Any]:
            return preference_logprobs(
                model, subject.tokenizer, rows, settings.batch_size, max_length=settings.max_length
            )

        policy = measure(subject.model)
        base = measure(subject.reference) if subject.reference is not None else [None] * len(rows)
        return [self._item(i, p, b, settings.beta) for i, p, b in zip(ids, policy, base, strict=True)]

    @staticmethod
    def _item(i: str, policy: Any, base: Any, beta: float) -> dict[str, Any]:
        item: dict[str, Any] = {"id": i}
        for side in ("chosen", "rejected"):
            logp, tokens = getattr(policy, side)
            item |= {f"{side}_logp": logp if tokens else None, f"{side}_tokens": tokens}
            item[f"{side}_logp_per_token"] = logp / tokens if tokens else None
            if base is not None:
                logp_ref, _ = getattr(base, side)
                item[f"{side}_logp_reference"] = logp_ref if tokens else None
                item[f"{side}_reward"] = beta * (logp - logp_ref) if tokens else None
        return item

    def metrics(self, settings: EvalSettings, items: Sequence[Mapping[str, Any]]) -> list[Metric]:
        """Implicit rewards first, where they are there."""
        found: list[Metric] = [
            PreferenceAccuracyMetric("chosen_logp", "rejected_logp", "logprob_accuracy"),
            PreferenceAccuracyMetric("chosen_logp_per_token", "rejected_logp_per_token", "logprob_accuracy_per_token"),
        ]
        if items and "chosen_reward" in items[0]:
            found = [
                PreferenceAccuracyMetric("chosen_reward", "rejected_reward"),
                RewardMarginMetric("chosen_reward", "rejected_reward"),
                *(
                    kind(f"{side}_logp", f"{side}_logp_reference", name=f"{label}/{side}", **options)
                    for side in ("chosen", "rejected")
                    for kind, label, options in (
                        (ImplicitRewardMetric, "implicit_reward", {"beta": settings.beta}),
                        (LogRatioMetric, "log_ratio", {}),
                    )
                ),
                *found,
            ]
        for metric in found:
            metric.why_missing = "an answer has no token left within max_length or the model's context"
        return found
