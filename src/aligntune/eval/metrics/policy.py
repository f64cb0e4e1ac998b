"""How far a policy has moved from its reference, and how sure it is: KL divergence, entropy, log ratios.

Items carry numbers for each token of an answer that the policy itself sampled, as `aligntune.eval.policy` computes
them with both models:

    policy_logps, reference_logps    log-probability of the sampled token, nats
    kl                               exact KL(policy || reference) over the vocabulary at that position, nats
    entropy                          entropy of the policy's distribution at that position, nats

With d = reference_logp - policy_logp the estimators of KL per token are (Schulman 2020, "Approximating KL divergence"):

    k1 = -d                unbiased, high variance, may be negative
    k2 = d^2 / 2           biased, low variance
    k3 = exp(d) - 1 - d    unbiased, never negative; the one that GRPO penalises (arXiv:2402.03300, equation 4)

All are averaged over tokens: sum over the answers' tokens / number of tokens. They are estimates of the divergence
only for answers sampled at temperature 1 without truncation; `exact` does not depend on which token was drawn, but
its average over positions does depend on how the answers were sampled.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from aligntune.eval.metrics.base import Item, Metric, one_of
from aligntune.eval.metrics.likelihood import TokenMeanMetric

Estimator = Literal["exact", "k1", "k2", "k3"]


class KLDivergenceMetric(TokenMeanMetric):
    """KL(policy || reference) per token, in nats.

    Args:
        estimator: exact (sum over the vocabulary), or k1, k2, k3 from the sampled tokens.
        name: None is `kl` for exact, else `kl_<estimator>`.
    """

    higher_is_better = False
    why_missing = "the answer has no token"

    def __init__(self, estimator: Estimator = "exact", name: str | None = None) -> None:
        one_of("kl", "estimator", estimator, get_args(Estimator))
        super().__init__(name or ("kl" if estimator == "exact" else f"kl_{estimator}"))
        self.estimator = estimator
        self.requires = ("kl",) if estimator == "exact" else ("policy_logps", "reference_logps")

    def total(self, item: Item) -> tuple[float, int]:
        """Sum over the tokens, and their number."""
        if self.estimator == "exact":
            return math.fsum(item["kl"]), len(item["kl"])
        pairs = zip(item["policy_logps"], item["reference_logps"], strict=True)
        values = [kl_estimate(p, q, self.estimator) for p, q in pairs]
        return math.fsum(values), len(values)


def kl_estimate(policy_logp: float, reference_logp: float, estimator: Literal["k1", "k2", "k3"] | str) -> float:
    """One token's estimate of KL(policy || reference), in nats."""
    d = reference_logp - policy_logp
    if estimator == "k1":
        return -d
    # exp overflows a double at 709.8; a token that the reference finds so much likelier makes the mean infinite.
    return d * d / 2 if estimator == "k2" else (math.expm1(d) - d if d < 700 else math.inf)


class PolicyEntropyMetric(TokenMeanMetric):
    """Mean entropy of the policy's distribution at each position of its answers, in nats; 0 is certainty."""

    name = "entropy"
    requires = ("entropy",)
    why_missing = "the answer has no token"

    def total(self, item: Item) -> tuple[float, int]:
        """Sum over the tokens, and their number."""
        return math.fsum(item["entropy"]), len(item["entropy"])


class LogRatioMetric(Metric):
    """Mean over answers of log p(y|x) - log p_ref(y|x), summed over the answer's tokens, in nats.

    Args:
        policy: field of the policy's summed log-probability.
        reference: field of the reference model's.
        name: of the metric.
    """

    name = "log_ratio"
    why_missing = "the answer has no token left within max_length or the model's context"

    def __init__(self, policy: str = "policy_logp", reference: str = "reference_logp", name: str | None = None) -> None:
        super().__init__(name)
        self.requires = (policy, reference)

    def score(self, item: Item) -> float | None:
        """The difference of the two fields; None where one is missing."""
        policy, reference = (item[field] for field in self.requires)
        return None if policy is None or reference is None else float(policy - reference)


class ImplicitRewardMetric(LogRatioMetric):
    """Mean implicit reward of DPO: beta x log ratio (Rafailov et al. 2023, arXiv:2305.18290, equation 5).

    TRL's `rewards/chosen` and `rewards/rejected`.

    Args:
        policy: field of the policy's summed log-probability.
        reference: field of the reference model's.
        beta: as in training; positive.
        name: of the metric.
    """

    name = "implicit_reward"

    def __init__(
        self,
        policy: str = "policy_logp",
        reference: str = "reference_logp",
        *,
        beta: float = 0.1,
        name: str | None = None,
    ) -> None:
        super().__init__(policy, reference, name)
        self.beta = beta

    def score(self, item: Item) -> float | None:
        """beta x (policy - reference)."""
        ratio = super().score(item)
        return None if ratio is None else self.beta * ratio
