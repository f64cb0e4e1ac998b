"""Odds-ratio preference optimisation (Hong et al. 2024, arXiv:2403.07691).

Loss, equation 6: NLL(y_w) - lambda log sigma(log odds(y_w) - log odds(y_l)), odds = p / (1 - p), log p the mean
log-probability of an answer's tokens (equations 3 to 5). It needs no supervised stage before it and no reference. The
likelihood term is over the answer's tokens (TRL's experimental trainer counts the prompt's too).

>>> ORPO().objective(Answers(tensor([-4.0]), tensor([4])), Answers(tensor([-6.0]), tensor([3])))[0]
tensor([1.0206])

Odds are infinite at p = 1, so log p counts as -1e-6 above that in the odds, with no gradient.
"""

from __future__ import annotations

from typing import Any

from pydantic import PositiveFloat

from aligntune.algorithms.base import Schema, algorithm
from aligntune.algorithms.reference_free import Answers, ReferenceFree

CERTAIN = -1e-6
"""Largest mean log-probability that enters the odds."""


@algorithm("orpo", trainer="trl:DPOTrainer", args="trl:DPOConfig", data=Schema.PREFERENCE)
class ORPO(ReferenceFree):
    """Supervised tuning on the chosen answer and the odds ratio to the rejected one, in one stage."""

    beta: PositiveFloat = 0.1
    """Weight of the odds-ratio term, lambda in the paper (Hong et al. 2024, section 6.1)."""

    def objective(self, chosen: Answers, rejected: Answers) -> tuple[Any, dict[str, Any]]:
        from torch.nn.functional import logsigmoid

        ratio = self.scores(chosen) - self.scores(rejected)
        return -chosen.mean - self.beta * logsigmoid(ratio), {"nll_loss": -chosen.mean, "log_odds_ratio": ratio}

    def scores(self, answers: Answers) -> Any:
        """(B,) log odds of the answers, which the loss compares."""
        import torch

        logp = answers.mean.clamp(max=CERTAIN)
        return logp - torch.log(-torch.expm1(logp))
