"""The losses that TRL computes for our settings, on fixed rollouts in float64, against the papers' formulas.

Each reference is written from the formula alone. lp, old, ref: (B, T) log-probabilities of the policy, the policy that
sampled and the reference; A: (B, 1); m: the mask; G is one optimizer step of one micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import policy

MAX = 12
"""`generation.max_completion_length` of these runs."""


def surrogate(ratio: Any, A: Any, low: float, high: float) -> Any:
    import torch

    return -torch.minimum(ratio * A, ratio.clamp(1 - low, 1 + high) * A)


def k3(lp: Any, ref: Any) -> Any:
    return (ref - lp).exp() - (ref - lp) - 1


def per_completion(L: Any, m: Any) -> Any:
    return ((L * m).sum(1) / m.sum(1)).mean()


def grpo(lp: Any, old: Any, ref: Any, A: Any, m: Any) -> Any:
    return per_completion(surrogate((lp - old).exp(), A, 0.2, 0.2) + 0.04 * k3(lp, ref), m)


def corrected(lp: Any, old: Any, ref: Any, A: Any, m: Any) -> Any:
    ratio = (lp - old).exp()
    return per_completion(surrogate(ratio, A, 0.2, 0.2) + 0.1 * ratio * k3(lp, ref), m)


def two_sided(lp: Any, old: Any, ref: Any, A: Any, m: Any) -> Any:
    import torch

    ratio = (lp - old).exp()
    return per_completion(-torch.minimum(ratio.clamp(max=1.5) * A, ratio.clamp(0.8, 1.2) * A), m)


def bnpo(lp: Any, old: Any, ref: Any, A: Any, m: Any) -> Any:
    return (surrogate((lp - old).exp(), A, 0.2, 0.2) * m).sum() / m.sum()


def dr_grpo(lp: Any, old: Any, ref: Any, A: Any, m: Any) -> Any:
    return (surrogate((lp - old).exp(), A, 0.2, 0.2) * m).sum() / (len(lp) * MAX)


def dapo(lp: Any, old: Any, ref: Any, A: Any, m: Any) -> Any:
    return (surrogate((lp - old).exp(), A, 0.2, 0.28) * m).sum() / m.sum()


def gspo(lp: Any, old: Any, ref: Any, A: Any, m: Any) -> Any:
    s = (((lp - old) * m).sum(1, keepdim=True) / m.sum(1, keepdim=True)).exp()
    return surrogate(s, A, 3e-4, 4e-4).mean()


def luspo(lp: Any, old: Any, ref: Any, A: Any, m: Any) -> Any:
    s = (((lp - old) * m).sum(1, keepdim=True) / m.sum(1, keepdim=True)).exp()
    return (surrogate(s, A, 0.2, 0.2) * m.sum(1, keepdim=True)).mean()


def cispo(lp: Any, old: Any, ref: Any, A: Any, m: Any) -> Any:
    return (-(lp - old).exp().clamp(max=1.3).detach() * A * lp * m).sum() / m.sum()


def sapo(lp: Any, old: Any, ref: Any, A: Any, m: Any) -> Any:
    import torch

    tau = torch.where(A > 0, 1.0, 1.05)
    return per_completion(-A * 4 / tau * torch.sigmoid(tau * ((lp - old).exp() - 1)), m)


def vespo(lp: Any, old: Any, ref: Any, A: Any, m: Any) -> Any:
    import torch

    w = ((lp - old) * m).sum(1, keepdim=True).exp()
    k, rate = torch.where(A >= 0, 2.0, 3.0), torch.where(A >= 0, 3.0, 2.0)
    weight = (rate + k * w.log() - rate * w).exp().detach()
    return (-weight * A * lp * m).sum() / m.sum()


def reinforce_pp(lp: Any, old: Any, ref: Any, A: Any, m: Any) -> Any:
    return per_completion(surrogate((lp - old).exp(), A, 0.2, 0.2) + 0.3 * (lp - ref) ** 2 / 2, m)


LOSSES: dict[str, tuple[str, dict[str, Any], Callable[..., Any]]] = {
    "grpo": ("grpo", {}, grpo),
    "grpo corrected": ("grpo", {"beta": 0.1, "use_bias_correction_kl": True}, corrected),
    "grpo two-sided": ("grpo", {"beta": 0, "delta": 1.5}, two_sided),
    "bnpo": ("grpo", {"beta": 0, "loss_type": "bnpo"}, bnpo),
    "luspo": ("grpo", {"beta": 0, "loss_type": "luspo", "importance_sampling_level": "sequence"}, luspo),
    "sapo": ("grpo", {"beta": 0, "loss_type": "sapo"}, sapo),
    "vespo": ("grpo", {"beta": 0, "loss_type": "vespo"}, vespo),
    "dr_grpo": ("dr_grpo", {}, dr_grpo),
    "dapo": ("dapo", {}, dapo),
    "gspo": ("gspo", {"steps_per_generation": 1}, gspo),
    "cispo": ("cispo", {"epsilon_high": 1.3}, cispo),
    "reinforce_pp": ("reinforce_pp", {"beta": 0.3}, reinforce_pp),
}
"""Case to algorithm, its parameters, and the formula. The drift of the batch makes ratios on both sides of every clip."""


@pytest.fixture(scope="module")
def trainers(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    made: dict[str, Any] = {}

    def trainer(case: str, micro: int = 8) -> Any:
        key = f"{case} {micro}"
        if key not in made:
            name, parameters, _ = LOSSES[case]
            changes = {f"algo__{k}": v for k, v in parameters.items()}
            batch = {"train__per_device_batch_size": micro, "train__gradient_accumulation_steps": 8 // micro}
            if parameters.get("steps_per_generation"):
                changes["algo__steps_per_generation"] = 8 // micro
            folder = tmp_path_factory.mktemp("losses")
            made[key] = policy.library_trainer(name, tiny_model, folder, **batch, **changes)
        return made[key]

    return trainer


@pytest.mark.parametrize("case", list(LOSSES))
@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_and_its_gradient_are_those_of_the_paper(case: str, seed: int, trainers: Any) -> None:
    hf = trainers(case)
    inputs = policy.rollout(hf, seed, drift=1e-3 if case == "gspo" else 0.3)
    loss = hf.compute_loss(hf.model, inputs)
    lp = policy.logps_of(hf, inputs)
    old, ref, A = inputs["old_per_token_logps"], inputs["ref_per_token_logps"], inputs["advantages"].unsqueeze(1)
    expected = LOSSES[case][2](lp, old, ref, A, inputs["completion_mask"])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6 if policy.exact() else 2e-5, abs=1e-9)
    assert policy.close(policy.gradients(hf, loss), policy.gradients(hf, expected), 1e-5)


SPLIT = {
    "bnpo": "its mean is over the tokens of one micro-batch",
}
"""Losses for which eight rows are not four times two, with the reason (docs/algorithms.md)."""


@pytest.mark.parametrize("case", list(LOSSES))
def test_eight_rows_equal_four_accumulated_twos(case: str, trainers: Any) -> None:
    whole, parts = trainers(case), trainers(case, 2)
    inputs = policy.rollout(whole, 3, drift=1e-3 if case == "gspo" else 0.3)
    expected = policy.gradients(whole, whole.compute_loss(whole.model, inputs))
    total = sum(parts.compute_loss(parts.model, policy.part(inputs, slice(i, i + 2))) for i in range(0, 8, 2))
    assert policy.close(policy.gradients(parts, total), expected, 1e-5) is (case not in SPLIT)


def test_rloo_has_the_gradient_of_reinforce_on_whole_completions(tiny_model: Path, tmp_path: Path) -> None:
    hf = policy.library_trainer("rloo", tiny_model, tmp_path, train__per_device_batch_size=8, algo__beta=0.0)
    inputs = policy.rollout(hf)
    inputs.pop("old_per_token_logps")  # as on policy
    loss = hf.compute_loss(hf.model, inputs)
    lp, m = policy.logps_of(hf, inputs), inputs["completion_mask"]
    expected = (-inputs["advantages"] * (lp * m).sum(1)).mean()
    assert policy.close(policy.gradients(hf, loss), policy.gradients(hf, expected), 1e-5)


def test_rloo_takes_the_divergence_of_whole_completions_off_the_reward(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    from aligntune.algorithms.rloo import leave_one_out

    hf = policy.library_trainer("rloo", tiny_model, tmp_path, train__per_device_batch_size=8, algo__beta=0.3)
    inputs = policy.rollout(hf)
    ref, m = inputs["ref_per_token_logps"], inputs["completion_mask"]
    rewards = torch.randn(8, 1, dtype=torch.float64)
    with torch.no_grad():
        lp = policy.logps_of(hf, inputs)
    for old in (inputs.pop("old_per_token_logps"), None):  # stored by the library, or computed here
        given = {**inputs, "old_per_token_logps": old} if old is not None else inputs
        kl = (((lp if old is None else old) - ref) * m).sum(1)
        expected = leave_one_out(rewards[:, 0] - 0.3 * kl, 4)
        assert torch.allclose(hf.plugin.advantages(rewards, given), expected, atol=1e-5)
    assert hf.beta == 0.3  # a reference is kept
    loss = hf.compute_loss(hf.model, inputs)
    plain = (-inputs["advantages"] * m.sum(1)).mean()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)  # and is not in the loss


def test_finite_differences_of_the_dapo_loss(trainers: Any) -> None:
    """Away from the clip's corners, the gradient is the slope."""
    import torch

    hf = trainers("dapo")
    inputs = policy.rollout(hf, 4)
    weight = hf.model.model.norm.weight
    loss = hf.compute_loss(hf.model, inputs)
    (gradient,) = torch.autograd.grad(loss, [weight])
    step, near = (1e-6, 1e-5) if policy.exact() else (3e-3, 2e-4)
    for i in (0, 7, 21):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                weight[i] += sign * step
                values.append(hf.compute_loss(hf.model, inputs).item())
                weight[i] -= sign * step
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(gradient[i].item(), rel=1e-2, abs=near)


@pytest.mark.parametrize("option", [{"algo__entropy_coef": 0.5}, {"algo__top_entropy_quantile": 0.5}])
def test_terms_that_are_means_of_one_micro_batch_do_depend_on_its_size(
    option: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    found = []
    for micro in (8, 2):
        batch = {"train__per_device_batch_size": micro, "train__gradient_accumulation_steps": 8 // micro}
        hf = policy.library_trainer("dapo", tiny_model, tmp_path / str(micro), **batch, **option)
        inputs = policy.rollout(hf, 3)
        starts = range(0, 8, micro)
        loss = sum(hf.compute_loss(hf.model, policy.part(inputs, slice(i, i + micro))) for i in starts)
        found.append(policy.gradients(hf, loss))
    assert not policy.close(found[0], found[1], 1e-5)
