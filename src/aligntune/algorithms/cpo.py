"""Contrastive preference optimisation (Xu et al. 2024, arXiv:2401.08417).

Loss, section 3: -log sigma(beta log pi(y_w) - beta log pi(y_l)) + NLL(y_w), the DPO loss with a uniform
reference and a likelihood term that keeps the policy near the chosen answers. The likelihood term is the mean over an
answer's tokens, as in the authors' program (the paper writes the sum), then over pairs.

>>> CPO().objective(Answers(tensor([-4.0]), tensor([4])), Answers(tensor([-6.0]), tensor([3])))[0]   # 0.5981 + 1
tensor([1.5981])
"""

from __future__ import annotations

from typing import Any

from pydantic import NonNegativeFloat, PositiveFloat

from aligntune.algorithms.base import Schema, algorithm
from aligntune.algorithms.reference_free import Answers, ReferenceFree


@algorithm("cpo", trainer="trl:DPOTrainer", args="trl:DPOConfig", data=Schema.PREFERENCE)
class CPO(ReferenceFree):
    """DPO without a reference, with the likelihood of the chosen answer beside it."""

    beta: PositiveFloat = 0.1
    """Scale of the log-probabilities (Xu et al. 2024, section 4)."""
    nll_weight: NonNegativeFloat = 1.0
    """Factor of the likelihood term (1 in the paper; TRL's `cpo_alpha`)."""

    def objective(self, chosen: Answers, rejected: Answers) -> tuple[Any, dict[str, Any]]:
        from torch.nn.functional import logsigmoid

        contrast = -logsigmoid(self.scores(chosen) - self.scores(rejected))
        return contrast - self.nll_weight * chosen.mean, {"nll_loss": -chosen.mean}

    def scores(self, answers: Answers) -> Any:
        return self.beta * answers.logps
