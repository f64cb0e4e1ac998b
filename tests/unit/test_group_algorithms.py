"""The group algorithms: what they send, what they refuse, and their own advantages and sampling against the formulas."""

from __future__ import annotations

import math
import random
import statistics
from pathlib import Path
from typing import Any

import pytest

import policy
import runs
from aligntune.algorithms.base import get_algorithm
from aligntune.core.arguments import trainer_arguments
from aligntune.core.config import build_config
from aligntune.errors import ConfigurationError

GROUP_ALGORITHMS = ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp"]


def config(name: str, folder: Path, **changes: Any) -> Any:
    """A small run; keys of `algo` are given as `algo__beta=0.1`."""
    raw = runs.plain("grpo", Path("model"), folder, algo={"name": name, "num_generations": 4})
    from aligntune.core.config.reading import set_key

    for key, value in changes.items():
        set_key(raw, key.replace("__", "."), value)
    return build_config(raw)


def sent(name: str, folder: Path, **changes: Any) -> dict[str, Any]:
    return trainer_arguments(config(name, folder, **changes), device="cpu", precision="fp32", output_dir="out")


def refusal(name: str, folder: Path, **changes: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        config(name, folder, **changes)
    return f"{caught.value.message}; {caught.value.hint}"


# ---- what is sent --------------------------------------------------------------------------------------------------

SENT = {
    "grpo": {"loss_type": "grpo", "scale_rewards": "group", "beta": 0.04, "epsilon": 0.2, "epsilon_high": 0.2},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.0, "epsilon": 0.2, "epsilon_high": 0.2},
    "dapo": {
        "loss_type": "dapo", "scale_rewards": "group", "beta": 0.0, "epsilon": 0.2, "epsilon_high": 0.28,
        "mask_truncated_completions": True,
    },
    "gspo": {
        "loss_type": "grpo", "importance_sampling_level": "sequence", "beta": 0.0, "epsilon": 3e-4,
        "epsilon_high": 4e-4, "steps_per_generation": 8,
    },
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0, "beta": 0.0, "importance_sampling_level": "token"},
    "rloo": {"loss_type": "luspo", "scale_rewards": "none", "beta": 0.05, "num_iterations": 1},
    "reinforce_pp": {"loss_type": "grpo", "scale_rewards": "none", "beta": 0.01, "epsilon": 0.2},
}  # fmt: skip
COMMON = {
    "use_bias_correction_kl": False,
    "multi_objective_aggregation": "sum_then_normalize",
    "num_generations": 4,
    "delta": None,
    "entropy_coef": 0.0,
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "sync_ref_model": False,
    "use_vllm": False,
    "max_completion_length": 12,
}


@pytest.mark.parametrize("name", GROUP_ALGORITHMS)
def test_the_papers_values_are_sent(name: str, tmp_path: Path) -> None:
    values = sent(name, tmp_path, train__gradient_accumulation_steps=2)
    assert {**COMMON, **SENT[name]}.items() <= values.items()
    assert values["steps_per_generation"] == SENT[name].get("steps_per_generation", 2)


@pytest.mark.parametrize("name", GROUP_ALGORITHMS)
def test_every_value_is_an_argument_of_the_library_and_none_is_left_out(name: str, tmp_path: Path) -> None:
    import dataclasses

    from trl import GRPOConfig

    left = {  # of no effect on what is computed here, or refused: tools, hub, pixels, continuous batching, streaming
        "model_init_kwargs", "trust_remote_code", "remove_unused_columns", "ds3_gather_for_generation",
        "pad_to_multiple_of", "generation_batch_size", "chat_template_kwargs", "cache_implementation",
        "vllm_model_impl", "vllm_structured_outputs_regex", "max_tool_calling_iterations", "log_multimodal",
        "num_completions_to_print", "log_unique_prompts", "log_completions_hub_repo",
        "use_transformers_continuous_batching", "transformers_continuous_batching_config",
        "use_transformers_paged", "vllm_importance_sampling_cap",
    }  # fmt: skip
    own = set(GRPOConfig.__annotations__)
    values = sent(name, tmp_path)
    assert set(values) <= {f.name for f in dataclasses.fields(GRPOConfig)}
    assert own - set(values) <= left


@pytest.mark.parametrize(
    ("name", "key", "value", "says", "allowed"),
    [
        ("dr_grpo", "scale_rewards", "group", "dr_grpo fixes it (none)", "grpo"),
        ("dr_grpo", "loss_type", "dapo", "dr_grpo fixes it (dr_grpo)", "grpo"),
        ("dapo", "beta", 0.1, "dapo fixes it (0.0)", "dr_grpo"),
        ("gspo", "importance_sampling_level", "token", "gspo fixes it (sequence)", "grpo"),
        ("cispo", "epsilon", 0.1, "is not an option of cispo", "gspo"),
        ("rloo", "epsilon", 0.1, "is not an option of rloo", "reinforce_pp"),
        ("rloo", "num_iterations", 2, "rloo fixes it (1)", "grpo"),
        ("reinforce_pp", "scale_rewards", "batch", "reinforce_pp fixes it (none)", "grpo"),
        ("grpo", "max_resample", 2, "is not an option of grpo", "dapo"),
        ("grpo", "label_smoothing", 0.1, "is not an option of grpo", "dpo"),
    ],
)
def test_what_an_algorithm_fixes_is_refused_with_those_that_allow_it(
    name: str, key: str, value: Any, says: str, allowed: str, tmp_path: Path
) -> None:
    said = refusal(name, tmp_path, **{f"algo__{key}": value})
    assert f"algo.{key}: {says}" in said
    assert allowed in said.partition("algorithms that")[2]


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("grpo", {"algo__loss_type": "cispo"}, "algo.loss_type"),
        (
            "grpo",
            {"algo__sapo_temperature_pos": 2.0},
            "algo.sapo_temperature_pos: has no effect here: `algo.loss_type`",
        ),
        ("grpo", {"algo__vespo_k_pos": 2.0, "algo__loss_type": "sapo"}, "algo.vespo_k_pos: has no effect"),
        ("grpo", {"algo__epsilon": 0.1, "algo__loss_type": "sapo"}, "algo.epsilon: has no effect here"),
        ("grpo", {"algo__loss_type": "luspo"}, "set algo.importance_sampling_level to sequence"),
        ("grpo", {"algo__delta": 1.2}, "1.2 must be above 1 + the upper clip = 1.2"),
        ("grpo", {"algo__use_bias_correction_kl": True, "algo__beta": 0.0}, "has no effect here: `algo.beta` is 0"),
        ("grpo", {"algo__ref_model_sync_steps": 5}, "`algo.sync_ref_model` is false"),
        ("grpo", {"algo__sync_ref_model": True, "model__peft": {"r": 4}}, "remove model.peft"),
        ("grpo", {"algo__entropy_target": 0.1}, "`algo.use_adaptive_entropy` is false"),
        ("grpo", {"algo__off_policy_mask_threshold": 0.1}, "is the one that sampled"),
        (
            "grpo",
            {"algo__reward_aggregation": "normalize_then_sum", "algo__scale_rewards": "none"},
            "normalize_then_sum does its own scaling",
        ),
        ("grpo", {"algo__num_generations_eval": 4}, "set evaluation.temperature above 0"),
        ("grpo", {"generation__vllm_mode": "server"}, "`generation.use_vllm` is false"),
        (
            "grpo",
            {"generation__use_vllm": True, "generation__vllm_server_port": 9000},
            "`generation.vllm_mode` is colocate",
        ),
        (
            "grpo",
            {"generation__use_vllm": True, "generation__vllm_enable_sleep_mode": True, "backend": "unsloth"},
            "generation.vllm_enable_sleep_mode: has no effect here: Unsloth",
        ),
        ("grpo", {"algo__num_generations": 1}, "algo.num_generations: input should be greater than or equal to 2"),
        ("rloo", {"algo__num_generations": 1}, "the others of its prompt; pace and ppo take single ones"),
        ("reinforce_pp", {"algo__num_generations": 0}, "greater than or equal to 2 (got 0)"),
        ("grpo", {"algo__loss_type": "gspo"}, "that is an algorithm: write `algo: gspo`"),
        ("gspo", {"train__save_steps": 2}, "inside a generation window"),
        ("cispo", {"algo__epsilon_high": 0.28}, "greater than or equal to 1"),
        ("dapo", {"algo__overlong_buffer": 13}, "longer than generation.max_completion_length 12"),
        ("dapo", {"rewards": []}, "dapo needs at least one"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    assert says in refusal(name, tmp_path, **changes)


def test_an_adaptive_entropy_bonus_is_refused_where_the_library_leaves_it_out(tmp_path: Path) -> None:
    from aligntune.backends.unsloth.backend import _refuse_on_gpu

    _refuse_on_gpu(config("grpo", tmp_path, algo__entropy_coef=0.1))
    with pytest.raises(ConfigurationError, match=r"algo\.use_adaptive_entropy"):
        _refuse_on_gpu(config("grpo", tmp_path, algo__use_adaptive_entropy=True))


def test_without_vllm_its_use_is_refused_before_anything_is_loaded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    from aligntune.errors import EnvironmentError

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "vllm" else found(name, *a))
    with pytest.raises(EnvironmentError, match=r"generation\.use_vllm: true.*'vllm', which is not installed"):
        runs.trainer("grpo", tiny_model, tmp_path, generation__use_vllm=True).train()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("gspo", {"algo__steps_per_generation": 1}, True),
        ("gspo", {}, False),
        ("dapo", {}, True),
        ("dapo", {"algo__num_iterations": 2}, False),
        ("grpo", {}, False),
        ("grpo", {"algo__epsilon_high": 0.3}, True),
        ("cispo", {"algo__num_iterations": 2}, False),
        ("cispo", {}, True),
    ],
)
def test_a_clip_that_does_nothing_is_told(name: str, changes: dict[str, Any], told: bool, tmp_path: Path) -> None:
    made = config(name, tmp_path, **changes)
    assert any("clipping does nothing" in n for n in made.algorithm.notes(made)) is told


@pytest.mark.parametrize(
    ("old", "new"), [("drgrpo", "dr_grpo"), ("reinforce++", "reinforce_pp"), ("reinforce_plus_plus", "reinforce_pp")]
)
def test_old_names(old: str, new: str) -> None:
    assert get_algorithm(old).key == new


# ---- advantages ----------------------------------------------------------------------------------------------------


def random_rewards(seed: int, groups: int = 6, group: int = 4, missing: float = 0.2) -> list[list[float]]:
    draw = random.Random(seed)
    return [[math.nan if draw.random() < missing else draw.gauss(0, 2) for _ in range(group)] for _ in range(groups)]


def flat(values: list[list[float]]) -> Any:
    import torch

    return torch.tensor(values, dtype=torch.float64).view(-1)


def known(values: list[float]) -> list[float]:
    return [v for v in values if not math.isnan(v)]


@pytest.mark.parametrize("seed", range(5))
def test_leave_one_out(seed: int) -> None:
    from aligntune.algorithms.rloo import leave_one_out

    rewards = random_rewards(seed)
    expected = []
    for group in rewards:
        for i, mine in enumerate(group):
            others = known(group[:i] + group[i + 1 :])
            expected.append(0.0 if math.isnan(mine) or not others else mine - sum(others) / len(others))
    assert leave_one_out(flat(rewards), 4).tolist() == pytest.approx(expected, abs=1e-12)


def test_leave_one_out_by_hand() -> None:
    from aligntune.algorithms.rloo import leave_one_out

    assert leave_one_out(flat([[1.0, 0.0, 0.0, 1.0]]), 4).tolist() == pytest.approx([2 / 3, -2 / 3, -2 / 3, 2 / 3])


@pytest.mark.parametrize("seed", range(5))
def test_batch_normalised(seed: int) -> None:
    from aligntune.algorithms.reinforce_pp import batch_normalised

    rewards = random_rewards(seed)
    centred = [[r - statistics.fmean(known(g) or [0.0]) for r in g] for g in rewards]
    all_of_them = known([c for g in centred for c in g])
    mean, deviation = statistics.fmean(all_of_them), statistics.stdev(all_of_them)
    expected = [0.0 if math.isnan(c) else (c - mean) / (deviation + 1e-8) for g in centred for c in g]
    result = batch_normalised(flat(rewards), 4)
    assert result.tolist() == pytest.approx(expected, abs=1e-10)
    present = result[~flat(rewards).isnan()]
    assert present.mean().item() == pytest.approx(0, abs=1e-12)
    assert present.std().item() == pytest.approx(1, abs=1e-6)


def test_equal_rewards_have_no_advantage_anywhere() -> None:
    from aligntune.algorithms.dapo import group_advantages
    from aligntune.algorithms.reinforce_pp import batch_normalised
    from aligntune.algorithms.rloo import leave_one_out

    for rewards in ([[0.3] * 4, [7.0] * 4], [[math.nan] * 4, [1.0, math.nan, math.nan, math.nan]]):
        for advantage in (group_advantages, batch_normalised, leave_one_out):
            assert advantage(flat(rewards), 4).abs().max().item() < 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_group_advantages(seed: int) -> None:
    from aligntune.algorithms.dapo import group_advantages

    rewards = random_rewards(seed)
    expected = []
    for group in rewards:
        there = known(group)
        deviation = statistics.stdev(there) if len(there) > 1 else 0.0
        mean = statistics.fmean(there) if there else 0.0
        expected += [0.0 if math.isnan(r) else (r - mean) / (deviation + 1e-4) for r in group]
    assert group_advantages(flat(rewards), 4).tolist() == pytest.approx(expected, abs=1e-10)


# ---- DAPO ------------------------------------------------------------------------------------------------------------


def test_overlong_punishment() -> None:
    import torch

    from aligntune.algorithms.dapo import overlong_punishment

    longest, buffer = 20, 5
    lengths = torch.arange(0, 30, dtype=torch.float64)
    expected = [0.0 if n <= 15 else (15 - n) / 5 if n <= 20 else -1.0 for n in range(30)]
    assert overlong_punishment(lengths, longest, buffer).tolist() == pytest.approx(expected, abs=1e-15)
    assert not overlong_punishment(lengths, longest, 0).any()


@pytest.mark.parametrize("seed", range(5))
def test_informative_groups_are_those_with_two_different_rewards(seed: int) -> None:
    from aligntune.algorithms.dapo import informative

    draw = random.Random(seed)
    rewards = [[draw.choice([0.0, 1.0, math.nan]) for _ in range(3)] for _ in range(40)]
    assert informative(flat(rewards), 3).tolist() == [len(set(known(g))) > 1 for g in rewards]


def test_prompts_of_a_round_are_decided_by_seed_step_and_round() -> None:
    from aligntune.algorithms.dapo import draw

    assert draw(5, 100, 1, 7, 0, 1) == draw(5, 100, 1, 7, 0, 1)
    others = [draw(5, 100, *place) for place in ((2, 7, 0, 1), (1, 8, 0, 1), (1, 7, 1, 1), (1, 7, 0, 2))]
    assert all(o != draw(5, 100, 1, 7, 0, 1) for o in others)
    assert sorted(draw(7, 3, 0, 0)[:3]) == [0, 1, 2]
    assert len(draw(7, 3, 0, 0)) == 7


@pytest.mark.parametrize("seed", range(20))
def test_dynamic_sampling_never_trains_on_a_group_without_variance(seed: int) -> None:
    draw = random.Random(seed)
    rewards = [[draw.choice([0.0, 1.0]) for _ in range(3)] for _ in range(30)]
    world = policy.World(rewards, rounds=draw.randrange(4))
    prompts = draw.sample(range(30), 6)
    out = world.run(prompts)
    metrics = {k: v[0] for k, v in world.trainer._metrics["train"].items()}
    trained = 0
    for i in range(0, 18, 3):
        rows = out["completion_mask"][i : i + 3].sum(1)
        ids = out["completion_ids"][i : i + 3, 0].tolist()
        if rows.any():
            trained += 1
            assert rows.all()
            assert len(set(ids)) == 1  # a whole group of one prompt
            scores = rewards[ids[0]]
            assert len(set(scores)) > 1
            mean, deviation = statistics.fmean(scores), statistics.stdev(scores)
            expected = [(s - mean) / (deviation + 1e-4) for s in scores]
            assert out["advantages"][i : i + 3].tolist() == pytest.approx(expected, abs=1e-5)
        else:
            assert not out["advantages"][i : i + 3].any()
    everything = [p for asked in world.asked for p in asked]
    useful = [p for p in everything if len(set(rewards[p])) > 1]
    assert trained == min(6, len(useful))
    assert out["num_items_in_batch"] == out["completion_mask"].sum()
    assert metrics["dynamic_sampling/unfilled_share"] == pytest.approx(1 - trained / 6)
    assert metrics["dynamic_sampling/dropped_share"] == pytest.approx(1 - len(useful) / len(everything))
    assert metrics["dynamic_sampling/rounds"] == len(world.asked) - 1 <= world.plugin.rounds
    for asked, before in zip(world.asked[1:], world.asked, strict=False):  # only what is missing is sampled again
        assert len(asked) <= len(before)


def test_rows_of_another_width_are_padded_on_their_side() -> None:
    import torch

    from aligntune.algorithms.dapo import fill

    def rollout(value: int, width: int) -> dict[str, Any]:
        block = torch.full((2, width), value)
        return {"prompt_ids": block, "completion_ids": block, "completion_mask": torch.ones_like(block), "n": 3}

    got = fill(rollout(1, 2), torch.tensor([1]), rollout(2, 3), torch.tensor([0]), padding=9)
    assert got["prompt_ids"].tolist() == [[9, 1, 1], [2, 2, 2]]
    assert got["completion_ids"].tolist() == [[1, 1, 9], [2, 2, 2]]
    assert got["completion_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    back = fill(rollout(1, 3), torch.tensor([0]), rollout(2, 2), torch.tensor([1]), padding=9)
    assert back["prompt_ids"].tolist() == [[9, 2, 2], [1, 1, 1]]


def test_an_update_is_skipped_only_if_none_of_its_micro_batches_has_a_token() -> None:
    import torch

    world = policy.World([[0.0, 1.0]], rounds=0)
    plugin, accelerator = world.plugin, world.trainer.accelerator

    def step(*tokens: int) -> list[bool]:
        asked = []
        for i, count in enumerate(tokens):
            accelerator.sync_gradients = i == len(tokens) - 1
            plugin.micro_batch({"completion_mask": torch.tensor([[count]])})
            asked.append(plugin.skip_update())
        return asked

    assert step(0, 0) == [False, True]
    assert step(0, 1) == [False, False]
    assert step(1, 0) == [False, False]
    assert step(0) == [True]


def test_stored_rollouts_say_their_round_and_whether_the_group_was_dropped() -> None:
    world = policy.World([[0.0, 1.0]], rounds=1)
    world.plugin._round = 1
    assert world.plugin.rollout_columns([0.0, 1.0, 1.0, 1.0, None, 1.0]) == {
        "round": [1] * 6,
        "dropped": [False, False, True, True, True, True],
    }


# ---- rewards that are normalised apart ---------------------------------------------------------------------------------


def composite(**options: Any) -> Any:
    from aligntune.rewards import CompositeReward
    from aligntune.rewards.base import reward_class

    def letters(text: str) -> float:
        """Letters a."""
        return float(text.count("a"))

    def maybe(text: str) -> float | None:
        """Letters b; nothing for an empty text."""
        return float(text.count("b")) if text else None

    return CompositeReward([reward_class(letters, "letters")(), reward_class(maybe, "maybe")()], [1.0, 2.0], **options)


def test_components_are_scored_once_and_handed_out_apart() -> None:
    from aligntune.rewards.adapters import trl_rewards

    recorded: list[Any] = []
    functions = trl_rewards(composite(), recorder=lambda *a: recorded.append(a), split=True)
    assert [f.__name__ for f in functions] == ["letters", "maybe"]
    logged: dict[str, float] = {}
    arguments = {"prompts": ["p"] * 3, "completions": ["aab", "", "bb"], "log_metric": logged.__setitem__}
    assert functions[0](**arguments) == [2.0, None, 0.0]  # the second row has no total, so it has no part either
    assert functions[1](**arguments) == [1.0, None, 2.0]
    assert len(recorded) == 1
    assert logged["rewards/letters/mean"] == pytest.approx(2 / 3)
    assert [f.__name__ for f in trl_rewards(composite())] == ["total"]


def test_a_total_that_is_no_plain_sum_is_not_taken_apart() -> None:
    from aligntune.rewards import CompositeReward
    from aligntune.rewards.adapters import trl_rewards

    class Gated(CompositeReward):
        """Another way to add up."""

    whole = composite()
    for made in (composite(none="zero"), Gated(whole.components)):
        with pytest.raises(ConfigurationError, match=r"algo\.reward_aggregation"):
            trl_rewards(made, split=True)


def test_weights_go_to_the_library_where_rewards_are_normalised_apart(tmp_path: Path) -> None:
    two = [{"type": "length", "weight": 0.5}, {"type": "think_format", "weight": -2.0}]
    values = sent("grpo", tmp_path, rewards=two, algo__reward_aggregation="normalize_then_sum")
    assert values["multi_objective_aggregation"] == "normalize_then_sum"
    assert values["reward_weights"] == [0.5, -2.0]
    assert sent("grpo", tmp_path, rewards=two)["reward_weights"] is None
