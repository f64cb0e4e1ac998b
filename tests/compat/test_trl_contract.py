"""What the layer and the plugins rely on in TRL's GRPOTrainer: names, signatures, dictionary keys, shapes, sources.

A new TRL that breaks one of these must be looked at before it is admitted. These were: 1.14.2 (constraints.txt) and
1.16.0.
"""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest

import policy
from aligntune.algorithms.plugin import Plugin

SIGNATURES = {
    "_get_train_sampler": ["self", "dataset"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_get_per_token_logps_and_entropies": ["self", "model"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "_compute_loss": ["self", "model", "inputs"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "_prepare_inputs": ["self", "generation_batch"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_optimizer_and_scheduler": ["self", "checkpoint"],
    "create_optimizer": ["self", "model"],
}
ATTRIBUTES = [
    "beta",
    "loss_type",
    "temperature",
    "num_generations",
    "max_completion_length",
    "reward_weights",
    "current_gradient_accumulation_steps",
    "_metrics",
    "_step",
    "_buffered_inputs",
    "num_iterations",
    "_tokenizer",
    "train_dataset",
    "ref_model",
    "accelerator",
    "state",
]
SAMPLER = ["data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed", "generator"]
ROLLOUT = {
    "prompt_ids",
    "prompt_mask",
    "completion_ids",
    "completion_mask",
    "advantages",
    "num_items_in_batch",
    "old_per_token_logps",
    "ref_per_token_logps",
}
SHUFFLED = "extra"


@pytest.fixture(scope="module")
def hf(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A trainer that keeps both old and reference log-probabilities."""
    folder = tmp_path_factory.mktemp("contract")
    options = {
        "algo__beta": 0.1,
        "algo__num_iterations": 2,
        "train__per_device_batch_size": 8,
        "logging__rollouts": False,
    }
    return policy.library_trainer("grpo", tiny_model, folder, double=False, **options)


@pytest.mark.parametrize("name", list(SIGNATURES))
def test_methods_have_the_names_and_arguments_that_are_overridden(name: str) -> None:
    from trl import GRPOTrainer

    found = list(inspect.signature(inspect.unwrap(getattr(GRPOTrainer, name))).parameters)
    if name == "_get_per_token_logps_and_entropies":  # its arguments are passed on as they come, and it changes often
        assert found[:2] == ["self", "model"]
    else:
        assert found == SIGNATURES[name]


def test_the_attributes_that_are_read_are_there(hf: Any) -> None:
    assert [name for name in ATTRIBUTES if not hasattr(hf, name)] == []
    assert {"train", "eval"} <= set(hf._metrics)
    hf._metrics["train"]["x"].append(1.0)  # lists made on demand
    del hf._metrics["train"]["x"]


def test_the_sampler_keeps_what_it_was_made_of(hf: Any) -> None:
    base = type(hf).__mro__[1]
    sampler = base._get_train_sampler(hf)
    assert [name for name in SAMPLER if not hasattr(sampler, name)] == []
    ours = hf._get_train_sampler()
    assert isinstance(ours, type(sampler))
    assert (ours.mini_repeat_count, ours.batch_size, ours.repeat_count) == (4, 2, 2)
    ours.set_epoch(0)
    assert list(ours) == list(sampler)  # the first epoch is TRL's own


@pytest.fixture(scope="module")
def out(hf: Any) -> Any:
    """One generation of two prompts, with a tensor of ours that must follow its rows."""

    class Adds(Plugin):
        def rollout(self, generate: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
            self.rows = rows
            made = generate(rows)
            return {**made, SHUFFLED: made["completion_ids"].sum(1)}

        def advantages(self, rewards: Any, out: dict[str, Any]) -> Any:
            self.rewards = rewards

    hf.attach(Adds(), hf.plugin.config, hf.plugin.backend)
    hf._metrics["train"].clear()
    return hf._generate_and_score_completions([hf.train_dataset[i // 4] for i in range(8)])


def test_a_rollout_has_these_keys_and_shapes(hf: Any, out: Any) -> None:
    assert set(out) == ROLLOUT | {SHUFFLED}
    width = out["completion_ids"].shape[1]
    assert out["prompt_ids"].shape == out["prompt_mask"].shape == (8, out["prompt_ids"].shape[1])
    for name in ("completion_ids", "completion_mask", "old_per_token_logps", "ref_per_token_logps"):
        assert out[name].shape == (8, width), name
    assert out["advantages"].shape == (8,)
    assert out["num_items_in_batch"].dim() == 0
    assert out["num_items_in_batch"] == out["completion_mask"].sum()
    assert hf.plugin.rewards.shape == (8, 1)
    assert all("prompt" in row for row in hf.plugin.rows)


def test_prompts_are_padded_on_the_left_and_completions_on_the_right(out: Any) -> None:
    assert (out["prompt_mask"].diff(dim=1) >= 0).all()
    assert (out["completion_mask"].diff(dim=1) <= 0).all()


def test_metrics_have_the_names_that_are_reported(hf: Any, out: Any) -> None:
    wanted = {"reward", "reward_std", "frac_reward_zero_std", "rewards/total/mean", "completions/mean_length"}
    assert wanted <= set(hf._metrics["train"])
    hf.compute_loss(hf.model, out)
    assert {"kl", "entropy", "clip_ratio/region_mean"} <= set(hf._metrics["train"])


def test_rows_are_shuffled_and_cut_together_with_what_a_plugin_adds(out: Any) -> None:
    import torch
    from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

    torch.manual_seed(0)
    shuffled = shuffle_sequence_dict(dict(out))
    assert shuffled["completion_ids"].sum(1).tolist() == shuffled[SHUFFLED].tolist()
    halves = split_tensor_dict(shuffled, 2)
    assert [len(h[SHUFFLED]) for h in halves] == [4, 4]
    assert all(h["num_items_in_batch"] == out["num_items_in_batch"] for h in halves)


def test_advantages_may_be_one_per_token(hf: Any, out: Any) -> None:
    width = out["completion_ids"].shape[1]
    plain = hf.compute_loss(hf.model, out)
    wide = hf.compute_loss(hf.model, {**out, "advantages": out["advantages"].unsqueeze(1).expand(-1, width)})
    assert wide.item() == pytest.approx(plain.item(), rel=1e-6)


def test_log_probabilities_come_first_in_what_the_forward_pass_returns(hf: Any, out: Any) -> None:
    import torch

    ids = torch.cat([out["prompt_ids"], out["completion_ids"]], 1)
    mask = torch.cat([out["prompt_mask"], out["completion_mask"]], 1)
    found = hf._get_per_token_logps_and_entropies(hf.model, ids, mask, out["completion_ids"].shape[1])
    assert len(found) == 3
    kept = out["completion_mask"].bool()
    assert torch.allclose(found[0][kept], out["old_per_token_logps"][kept], atol=1e-5)


def test_what_is_sent_are_fields_of_the_configuration() -> None:
    from trl import GRPOConfig

    from aligntune.algorithms.group import NEUTRAL

    assert set(NEUTRAL) <= {f.name for f in dataclasses.fields(GRPOConfig)}


def test_the_loss_types_are_those_that_the_layer_can_average() -> None:
    """A loss type that TRL adds must be given its average in `aggregate`, or be kept out of our parameters."""
    from trl import GRPOTrainer

    source = inspect.getsource(GRPOTrainer._compute_loss)
    for name in ("grpo", "sapo", "bnpo", "dr_grpo", "luspo", "cispo", "dapo", "vespo"):
        assert f'"{name}"' in source
