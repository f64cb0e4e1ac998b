"""Kahneman-Tversky optimisation (Ethayarajh et al. 2024, arXiv:2402.01306): single answers, each good or bad.

Loss, equation 7, with r = log pi(y) - log pi_ref(y) and z = max(0, mean over the batch of the same for mismatched
prompts and answers), without gradient:

    w_D (1 - sigma(beta (r - z)))   for a desirable answer,      w_U (1 - sigma(beta (z - r)))   for an undesirable one.

TRL computes it; `apo_zero_unpaired` is its loss without z (D'Oosterlinck et al. 2024, arXiv:2408.06266). The
mismatched answers are the batch's own, moved by one row; TRL fixes them before training, so it reads the rows in one
order in every epoch. The rows are therefore shuffled once, with the run's seed, and a last batch of a single row,
whose baseline would be its own reward, is left out. Both are told.

>>> balance(good=30, bad=70, weight_good=1.0, weight_bad=1.0)
(0.42857142857142855, ': set algo.desirable_weight to between 2.33 and 3.11')

The loss depends on the micro-batch, so a batch of 8 does not equal 4 accumulated twos.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import PositiveFloat

from aligntune.algorithms.base import Schema, algorithm
from aligntune.algorithms.preference import Referenced
from aligntune.errors import ValidationError

WIDEST = 4 / 3
"""Upper end of the advised ratio of the two kinds' total weights; the lower one is 1 (equation 8: 1.33)."""


@algorithm("kto", trainer="trl:KTOTrainer", args="trl:KTOConfig", data=Schema.UNPAIRED)
class KTO(Referenced):
    """Learn from single answers with a label, desirable or not."""

    evaluator = "aligntune.core.preference:evaluate_unpaired"

    beta: PositiveFloat = 0.1
    """KL strength, and risk aversion (Ethayarajh et al. 2024, section 4.1)."""
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    """kto is the paper's; apo_zero_unpaired has no KL baseline (TRL's names)."""
    desirable_weight: PositiveFloat = 1.0
    """Weight of desirable answers (Ethayarajh et al. 2024, section 4.1)."""
    undesirable_weight: PositiveFloat = 1.0
    """Weight of undesirable answers (Ethayarajh et al. 2024, section 4.1)."""

    def bound_to_batch(self, config: Any) -> str | None:
        return "the KL baseline is taken over the rows of one forward pass" if self.loss_type == "kto" else None

    def arguments(self, config: Any) -> dict[str, Any]:
        return {
            "beta": self.beta,
            "loss_type": self.loss_type,
            "desirable_weight": self.desirable_weight,
            "undesirable_weight": self.undesirable_weight,
            "precompute_ref_log_probs": self.precompute_ref_log_probs,
            "precompute_ref_batch_size": None,
            "train_sampling_strategy": "sequential" if self.loss_type == "kto" else "random",
            "max_length": config.model.max_seq_length,
            "disable_dropout": True,
            "activation_offloading": False,
            "sync_ref_model": False,
        }

    def arrange(self, rows: Any, config: Any) -> tuple[Any, list[str]]:
        total, good = len(rows), sum(rows["label"])
        if good in (0, total):
            kind = "desirable" if good else "undesirable"
            raise ValidationError(
                f"all {total} rows are {kind}, and KTO learns from the two kinds together",
                hint="check the column `label`; for good answers alone use `task: instruction_following`",
            )
        ratio, advice = balance(good, total - good, self.desirable_weight, self.undesirable_weight)
        notes = [
            f"training data: {good} of {total} rows ({good / total:.1%}) are desirable; the total weight of the "
            f"desirable ones is {ratio:.3g} times the others', and the paper advises 1 to 4/3{advice}."
        ]
        if self.loss_type != "kto":
            return rows, notes
        seed, batch = config.train.seed, config.train.per_device_batch_size
        rows = rows.shuffle(seed=seed)
        notes.append(f"training data: shuffled once with seed {seed}; every epoch reads this order, as TRL's KL needs.")
        if total % batch == 1:
            rows = rows.select(range(total - 1))
            notes.append("training data: left out 1 row that would be a batch of its own, which has no KL baseline.")
        return rows, notes

    def faults(self, config: Any) -> list[tuple[str, str]]:
        if self.loss_type == "kto" and config.train.per_device_batch_size < 2:
            return [
                (
                    "train.per_device_batch_size",
                    "must be at least 2 with loss_type kto, whose KL baseline pairs each prompt with another row's "
                    "answer; loss_type apo_zero_unpaired has none",
                )
            ]
        return []


def balance(good: int, bad: int, weight_good: float, weight_bad: float) -> tuple[float, str]:
    """The ratio of the two kinds' total weights, and the advice of the paper's equation 8 where it is out of range."""
    ratio = weight_good * good / (weight_bad * bad)
    if 1 <= ratio <= WIDEST:
        return ratio, ""
    low = weight_bad * bad / good
    if ratio < 1:
        return ratio, f": set algo.desirable_weight to between {low:.3g} and {low * WIDEST:.3g}"
    high = weight_good * good / bad
    return ratio, f": set algo.undesirable_weight to between {high / WIDEST:.3g} and {high:.3g}"
