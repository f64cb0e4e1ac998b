"""The mathematics of PPO on completions: shaped rewards, advantages, whitening, the value loss and the KL controller.

    r_t = -k KL_t, plus the score of the completion at its last token
    A_t = sum over l of (gamma lam)^l d_(t+l), d_t = r_t + gamma V_(t+1) - V_t, V = 0 behind the last token
    L_V = 1/2 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2), R_t = A_t + V_t

Pure functions on tensors of shape (B, T): B completions, T tokens of the longest one, with a mask that is 1 for the
tokens that count, from the first on without a gap.

>>> gae(tensor([[0.0, 1.0]]), tensor([[0.5, 0.5]]), ones(1, 2), gamma=1.0, lam=0.95)
(tensor([[0.475, 0.5]]), tensor([[0.975, 1.0]]))

Sources: generalised advantage estimation, Schulman et al. 2016 (arXiv:1506.02438), equation 16; PPO, Schulman et al.
2017 (arXiv:1707.06347); the clipped value loss, whitening and per-token KL penalty as in Huang et al. 2024
(arXiv:2403.17031), section 7; the adaptive coefficient, Ziegler et al. 2019 (arXiv:1909.08593), section 2.2. A
completion that was cut off is treated as finished: nothing is bootstrapped behind its last token. The clipped policy
loss is TRL's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Reduce = Callable[[Any], Any]
"""A tensor summed over all processes."""


def alone(values: Any) -> Any:
    """The sum over one process."""
    return values


def kl_terms(logps_BT: Any, ref_logps_BT: Any, estimator: str) -> Any:
    """Estimates of KL(policy || reference) per token, from the token that was sampled; (B, T).

    Args:
        logps_BT: log-probabilities under the policy that sampled.
        ref_logps_BT: under the reference.
        estimator: `k1`, log pi - log pi_ref, unbiased and of either sign; `k3`, exp(-D) - 1 + D with D = k1, unbiased
            and never negative (Schulman 2020, "Approximating KL divergence").

    Raises:
        ValueError: another estimator.
    """
    difference = logps_BT - ref_logps_BT
    if estimator == "k1":
        return difference
    if estimator == "k3":
        return (-difference).exp() - 1 + difference
    raise ValueError(f"unknown KL estimator {estimator}")


def shaped_rewards(scores_B: Any, kl_BT: Any, mask_BT: Any, kl_coef: float) -> Any:
    """Rewards per token, (B, T): -kl_coef KL_t, and the score added at the last token of each completion.

    A completion without a token that counts has no reward.
    """
    import torch

    rewards_BT = -kl_coef * kl_BT * mask_BT
    lengths = mask_BT.sum(-1).long()
    last = torch.nn.functional.one_hot((lengths - 1).clamp(min=0), mask_BT.shape[1]).to(rewards_BT.dtype)
    return rewards_BT + last * mask_BT * scores_B.unsqueeze(1)


def gae(rewards_BT: Any, values_BT: Any, mask_BT: Any, *, gamma: float, lam: float) -> tuple[Any, Any]:
    """Advantages and returns, both (B, T) and 0 outside the mask.

    Args:
        rewards_BT: rewards per token.
        values_BT: value of the text before each token.
        mask_BT: 1 for the tokens that count.
        gamma: discount, in [0, 1].
        lam: weight of longer estimates, in [0, 1]; 1 gives the Monte Carlo return, 0 one step.
    """
    import torch

    mask_BT = mask_BT.to(values_BT.dtype)
    values_BT, rewards_BT = values_BT * mask_BT, rewards_BT * mask_BT
    running, following, columns = torch.zeros_like(values_BT[:, 0]), torch.zeros_like(values_BT[:, 0]), []
    for t in reversed(range(values_BT.shape[1])):
        delta = rewards_BT[:, t] + gamma * following - values_BT[:, t]
        running = (delta + gamma * lam * running) * mask_BT[:, t]
        following = values_BT[:, t]
        columns.append(running)
    advantages_BT = torch.stack(columns[::-1], dim=1)
    return advantages_BT, advantages_BT + values_BT


def moments(values_BT: Any, mask_BT: Any, reduce: Reduce = alone) -> tuple[Any, Any]:
    """Mean and population variance of the values that count, over all processes; 0-d."""
    count = reduce(mask_BT.sum().to(values_BT.dtype)).clamp(min=1.0)
    mean = reduce((values_BT * mask_BT).sum()) / count
    return mean, reduce(((values_BT - mean) ** 2 * mask_BT).sum()) / count


def whiten(values_BT: Any, mask_BT: Any, *, shift_mean: bool = True, reduce: Reduce = alone) -> Any:
    """Values with variance 1 and, with `shift_mean`, mean 0 over the tokens that count; 0 elsewhere; (B, T)."""
    mean, variance = moments(values_BT, mask_BT, reduce)
    scaled = (values_BT - mean) * (variance + 1e-8).rsqrt()
    return (scaled if shift_mean else scaled + mean) * mask_BT


def value_loss(values_BT: Any, old_values_BT: Any, returns_BT: Any, clip: float | None) -> Any:
    """Half the squared error per token, (B, T), and no smaller than that of the value kept within `clip` of the old.

    Args:
        values_BT: values of the model that learns, with gradient.
        old_values_BT: values when the completions were sampled.
        returns_BT: what is regressed on.
        clip: the largest change that is rewarded; None takes the plain squared error.
    """
    import torch

    error_BT = (values_BT - returns_BT) ** 2
    if clip is None:
        return 0.5 * error_BT
    kept_BT = old_values_BT + (values_BT - old_values_BT).clamp(-clip, clip)
    return 0.5 * torch.maximum(error_BT, (kept_BT - returns_BT) ** 2)


def explained_variance(values_BT: Any, returns_BT: Any, mask_BT: Any, reduce: Reduce = alone) -> float | None:
    """1 - Var(returns - values) / Var(returns): 1 is a perfect value model, 0 one that knows only the mean.

    None where the returns do not vary.
    """
    _, total = moments(returns_BT, mask_BT, reduce)
    _, left = moments(returns_BT - values_BT, mask_BT, reduce)
    return float(1 - left / total) if float(total) > 0 else None


def adapted(kl_coef: float, kl: float, *, target: float, episodes: int, horizon: int) -> float:
    """The next KL coefficient: k (1 + clip(kl / target - 1, -0.2, 0.2) episodes / horizon).

    Args:
        kl_coef: the present one.
        kl: mean KL of a completion, its tokens summed.
        target: the KL that is aimed at, > 0.
        episodes: completions since the last change.
        horizon: completions over which a full error of 0.2 changes the coefficient by 20%.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * episodes / horizon)


def update_statistics(logps_BT: Any, old_logps_BT: Any, mask_BT: Any, epsilon: float) -> Any:
    """Sums over the tokens that count, as a tensor (4,): their number, the ratio, the approximate KL and the clips.

    The approximate KL between the policy that sampled and the present one is r - 1 - log r (k3 of the ratio r); a token
    counts as clipped where |r - 1| > `epsilon`.
    """
    import torch

    log_ratio = (logps_BT - old_logps_BT) * mask_BT
    ratio = log_ratio.exp()
    clipped = ((ratio - 1).abs() > epsilon).to(ratio.dtype)
    parts = (mask_BT.to(ratio.dtype), ratio, ratio - 1 - log_ratio, clipped)
    return torch.stack([(part * mask_BT).sum() for part in parts])
