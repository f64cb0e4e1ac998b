"""PPO: every formula against a plain one in float64, and what the plugin makes of a rollout and of an update."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import helpers
import runs
from aligntune.algorithms import ppo_losses as maths
from aligntune.algorithms.ppo import PPO, PPOPlugin
from aligntune.core.arguments import trainer_arguments
from aligntune.core.config import build_config
from aligntune.errors import ConfigurationError, TrainingError, ValidationError

LENGTHS = (5, 1, 3, 0)


def plain(folder: Path, **changes: Any) -> dict[str, Any]:
    """A small PPO run on the tiny model's rows."""
    return runs.plain("grpo", Path("model"), folder, algo={"name": "ppo"}, **changes)


def random(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prefix_mask(lengths: tuple[int, ...] = LENGTHS, size: int = 5) -> Any:
    return (torch.arange(size) < torch.tensor(lengths).unsqueeze(1)).double()


# ---- the formulas ------------------------------------------------------------------------------------------------


def gae_by_definition(r: Any, v: Any, n: int, gamma: float, lam: float) -> list[float]:
    """The sum of (gamma lam)^l d_(t+l), each written out."""
    d = [float(r[t]) + gamma * (float(v[t + 1]) if t + 1 < n else 0.0) - float(v[t]) for t in range(n)]
    return [sum((gamma * lam) ** (u - t) * d[u] for u in range(t, n)) for t in range(n)]


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_advantages_are_the_discounted_sums_of_the_temporal_differences(gamma: float, lam: float) -> None:
    rewards, values, mask = random(4, 5), random(4, 5, seed=1), prefix_mask()
    advantages, returns = maths.gae(rewards, values, mask, gamma=gamma, lam=lam)
    for row, n in enumerate(LENGTHS):
        expected = gae_by_definition(rewards[row], values[row], n, gamma, lam)
        assert advantages[row, :n].tolist() == pytest.approx(expected, abs=1e-12)
        assert not advantages[row, n:].any()
        assert not returns[row, n:].any()
    assert torch.allclose(returns, advantages + values * mask)


def test_the_extremes_of_lambda_are_one_step_and_the_whole_return() -> None:
    rewards, values, mask = random(3, 5), random(3, 5, seed=1), torch.ones(3, 5).double()
    whole, _ = maths.gae(rewards, values, mask, gamma=1.0, lam=1.0)
    assert torch.allclose(whole, rewards.flip(1).cumsum(1).flip(1) - values)
    one, _ = maths.gae(rewards, values, mask, gamma=1.0, lam=0.0)
    following = torch.cat([values[:, 1:], torch.zeros(3, 1).double()], dim=1)
    assert torch.allclose(one, rewards + following - values)


def test_what_stands_behind_a_completion_changes_nothing() -> None:
    rewards, values, mask = random(4, 5), random(4, 5, seed=1), prefix_mask()
    noise = 100 * (1 - mask)
    a = maths.gae(rewards, values, mask, gamma=1.0, lam=0.95)
    b = maths.gae(rewards + noise, values - noise, mask, gamma=1.0, lam=0.95)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])


def test_the_worked_example() -> None:
    """Two tokens, as in the module's docstring."""
    kl, mask = torch.tensor([[0.2, -0.1]]).double(), torch.ones(1, 2).double()
    shaped = maths.shaped_rewards(torch.tensor([1.0]).double(), kl, mask, 0.05)
    assert shaped.tolist() == [pytest.approx([-0.01, 1.005])]
    advantages, returns = maths.gae(shaped, torch.full((1, 2), 0.5).double(), mask, gamma=1.0, lam=0.95)
    assert advantages.tolist() == [pytest.approx([0.46975, 0.505])]
    assert returns.tolist() == [pytest.approx([0.96975, 1.005])]


def test_the_score_stands_at_the_last_token_and_the_penalty_at_each() -> None:
    kl, mask = random(4, 5), prefix_mask()
    shaped = maths.shaped_rewards(torch.tensor([1.0, 2.0, 3.0, 4.0]).double(), kl, mask, 0.1)
    for row, n in enumerate(LENGTHS):
        expected = [-0.1 * float(kl[row, t]) + (row + 1.0) * (t == n - 1) for t in range(n)]
        assert shaped[row].tolist() == pytest.approx(expected + [0.0] * (5 - n))


def test_kl_estimators() -> None:
    """k1 is the difference, k3 is never negative, and both have the exact KL as their mean."""
    policy, reference = random(7).log_softmax(0), random(7, seed=1).log_softmax(0)
    exact = (policy.exp() * (policy - reference)).sum()
    for name in ("k1", "k3"):
        terms = maths.kl_terms(policy, reference, name)
        assert float((policy.exp() * terms).sum()) == pytest.approx(float(exact))
    difference = policy - reference
    assert torch.equal(maths.kl_terms(policy, reference, "k1"), difference)
    k3 = maths.kl_terms(policy, reference, "k3")
    assert k3.tolist() == pytest.approx([math.exp(-d) - 1 + d for d in difference.tolist()])
    assert (k3 >= 0).all()
    assert not maths.kl_terms(policy, policy, "k3").any()
    with pytest.raises(ValueError, match="k7"):
        maths.kl_terms(policy, reference, "k7")


def test_whitening_counts_the_tokens_inside_alone() -> None:
    values, mask = random(4, 5), prefix_mask()
    inside = values[mask.bool()]
    white = maths.whiten(values, mask)
    expected = (inside - inside.mean()) / torch.sqrt(inside.var(unbiased=False) + 1e-8)
    assert torch.allclose(white[mask.bool()], expected)
    assert not white[~mask.bool()].any()
    kept = maths.whiten(values, mask, shift_mean=False)[mask.bool()]
    assert float(kept.mean()) == pytest.approx(float(inside.mean()))
    assert float(kept.var(unbiased=False)) == pytest.approx(1, abs=1e-6)
    assert not maths.whiten(torch.full((1, 3), 2.0), torch.ones(1, 3)).any()


def test_two_processes_whiten_as_one() -> None:
    values, mask = random(4, 5), prefix_mask()
    parts = [(values[:2], mask[:2]), (values[2:], mask[2:])]
    whole_mean, whole_variance = maths.moments(values, mask)
    sums = iter([mask.sum(), (values * mask).sum(), ((values - whole_mean) ** 2 * mask).sum()] * 2)
    joined = torch.cat([maths.whiten(v, m, reduce=lambda _: next(sums)) for v, m in parts])
    assert torch.allclose(joined, maths.whiten(values, mask))
    assert float(whole_variance) == pytest.approx(float(values[mask.bool()].var(unbiased=False)))


@pytest.mark.parametrize("clip", [0.2, None])
def test_the_value_loss_and_its_gradient(clip: float | None) -> None:
    values, old, returns = random(4, 5).requires_grad_(), random(4, 5, seed=1), random(4, 5, seed=2)
    loss = maths.value_loss(values, old, returns, clip)
    for i in range(4):
        for j in range(5):
            v, o, r = (x[i, j].item() for x in (values, old, returns))
            kept = v if clip is None else min(max(v, o - clip), o + clip)
            assert loss[i, j].item() == pytest.approx(0.5 * max((v - r) ** 2, (kept - r) ** 2))
    assert torch.autograd.gradcheck(lambda x: maths.value_loss(x, old, returns, clip), values)


def test_the_value_loss_by_hand() -> None:
    """From 0 to 0.5 with the return 1: the clipped value 0.2 has the larger error, 0.64 / 2, and no gradient."""
    values = torch.tensor([[0.5, 0.1]], requires_grad=True)
    loss = maths.value_loss(values, torch.zeros(1, 2), torch.ones(1, 2), 0.2)
    assert loss.tolist() == [pytest.approx([0.32, 0.405])]
    loss.sum().backward()
    assert values.grad.tolist() == [pytest.approx([0.0, -0.9])]


def test_explained_variance() -> None:
    returns, mask = random(4, 5), prefix_mask()
    assert maths.explained_variance(returns, returns, mask) == pytest.approx(1)
    assert maths.explained_variance(torch.full_like(returns, 3.0), returns, mask) == pytest.approx(0)
    half = maths.explained_variance(returns / 2, returns, mask)
    assert half == pytest.approx(0.75)
    assert maths.explained_variance(returns, torch.ones_like(returns), mask) is None


@pytest.mark.parametrize(
    ("kl", "factor"), [(6.0, 1.0), (6.6, 1.01), (5.4, 0.99), (60.0, 1.02), (0.0, 0.98), (-5.0, 0.98)]
)
def test_the_adaptive_coefficient(kl: float, factor: float) -> None:
    """100 completions of a horizon of 1000: a tenth of the error, which is clipped at 0.2."""
    assert maths.adapted(0.05, kl, target=6.0, episodes=100, horizon=1000) == pytest.approx(0.05 * factor)


def test_the_adaptive_coefficient_finds_the_target() -> None:
    """Where the KL falls as 1 / coefficient, the coefficient settles at the target."""
    coefficient = 1.0
    for _ in range(2000):
        coefficient = maths.adapted(coefficient, 3 / coefficient, target=6.0, episodes=64, horizon=1000)
    assert 3 / coefficient == pytest.approx(6.0, rel=1e-3)


def test_update_statistics() -> None:
    logps, old, mask = random(4, 5) / 3, random(4, 5, seed=1) / 3, prefix_mask()
    count, ratio, kl, clipped = maths.update_statistics(logps, old, mask, 0.2).tolist()
    inside = [math.exp(d) for d in (logps - old)[mask.bool()].tolist()]
    assert count == len(inside) == sum(LENGTHS)
    assert ratio == pytest.approx(sum(inside))
    assert kl == pytest.approx(sum(r - 1 - math.log(r) for r in inside))
    assert clipped == sum(abs(r - 1) > 0.2 for r in inside)


# ---- the plugin --------------------------------------------------------------------------------------------------


class Still:
    """A value model that gives the same values for every batch."""

    def of(self, batch: Any) -> Any:
        return random(*batch["completion_ids"].shape, seed=7).float()


def trainer_of(**args: Any) -> Any:
    """What the plugin asks of the library's trainer, in one process."""
    options = {"gradient_accumulation_steps": 1, "steps_per_generation": 1, "max_grad_norm": 1.0, **args}
    metrics: dict[str, list[float]] = {}
    return SimpleNamespace(
        args=SimpleNamespace(**options),
        accelerator=SimpleNamespace(
            reduce=lambda x, reduction: x,
            num_processes=1,
            process_index=0,
            sync_gradients=True,
            unwrap_model=lambda m: m,
        ),
        model=SimpleNamespace(training=True, generation_config=SimpleNamespace(eos_token_id=[2, 9])),
        processing_class=SimpleNamespace(eos_token_id=2, pad_token_id=0),
        reward_weights=torch.ones(1),
        num_iterations=2,
        _step=0,
        _metrics={"train": type("M", (dict,), {"__missing__": lambda s, k: s.setdefault(k, [])})(metrics)},
    )


def plugin_of(**params: Any) -> PPOPlugin:
    made = PPOPlugin(PPO(**params))
    made.trainer, made.value = trainer_of(), Still()
    return made


def rollout_of() -> dict[str, Any]:
    """Four completions: one ends with the id 2, one with 9, one is cut off, one is empty."""
    ids = torch.full((4, 5), 4)
    ids[0, 4], ids[1, 0] = 2, 9
    mask = prefix_mask().long()
    return {
        "prompt_ids": torch.full((4, 2), 5),
        "prompt_mask": torch.ones(4, 2).long(),
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": torch.zeros(4),
        "old_per_token_logps": -random(4, 5, seed=3).abs().float(),
        "ref_per_token_logps": -random(4, 5, seed=4).abs().float(),
        "num_items_in_batch": mask.sum(),
    }


SCORES = torch.tensor([[1.0], [0.5], [2.0], [0.0]])


def test_the_advantages_of_a_rollout() -> None:
    """From the scores to the whitened advantages, in plain steps."""
    made, out = plugin_of(), rollout_of()
    advantages = made.advantages(SCORES, out)
    scores = [1.0, 0.5, 2.0 - 1.0, 0.0]  # the third was cut off
    raw = []
    for row, n in enumerate(LENGTHS):
        kl = out["old_per_token_logps"][row] - out["ref_per_token_logps"][row]
        rewards = [-0.05 * float(kl[t]) + scores[row] * (t == n - 1) for t in range(n)]
        values = Still().of(out)[row]
        expected = gae_by_definition(rewards, values, n, 1.0, 0.95)
        raw += expected
        returns = [a + float(v) for a, v in zip(expected, values, strict=False)]
        assert out["returns"][row, :n].tolist() == pytest.approx(returns, abs=1e-6)
    mean = sum(raw) / len(raw)
    deviation = math.sqrt(sum((a - mean) ** 2 for a in raw) / len(raw) + 1e-8)
    inside = advantages[out["completion_mask"].bool()].tolist()
    assert inside == pytest.approx([(a - mean) / deviation for a in raw], abs=1e-5)
    logged = made.trainer._metrics["train"]
    assert logged["ppo/cut_off"] == [0.25]
    assert logged["ppo/kl_coef"] == [0.05]


def test_a_completion_without_a_score_is_left_out() -> None:
    made, out = plugin_of(), rollout_of()
    advantages = made.advantages(torch.tensor([[1.0], [0.5], [float("nan")], [0.0]]), out)
    assert out["completion_mask"].sum(1).tolist() == [5, 1, 0, 0]
    assert not advantages[2].any()
    assert torch.isfinite(advantages).all()
    assert torch.isfinite(out["returns"]).all()


@pytest.mark.parametrize(
    "changes",
    [
        {"kl_coef": 0.5},
        {"kl_estimator": "k3"},
        {"gamma": 0.5},
        {"lam": 0.5},
        {"whiten_advantages": False},
        {"whiten_rewards": True},
        {"missing_eos_penalty": 0.0},
    ],
    ids=lambda c: next(iter(c)),
)
def test_a_parameter_of_the_rollout_changes_its_advantages(changes: dict[str, Any]) -> None:
    usual, other = plugin_of().advantages(SCORES, rollout_of()), plugin_of(**changes).advantages(SCORES, rollout_of())
    assert torch.isfinite(other).all()
    assert not torch.allclose(usual, other, atol=1e-3)


def test_the_coefficient_adapts_in_training_alone() -> None:
    made = plugin_of(target_kl=0.001, kl_horizon=10)
    made.trainer._metrics["eval"] = made.trainer._metrics["train"]
    out = rollout_of()
    kl = float(((out["old_per_token_logps"] - out["ref_per_token_logps"]) * out["completion_mask"]).sum(1).mean())
    made.advantages(SCORES, out)
    assert made.kl_coef == pytest.approx(maths.adapted(0.05, kl, target=0.001, episodes=4, horizon=10))
    assert made.kl_coef != 0.05
    before = made.kl_coef
    made.trainer.model.training = False
    made.advantages(SCORES, rollout_of())
    assert made.kl_coef == before


def test_without_a_penalty_no_reference_is_needed() -> None:
    out = rollout_of()
    del out["ref_per_token_logps"]
    made = plugin_of(kl_coef=0.0)
    assert torch.isfinite(made.advantages(SCORES, out)).all()
    assert made.loss_beta is None
    with pytest.raises(TrainingError, match="reference"):
        plugin_of().advantages(SCORES, out)
    assert plugin_of().loss_beta == 0.0


def micro_batches(tokens: list[int]) -> list[dict[str, Any]]:
    masks = [(torch.arange(6) < n).long().unsqueeze(0) for n in tokens]
    return [{"completion_mask": m, "row": torch.tensor([i]), "all": torch.tensor(9)} for i, m in enumerate(masks)]


def test_the_normaliser_is_the_tokens_of_the_minibatch() -> None:
    """Two minibatches of two micro-batches: TRL divides by it, times accumulation over steps per generation."""
    made = plugin_of(num_mini_batches=2)
    made.trainer.args.gradient_accumulation_steps, made.trainer.args.steps_per_generation = 2, 4
    made.trainer._buffered_inputs = micro_batches([1, 2, 3, 6])
    seen = []
    for step in range(8):
        made.trainer._step = step
        inputs = made.micro_batch(made.trainer._buffered_inputs[step % 4])
        seen.append(float(inputs["num_items_in_batch"]) * 2 / 4)
    assert seen == [3, 3, 9, 9] * 2


def test_each_pass_cuts_the_rollout_anew() -> None:
    made = plugin_of(num_mini_batches=4)
    made.trainer.args.steps_per_generation, made.trainer.num_iterations = 4, 2
    made.trainer._buffered_inputs = before = micro_batches([1, 2, 3, 6])
    torch.manual_seed(1)
    made.trainer._step = 3
    made._next_pass()
    assert made.trainer._buffered_inputs is before
    made.trainer._step = 4
    made._next_pass()
    after = made.trainer._buffered_inputs
    order = [int(b["row"]) for b in after]
    assert sorted(order) == [0, 1, 2, 3] != order
    assert [int(b["completion_mask"].sum()) for b in after] == [[1, 2, 3, 6][i] for i in order]
    assert all(int(b["all"]) == 9 for b in after)
    made.trainer._step = 8
    made._next_pass()
    assert made.trainer._buffered_inputs is after


def test_an_early_stop_lasts_to_the_end_of_the_rollout_and_is_counted() -> None:
    made = plugin_of(early_stop_kl=0.1)
    made.value = torch.nn.Linear(1, 1)
    skipped = []
    for step, kl in enumerate([0.05, 0.2, 0.05, 0.05, 0.05, 0.05]):
        made.trainer._step = step + 1
        made.trainer.num_iterations = 4
        made._sums = torch.tensor([2.0, 2.0, 2 * kl, 0.0, 1.0])
        skipped.append(made.skip_update())
    assert skipped == [False, True, True, True, False, False]
    logged = made.trainer._metrics["train"]
    assert made.skipped == 3 == logged["ppo/skipped_so_far"][-1]
    assert logged["ppo/skipped"] == [0, 1, 1, 1, 0, 0]
    assert logged["ppo/approx_kl"] == pytest.approx([0.05, 0.2, 0.05, 0.05, 0.05, 0.05])


def test_gradients_of_the_value_model_are_clipped_by_their_own_norm() -> None:
    made = plugin_of()
    made.value = torch.nn.Linear(2, 1, bias=False)
    made.value.weight.grad = torch.tensor([[3.0, 4.0]])
    made._join_gradients()
    assert made.value.weight.grad.tolist() == [pytest.approx([0.6, 0.8], abs=1e-5)]
    assert made.trainer._metrics["train"]["ppo/value_grad_norm"] == [5.0]


def test_state_goes_there_and_back() -> None:
    a, b = plugin_of(target_kl=1.0), plugin_of(target_kl=1.0)
    a.value, b.value = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
    a.kl_coef, a.skipped = 0.1 + 0.2, 4
    b.load_state(a.state())
    assert (b.kl_coef, b.skipped) == (a.kl_coef, 4)
    assert torch.equal(a.value.weight, b.value.weight)
    assert json.loads(json.dumps(a.kl_coef)) == a.kl_coef


# ---- the configuration -------------------------------------------------------------------------------------------


def sent(folder: Path, **changes: Any) -> dict[str, Any]:
    config = build_config(plain(folder, **changes))
    values = trainer_arguments(config, device="cpu", precision="fp32", output_dir="out")
    return {**values, **config.algorithm.late_arguments(config)}


def test_what_is_sent(tmp_path: Path) -> None:
    values = sent(tmp_path, train__gradient_accumulation_steps=2, algo__num_mini_batches=3, algo__kl_coef=0.1)
    expected = {
        "beta": 0.1, "epsilon": 0.2, "epsilon_high": 0.2, "loss_type": "dapo", "num_generations": 1,
        "num_iterations": 4, "steps_per_generation": 6, "disable_dropout": True, "scale_rewards": "none",
        "importance_sampling_level": "token", "learning_rate": 1e-3,
    }  # fmt: skip
    assert expected.items() <= values.items()
    assert sent(tmp_path, algo__num_generations=2)["num_generations"] == 2
    assert sent(tmp_path, algo__kl_coef=0)["beta"] == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train__per_device_batch_size": 1}, "rollout of one completion"),
        ({"algo__num_generations": 3}, "does not divide"),
        ({"train__save_steps": 2}, "inside a generation window"),
        ({"algo__task_column": "kind"}, "needs algo.task_weights"),
        ({"algo__task_weights": {"a": {"x": 1.0}}}, "needs algo.task_column"),
        ({"algo__kl_coef": 0, "algo__target_kl": 6.0}, "target_kl: has no effect"),
        ({"algo__kl_horizon": 10}, "kl_horizon: has no effect"),
        ({"algo__value_model": "shared", "algo__value_model_path": "x"}, "value_model_path: has no effect"),
        ({"algo__num_ppo_epochs": 1, "algo__epsilon": 0.1}, "epsilon: has no effect"),
        ({"model__quantization": "4bit", "model__peft": {"r": 4}}, "set it to shared"),
        ({"rewards": []}, "needs at least one"),
        ({"algo__beta": 0.1}, "beta"),
        ({"algo__loss_type": "grpo"}, "loss_type"),
        ({"algo__lam": 1.5}, "less than or equal to 1"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build_config(plain(tmp_path, **changes))
    assert words in f"{caught.value.message} {caught.value.hint}"


# ---- rewards by task ---------------------------------------------------------------------------------------------


def two_rewards() -> Any:
    from aligntune.rewards import CompositeReward
    from aligntune.rewards.base import reward_class

    first = reward_class(lambda text, **columns: float(len(text)), "first")()
    second = reward_class(lambda text, **columns: 1.0 if text else None, "second")()
    return CompositeReward([first, second], [1.0, 0.5])


def by_task(**weights: dict[str, float]) -> Any:
    return PPO(task_column="kind", task_weights=weights).rewards(two_rewards())


def test_the_weights_follow_the_task_of_the_row() -> None:
    made = by_task(sums={"first": 3.0}, words={"first": 0.0, "second": 2.0})
    scores = made.score_batch(["ab", "ab", "ab", ""], {"kind": ["sums", "words", "other", "sums"]})
    assert scores.total == [3 * 2 + 0.5, 2.0, 2 + 0.5, None]
    assert scores.stats["rows_dropped"] == 1
    assert "rewards/first/mean" in made.summary(scores)
    assert not any(k.endswith("share") for k in made.summary(scores))
    assert PPO().rewards(made) is made


def test_wrong_tables_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="no reward 'fist'"):
        by_task(sums={"fist": 1.0})
    made = by_task(sums={"first": 1.0})
    with pytest.raises(ValidationError, match="needs the column 'kind'"):
        made.score_batch(["a"], {})
    with pytest.raises(ConfigurationError, match="no row has the task 'sums'"):
        made.check_tasks({"words"})
    assert made.check_tasks({"sums", "words"}) == ["rows of the tasks words take the rewards' own weights"]


# ---- the value model ---------------------------------------------------------------------------------------------


def value_of(folder: Path, kind: str, path: Any = None, **changes: Any) -> tuple[Any, Any]:
    """A value model and the policy it belongs to."""
    from accelerate import Accelerator
    from transformers import AutoModelForCausalLM

    from aligntune.core.rl.value import build_value
    from aligntune.utils.model_loader import ModelLoader

    config = build_config({**plain(folder, **changes)})
    policy = AutoModelForCausalLM.from_pretrained(path or changes["model__name_or_path"])
    if config.model.peft:
        policy = ModelLoader(config.model, training=True, seed=0).load().model
    hf = SimpleNamespace(
        accelerator=Accelerator(cpu=True), model=policy, args=SimpleNamespace(per_device_train_batch_size=3)
    )
    return build_value(hf, config, kind=kind, path=None if path is None else str(path)), policy


def batch_of(seed: int = 0) -> dict[str, Any]:
    ids = torch.randint(3, 200, (4, 9), generator=torch.Generator().manual_seed(seed))
    prompt, completion = ids[:, :4], ids[:, 4:]
    ones = torch.ones_like(ids)
    return {
        "prompt_ids": prompt, "completion_ids": completion, "prompt_mask": ones[:, :4], "completion_mask": ones[:, 4:]
    }  # fmt: skip


def test_a_copied_value_model_starts_at_zero_and_is_the_policys_trunk(tiny_model: Path, tmp_path: Path) -> None:
    value, policy = value_of(tmp_path, "separate", model__name_or_path=str(tiny_model))
    batch = batch_of()
    assert value.of(batch).shape == (4, 5)
    assert not value.of(batch).any()
    torch.nn.init.ones_(value.score.weight)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    hidden = policy.model(input_ids=ids).last_hidden_state
    assert torch.allclose(value.of(batch), hidden[:, 3:8].sum(-1), atol=1e-5)
    assert torch.allclose(value.learning(batch), value.of(batch), atol=1e-6)
    shared = {p.data_ptr() for p in policy.parameters()} & {p.data_ptr() for p in value.parameters()}
    assert not shared


def test_a_value_knows_only_what_stands_before_its_token(tiny_model: Path, tmp_path: Path) -> None:
    value, _ = value_of(tmp_path, "separate", model__name_or_path=str(tiny_model))
    torch.nn.init.ones_(value.score.weight)
    a, b = batch_of(), batch_of()
    b["completion_ids"] = b["completion_ids"].clone()
    b["completion_ids"][:, 2] += 1
    same = torch.isclose(value.of(a), value.of(b), atol=1e-6).all(0)
    assert same.tolist() == [True, True, True, False, False]


def test_a_shared_value_model_is_one_head(tiny_model: Path, tmp_path: Path) -> None:
    value, policy = value_of(tmp_path, "shared", model__name_or_path=str(tiny_model))
    assert [n for n, _ in value.named_parameters()] == ["score.weight"]
    batch = batch_of()
    with pytest.raises(TrainingError, match="hidden states") as caught:
        value.learning(batch)
    assert "separate" in caught.value.hint
    torch.nn.init.ones_(value.score.weight)
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    policy(input_ids=ids)  # the forward pass of the policy loss
    values = value.learning(batch)
    assert torch.allclose(values, value.of(batch), atol=1e-6)
    values.sum().backward()
    assert policy.model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0


def test_adapters_of_the_value_model_alone_are_trained(tiny_model: Path, tmp_path: Path) -> None:
    peft = {"r": 4, "alpha": 8}
    value, _ = value_of(tmp_path, "separate", model__name_or_path=str(tiny_model), model__peft=peft)
    trained = [n for n, p in value.named_parameters() if p.requires_grad]
    assert "score.weight" in trained
    assert all("lora_" in n for n in trained if n != "score.weight")
    assert len(trained) > 4


def reward_model(folder: Path, **changes: Any) -> Path:
    """A tiny sequence classifier with the tokenizer of the tiny model."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = helpers.byte_tokenizer()
    shape = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "num_labels": 1, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    torch.manual_seed(5)
    LlamaForSequenceClassification(LlamaConfig(**{**shape, **changes})).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_it_starts_from_a_reward_model_with_its_head(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    from aligntune.core.rl.value import load_reward_trunk

    folder = reward_model(tmp_path / "rm")
    trunk, head = load_reward_trunk(str(folder))
    judge = AutoModelForSequenceClassification.from_pretrained(folder)
    ids = torch.randint(3, 200, (2, 6))
    score = judge(input_ids=ids).logits[:, 0]
    assert torch.allclose((trunk(input_ids=ids)[0][:, -1] @ head.T)[:, 0], score, atol=1e-6)
    for bad, words in ((tiny_model, "no reward model"), (reward_model(tmp_path / "two", num_labels=2), "one output")):
        with pytest.raises(ConfigurationError, match=words):
            load_reward_trunk(str(bad))


def test_other_families_are_refused_with_the_fix(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from aligntune.core.rl.value import check_family

    folder = reward_model(tmp_path / "rm")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    check_family(str(folder), tokenizer)
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(ConfigurationError, match="chat template") as caught:
        check_family(str(folder), tokenizer)
    assert "model.chat_template" in caught.value.hint
    tokenizer.add_tokens(["new"])
    with pytest.raises(ConfigurationError, match="tokenizer") as caught:
        check_family(str(folder), tokenizer)
    assert "as a reward instead" in caught.value.hint


def test_a_saved_value_model_loads_again(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from aligntune.core.rl.value import load_reward_trunk, save_value

    value, _ = value_of(tmp_path, "separate", model__name_or_path=str(tiny_model))
    torch.nn.init.normal_(value.score.weight)
    save_value(value, tmp_path, AutoTokenizer.from_pretrained(tiny_model))
    trunk, head = load_reward_trunk(str(tmp_path / "value_model"))
    assert torch.equal(head, value.score.weight)
    ids = torch.randint(3, 200, (2, 6))
    assert torch.allclose(trunk(input_ids=ids)[0], value.trunk(input_ids=ids)[0])
    files = {p.suffix for p in (tmp_path / "value_model").iterdir()}
    assert not files & {".bin", ".pt", ".pth", ".pkl"}


def test_split_weights_are_refused() -> None:
    from aligntune.core.rl.value import build_value

    hf = SimpleNamespace(accelerator=SimpleNamespace(distributed_type=SimpleNamespace(value="FSDP")))
    with pytest.raises(ConfigurationError, match="FSDP") as caught:
        build_value(hf, None, kind="separate", path=None)
    assert "DDP" in caught.value.hint
