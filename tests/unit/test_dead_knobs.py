"""Every configuration key does something: for each, another value changes what a run hands on, or is refused.

A key has a row in `KEYS` (or `OWN`, for an algorithm's parameters) with another value for it. `Probe` computes what a
run would do with a configuration: the backend's trainer class and every argument of the library's, what reaches the
model's and tokenizer's loaders and PEFT, the rows, what generation and likelihood are asked, the rewards' scores, what
the callback does and what reaches the run folder. The test is that one of these changes. A new field without a row
fails `test_every_key_has_a_row`.

Unsloth cannot be imported in this process, so its loader is replaced by one that records what it is given.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import health_streams
import helpers
import plugs
from aligntune.algorithms.base import algorithm_names, get_algorithm, get_task, task_names
from aligntune.algorithms.mirror_map import MirrorMap
from aligntune.algorithms.preference import Preference, Referenced
from aligntune.core.config import DatasetConfig, JudgeConfig, PeftConfig, RewardConfig, RLConfig, SFTConfig
from aligntune.core.config.base import is_section, to_plain, walk
from aligntune.core.config.io import build_config
from aligntune.core.config.reading import set_key
from aligntune.core.recording import record_rollouts
from aligntune.errors import AlignTuneError, ConfigurationError

HERE = Path(__file__)


@dataclasses.dataclass(frozen=True)
class Other:
    """Another value of a key, and what must be set first for the key to have a meaning."""

    value: Any
    needs: dict[str, Any] = dataclasses.field(default_factory=dict)


PEFT = {"model.peft": {"r": 4}}
HELD = {"evaluation.dataset": {"name": "{held}"}}
HUB = {"@data.name": "someone/rows"}
HELD_HUB = {"evaluation.dataset": {"name": "someone/rows"}}
TWO = {"datasets": [{"name": "{rows}"}, {"name": "{more}"}]}
VLLM = {"generation.use_vllm": True, "model.peft": {"r": 4}}  # adapters, which it needs on Unsloth
SERVER = {**VLLM, "generation.vllm_mode": "server"}
ASKS = {"rewards": [{"type": "engagement", "params": {"backend": "judge"}}]}
JUDGED = {**ASKS, "judge": {"url": "http://here/v1", "model": "m"}}
LOCALLY = {**ASKS, "judge": {"kind": "local", "model": "m"}}
TEMPLATE = helpers.CHAT_TEMPLATE.replace("<|im_start|>'", "<|im_start|>the '")

REWARD = {"type": "{rewards}:letters"}
PAIR = {"rewards": [REWARD, {"type": "{rewards}:longer"}]}
BOUNDED = {"rewards": [{"type": "{rewards}:ranged"}, {"type": "{rewards}:ranged", "name": "second"}]}
GATED = {**PAIR, "composition.mode": "gated", "composition.gates": {"letters": 1}}
ORDERED = {**BOUNDED, "composition.mode": "lexicographic", "composition.tolerance": {"ranged": 10}}
SILENT = {"rewards": [{**REWARD, "params": {"letter": "boom"}, "on_error": "skip"}, {"type": "{rewards}:longer"}]}
RUNNING = {**PAIR, "composition.normalise": "running"}

KEYS: dict[str, Other] = {
    "backend": Other("{other_backend}"),
    "isolation": Other("process"),
    "python": Other("/bin/sh", {"isolation": "process"}),
    "output_dir": Other("elsewhere"),
    "health.enabled": Other(False),
    "health.action": Other("stop"),
    "health.window": Other(100),
    "health.loss_spike": Other(None),
    "health.loss_rise": Other(None),
    "health.grad_norm": Other(None),
    "health.kl_dead": Other(None),
    "health.kl_high": Other(None),
    "health.entropy_low": Other(None),
    "health.reward_flat": Other(None),
    "health.clipped": Other(None),
    "health.repetition": Other(None),
    "health.length": Other(None),
    "health.held_out": Other(None, {**HELD, "evaluation.every": 1}),
    "health.throughput": Other(None),
    "health.memory": Other(None),
    "health.disk_gb": Other(None),
    "health.gpu_memory": Other(None),
    "cache.dir": Other("/tmp/cache", HUB),
    "cache.enabled": Other(False),
    "cache.max_gb": Other(1e-9),
    "model.name_or_path": Other("{plain}"),
    "model.revision": Other("v2"),
    "model.precision": Other("{precision}"),
    "model.device": Other("{device}"),
    "model.quantization": Other("4bit", PEFT),
    "model.attn_implementation": Other("eager"),
    "model.max_seq_length": Other(48),
    "model.trust_remote_code": Other(True),
    "model.chat_template": Other(TEMPLATE),
    "model.peft.r": Other(8, PEFT),
    "model.peft.alpha": Other(8, PEFT),
    "model.peft.dropout": Other(0.1, PEFT),
    "model.peft.target_modules": Other(["q_proj"], PEFT),
    "model.peft.modules_to_save": Other(["norm"], PEFT),
    "model.peft.use_rslora": Other(True, PEFT),
    "model.peft.use_dora": Other(True, PEFT),
    "train.learning_rate": Other(0.5),
    "train.num_epochs": Other(7),
    "train.max_steps": Other(7),
    "train.per_device_batch_size": Other(16),
    "train.gradient_accumulation_steps": Other(2),
    "train.warmup_steps": Other(2),
    "train.warmup_ratio": Other(0.25),
    "train.lr_scheduler": Other("cosine"),
    "train.optimizer": Other("sgd"),
    "train.weight_decay": Other(0.1),
    "train.adam_beta1": Other(0.5),
    "train.adam_beta2": Other(0.5),
    "train.adam_epsilon": Other(1e-3),
    "train.max_grad_norm": Other(0.5),
    "train.gradient_checkpointing": Other(True),
    "train.seed": Other(7),
    "train.save_steps": Other(2),
    "train.save_total_limit": Other(2, {"train.save_steps": 4}),
    "train.dataloader_workers": Other(1),
    "train.time_limit": Other("3h"),
    "train.stop_grace": Other(5.0),
    "train.auto_batch": Other(True),
    "train.early_stopping_patience": Other(1, {**HELD, "evaluation.every": 1}),
    "train.best_metric": Other("eval_rows", {**HELD, "evaluation.every": 1}),
    "train.best_mode": Other("min", {**HELD, "evaluation.every": 1, "train.best_metric": "eval_rows"}),
    "train.keep_best": Other("checkpoint", {**HELD, "evaluation.every": 1}),
    "evaluation.tasks": Other([{"name": "texts", "kind": "perplexity", "dataset": "{texts}"}]),
    "evaluation.at_start": Other(True, HELD),
    "evaluation.every": Other(2, HELD),
    "evaluation.batch_size": Other(3),
    "evaluation.max_new_tokens": Other(3),
    "evaluation.temperature": Other(0.5),
    "logging.steps": Other(3),
    "logging.report_to": Other(["wandb"]),
    "logging.run_name": Other("a name"),
    "logging.display": Other("plain"),
    "logging.samples": Other(0, HELD),
    "logging.samples_at": Other([0.25], HELD),
    "logging.sample_prompts": Other(["Say this."], HELD),
    "logging.rollouts": Other(False),
    "generation.max_prompt_length": Other(36),
    "generation.max_completion_length": Other(9),
    "generation.temperature": Other(0.5),
    "generation.top_p": Other(0.5),
    "generation.top_k": Other(5),
    "generation.min_p": Other(0.1),
    "generation.repetition_penalty": Other(1.5),
    "generation.use_vllm": Other(True),
    "generation.vllm_mode": Other("server", VLLM),
    "generation.vllm_gpu_memory_utilization": Other(0.5, VLLM),
    "generation.vllm_tensor_parallel_size": Other(2, VLLM),
    "generation.vllm_max_model_length": Other(64, VLLM),
    "generation.vllm_enable_sleep_mode": Other(True, VLLM),
    "generation.vllm_server_base_url": Other("http://there", SERVER),
    "generation.vllm_server_host": Other("there", SERVER),
    "generation.vllm_server_port": Other(9000, SERVER),
    "generation.vllm_server_timeout": Other(9.0, SERVER),
    "generation.vllm_group_port": Other(9001, SERVER),
    "generation.vllm_importance_sampling_correction": Other(False, VLLM),
    "generation.vllm_importance_sampling_mode": Other("token_mask", VLLM),
    "generation.vllm_importance_sampling_clip_max": Other(5.0, VLLM),
    "generation.vllm_importance_sampling_clip_min": Other(0.5, VLLM),
    "judge.kind": Other("local", JUDGED),
    "judge.model": Other("another", JUDGED),
    "judge.url": Other("http://there/v1", JUDGED),
    "judge.api_key_env": Other("A_KEY", JUDGED),
    "judge.temperature": Other(0.5, JUDGED),
    "judge.max_tokens": Other(7, JUDGED),
    "judge.extra": Other({"top_p": 0.5}, JUDGED),
    "judge.timeout": Other(7.0, JUDGED),
    "judge.retries": Other(1, JUDGED),
    "judge.requests_per_minute": Other(7.0, JUDGED),
    "judge.concurrency": Other(2, JUDGED),
    "judge.cache": Other("{folder}", JUDGED),
    "judge.price_in": Other(2.0, JUDGED),
    "judge.price_out": Other(2.0, JUDGED),
    "judge.max_cost": Other(5.0, {**JUDGED, "judge.price_in": 1.0, "judge.price_out": 1.0}),
    "judge.revision": Other("v2", LOCALLY),
    "judge.precision": Other("bf16", LOCALLY),
    "judge.batch_size": Other(3, LOCALLY),
    "judge.trust_remote_code": Other(True, LOCALLY),
    "rewards.0.type": Other("{rewards}:longer"),
    "rewards.0.weight": Other(2.0),
    "rewards.0.name": Other("mine"),
    "rewards.0.params": Other({"letter": "e"}),
    "rewards.0.threshold": Other(0.5),
    "rewards.0.normalization": Other("minmax", {"rewards.0.type": "{rewards}:ranged"}),
    "rewards.0.deadline": Other(0.05, {"rewards.0.params": {"letter": "slow"}}),
    "rewards.0.on_error": Other("skip", {"rewards.0.params": {"letter": "boom"}}),
    "composition.mode": Other("min", PAIR),
    "composition.gates": Other({"letters": 4}, GATED),
    "composition.tolerance": Other({"ranged": 1}, ORDERED),
    "composition.none": Other("zero", SILENT),
    "composition.clip": Other([0.0, 1.0]),
    "composition.normalise": Other("running"),
    "composition.normalise_of": Other("components", RUNNING),
    "composition.normalise_scale": Other(False, {**RUNNING, "composition.normalise_of": "components"}),
    "@data.name": Other("{more}"),
    "@data.subset": Other("main", HUB),
    "@data.split": Other("train[:50%]"),
    "@data.revision": Other("v2", HUB),
    "@data.preset": Other("{preset}", {"@data.name": "{both}"}),
    "@data.format": Other("sharegpt"),
    "@data.column_mapping": Other({"{mapped}": "other"}),
    "@data.prompt_template": Other("Asked: {{ other }}"),
    "@data.system_prompt": Other("Be brief."),
    "@data.max_samples": Other(2),
    "@data.columns": Other(["other"]),
    "@data.on_bad_row": Other("skip", {"@data.name": "{bad}"}),
    "@data.streaming": Other(True),
    "@data.read.delimiter": Other("|"),
    "@data.read.header": Other(False),
    "@data.read.encoding": Other("utf-16"),
    "@data.read.max_line_mb": Other(1e-5),
    "@data.read.rows_at": Other("a.b"),
    "@data.read.pattern": Other("*.csv"),
    "@data.read.recursive": Other(False),
    "@data.read.types": Other(["csv"]),
    "@data.filter.min_chars": Other(100000),
    "@data.filter.max_chars": Other(1),
    "@data.filter.deduplicate": Other("exact", {"@data.name": "{twice}"}),
    "@data.filter.near_threshold": Other(0.5),
    "@data.filter.languages": Other(["de"]),
    "@data.weight": Other(3.0, TWO),
    "evaluation.dataset.name": Other("{more}", HELD),
    "evaluation.dataset.subset": Other("main", HELD_HUB),
    "evaluation.dataset.split": Other("train[:50%]", HELD),
    "evaluation.dataset.revision": Other("v2", HELD_HUB),
    "evaluation.dataset.preset": Other("{preset}", {"evaluation.dataset": {"name": "{both}"}}),
    "evaluation.dataset.format": Other("sharegpt", HELD),
    "evaluation.dataset.column_mapping": Other({"{mapped}": "other"}, HELD),
    "evaluation.dataset.prompt_template": Other("Asked: {{ other }}", HELD),
    "evaluation.dataset.system_prompt": Other("Be brief.", HELD),
    "evaluation.dataset.max_samples": Other(2, HELD),
    "evaluation.dataset.columns": Other(["other"], HELD),
    "evaluation.dataset.on_bad_row": Other("skip", {"evaluation.dataset": {"name": "{bad}"}}),
    "evaluation.dataset.streaming": Other(True, HELD),
    "evaluation.dataset.read.delimiter": Other("|", HELD),
    "evaluation.dataset.read.header": Other(False, HELD),
    "evaluation.dataset.read.encoding": Other("utf-16", HELD),
    "evaluation.dataset.read.max_line_mb": Other(1e-5, HELD),
    "evaluation.dataset.read.rows_at": Other("a.b", HELD),
    "evaluation.dataset.read.pattern": Other("*.csv", HELD),
    "evaluation.dataset.read.recursive": Other(False, HELD),
    "evaluation.dataset.read.types": Other(["csv"], HELD),
    "evaluation.dataset.filter.min_chars": Other(100000, HELD),
    "evaluation.dataset.filter.max_chars": Other(1, HELD),
    "evaluation.dataset.filter.deduplicate": Other("exact", {"evaluation.dataset": {"name": "{twice}"}}),
    "evaluation.dataset.filter.near_threshold": Other(0.5, HELD),
    "evaluation.dataset.filter.languages": Other(["de"], HELD),
    "evaluation.dataset.weight": Other(3.0, HELD),
}
ADAPTIVE = {"algo.use_adaptive_entropy": True}
GROUP = {
    "num_generations": Other(2),
    "num_generations_eval": Other(2, {"evaluation.temperature": 1.0}),
    "mask_truncated_completions": Other(True),
    "disable_dropout": Other(True),
    "top_entropy_quantile": Other(0.2),
    "entropy_coef": Other(0.01),
    "use_adaptive_entropy": Other(True),
    "entropy_coef_min": Other(0.1, ADAPTIVE),
    "entropy_coef_max": Other(0.5, ADAPTIVE),
    "entropy_coef_delta": Other(0.01, ADAPTIVE),
    "entropy_target": Other(0.5, ADAPTIVE),
}
"""Parameters of every algorithm on TRL's GRPOTrainer; the next four are of those that leave them open."""
REUSE = {
    "num_iterations": Other(2),
    "steps_per_generation": Other(2),
    "off_policy_mask_threshold": Other(0.5, {"algo.num_iterations": 2}),
}
CLIP = {"epsilon": Other(0.5), "epsilon_high": Other(0.5), "delta": Other(2.0)}
MOVING = {"algo.beta": 0.1, "algo.sync_ref_model": True}
REFERENCE = {
    "beta": Other(0.5),
    "use_bias_correction_kl": Other(True, {"algo.beta": 0.1}),
    "sync_ref_model": Other(True, {"algo.beta": 0.1}),
    "ref_model_mixup_alpha": Other(0.5, MOVING),
    "ref_model_sync_steps": Other(2, MOVING),
}
SCALING = {"scale_rewards": Other("none"), "reward_aggregation": Other("normalize_then_sum")}
OWN: dict[str, dict[str, Other]] = {
    "online_dpo": {"beta": Other(0.5), "loss_type": Other("ipo")},
    "spin": {"rounds": Other(2), "beta": Other(0.5)},
    "gkd": {
        "teacher": Other("{plain}"),
        "teacher_revision": Other("v2"),
        "beta": Other(0.1),
        "lmbda": Other(0.9),
        "temperature": Other(2.0),
        "seq_kd": Other(True),
    },
    "instruction_following": {"train_on": Other("all")},
    "chat_completion": {"train_on": Other("all")},
    "text_generation": {},
    "dpo": {
        "beta": Other(0.5),
        "reference": Other("{plain}"),
        "precompute_ref_log_probs": Other(True),
        "loss_type": Other("ipo"),
        "loss_weights": Other([1.0, 0.5], {"algo.loss_type": ["sigmoid", "sft"]}),
        "label_smoothing": Other(0.1),
        "f_divergence_type": Other("forward_kl"),
        "f_alpha_divergence_coef": Other(0.7, {"algo.f_divergence_type": "alpha_divergence"}),
        "ld_alpha": Other(0.5),
        "use_weighting": Other(True),
        "discopop_tau": Other(0.1, {"algo.loss_type": "discopop"}),
        "reference_free": Other(True),
        "sync_ref_model": Other(True),
        "ref_model_mixup_alpha": Other(0.5, {"algo.sync_ref_model": True}),
        "ref_model_sync_steps": Other(3, {"algo.sync_ref_model": True}),
    },
    "kto": {
        "beta": Other(0.5),
        "reference": Other("{plain}"),
        "precompute_ref_log_probs": Other(True),
        "loss_type": Other("apo_zero_unpaired"),
        "desirable_weight": Other(2.0),
        "undesirable_weight": Other(2.0),
    },
    "orpo": {"beta": Other(0.5)},
    "cpo": {"beta": Other(0.5), "nll_weight": Other(0.5)},
    "simpo": {"beta": Other(0.5), "gamma": Other(0.5)},
    "dr_grpo": {**GROUP, **REUSE, **CLIP, **REFERENCE},
    "gspo": {**GROUP, **REUSE, **CLIP, **REFERENCE, **SCALING, "off_policy_mask_threshold": Other(0.5)},
    "cispo": {**GROUP, **REUSE, **REFERENCE, **SCALING, "epsilon_high": Other(2.0)},
    "rloo": {**GROUP, "beta": Other(0.5)},
    "reinforce_pp": {**GROUP, **REUSE, **CLIP, "beta": Other(0.5)},
    "dapo": {
        **GROUP,
        **REUSE,
        **CLIP,
        "mask_truncated_completions": Other(False),
        "max_resample": Other(1),
        "overlong_buffer": Other(5),
    },
    "grpo": {
        **GROUP,
        **REUSE,
        **CLIP,
        **REFERENCE,
        **SCALING,
        "loss_type": Other("dapo"),
        "importance_sampling_level": Other("sequence"),
        "sapo_temperature_pos": Other(2.0, {"algo.loss_type": "sapo"}),
        "sapo_temperature_neg": Other(2.0, {"algo.loss_type": "sapo"}),
        "vespo_k_pos": Other(1.0, {"algo.loss_type": "vespo"}),
        "vespo_lambda_pos": Other(1.0, {"algo.loss_type": "vespo"}),
        "vespo_k_neg": Other(1.0, {"algo.loss_type": "vespo"}),
        "vespo_lambda_neg": Other(1.0, {"algo.loss_type": "vespo"}),
    },
}
OWN["counterfactual_grpo"] = {
    **OWN["grpo"],
    "mode": Other("inverted"),
    "answer_markers": Other(["So"]),
    "max_spans": Other(1),
    "min_weight": Other(0.1),
    "boost_factor": Other(3.0),
    "answer_weight": Other(1.0),
    "conserve_gradient": Other(False),
}
ALONE = {"algo.num_generations": 1}
OWN["pace"] = {
    **GROUP,
    **REUSE,
    **CLIP,
    **REFERENCE,
    "loss_type": Other("dapo"),
    "rho_min": Other(0.5, ALONE),
    "rho_max": Other(0.9, ALONE),
    "d_half": Other(0.6, ALONE),
    "offline_estimate": Other("guess", ALONE),
    "curriculum": Other(False, ALONE),
    "refresh": Other(1, ALONE),
    "exploration": Other(0.5, {**ALONE, "algo.refresh": 1}),
}
MIRROR = {"loss_type": Other("dapo"), "divergence_weight": Other(0.5), "mirror_path": Other("{map}")}
NEURAL = {"algo.divergence": "neural"}
OWN["neural_mirror"] = {**GROUP, **REUSE, **CLIP, **SCALING, **MIRROR}
OWN["gbmpo"] = {
    **OWN["neural_mirror"],
    "divergence": Other("l2"),
    "beta": Other(0.5, {"algo.divergence": "l2_kl"}),
    "mirror_path": Other("{map}", NEURAL),
}
OWN["meta_es"] = {
    **OWN["neural_mirror"],
    "iterations": Other(2),
    "population": Other(4),
    "steps": Other(3),
    "sigma": Other(0.5),
    "sigma_decay": Other(0.5),
    "search_rate": Other(0.5),
    "workers": Other(2),
}
OWN["ppo"] = {
    "num_generations": Other(2),
    "num_generations_eval": Other(2, {"evaluation.temperature": 0.5}),
    "mask_truncated_completions": Other(True),
    "disable_dropout": Other(False),
    "top_entropy_quantile": Other(0.5),
    "entropy_coef": Other(0.1),
    "use_adaptive_entropy": Other(True),
    "entropy_coef_min": Other(0.1, {"algo.use_adaptive_entropy": True}),
    "entropy_coef_max": Other(0.5, {"algo.use_adaptive_entropy": True}),
    "entropy_coef_delta": Other(0.1, {"algo.use_adaptive_entropy": True}),
    "entropy_target": Other(0.1, {"algo.use_adaptive_entropy": True}),
    "kl_coef": Other(0.5),
    "kl_estimator": Other("k3"),
    "target_kl": Other(6.0),
    "kl_horizon": Other(100, {"algo.target_kl": 6.0}),
    "gamma": Other(0.5),
    "lam": Other(0.5),
    "whiten_advantages": Other(False),
    "whiten_rewards": Other(True),
    "missing_eos_penalty": Other(0.5),
    "epsilon": Other(0.5),
    "value_clip": Other(0.5),
    "vf_coef": Other(0.5),
    "num_ppo_epochs": Other(2),
    "num_mini_batches": Other(2),
    "early_stop_kl": Other(0.5),
    "value_model": Other("shared"),
    "value_model_path": Other("{plain}"),
    "value_learning_rate": Other(0.5),
    "task_column": Other("prompt", {"algo.task_column": "other", "algo.task_weights": {"other 1": {"letters": 2.0}}}),
    "task_weights": Other(
        {"other 1": {"letters": 3.0}},
        {"algo.task_column": "other", "algo.task_weights": {"other 1": {"letters": 2.0}}},
    ),
}
for _task in ("instruction_following", "chat_completion", "text_generation"):
    OWN[_task] |= {
        "loss": Other("dft"),
        "packing": Other(True),
        "padding_free": Other(True),
        "neftune_noise_alpha": Other(5.0),
    }
OWN["text_classification"] = {"labels": Other(["odd", "even"]), "balanced_sampling": Other(True)}
OWN["token_classification"] = {"labels": Other(["O", "B-x"])}
for _task, _weights in (("text_classification", {"odd": 2.0}), ("token_classification", "balanced")):
    OWN[_task] |= {"class_weights": Other(_weights), "new_head": Other(True), "neftune_noise_alpha": Other(5.0)}

REWARDS = '''
import time

from aligntune.rewards import reward


def letters(text: str, *, letter: str = "a") -> float:
    """Count a letter; `slow` takes a while, `boom` raises."""
    if letter == "slow":
        time.sleep(0.2)
    if letter == "boom":
        raise ValueError("boom")
    return float(text.count(letter))


def longer(text: str) -> float:
    return float(len(text))


@reward("ranged", range=(0, 50))
def ranged(text: str) -> float:
    """A score with a declared range."""
    return float(len(text))
'''

# ---- the configurations ---------------------------------------------------------------------------------------


CLASSIFIED = {"text_classification": "text", "token_classification": "tokens"}
PAIRED = ("dpo", "orpo", "cpo", "simpo")
"""Algorithms that learn from pairs."""


def rows_of(case: str, mark: str) -> list[dict[str, Any]]:
    """Five rows of each kind, with a column `other` that nothing uses unless it is mapped."""
    rows: list[dict[str, Any]] = []
    for i in range(5):
        question, answer = f"{mark} question {i}" + " again" * (i == 0), f"answer {i}"
        made: dict[str, Any] = {
            "chat_completion": {
                "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            },
            "text_generation": {"text": f"{question} {answer}"},
            "text_classification": {"text": question + " and on" * 8 * (i == 0), "label": ("even", "odd")[i % 3 % 2]},
            "token_classification": {"tokens": [mark + "a" * 60 * (i == 0), f"b{i}"], "tags": ["O", "B-x"]},
            "kto": {"prompt": question, "completion": answer, "label": i in (0, 2, 3)},
            **{name: {"prompt": question, "chosen": answer, "rejected": "no"} for name in PAIRED},
        }.get(case, {"prompt": question, "completion": answer})
        rows.append({**made, "other": f"other {i}"})
    return rows


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, tiny_model_plain: Path) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("knobs")
    (folder / "rewards.py").write_text(REWARDS, encoding="utf-8")
    found = {"folder": folder, "model": tiny_model, "plain": tiny_model_plain, "rewards": folder / "rewards.py"}
    found["map"] = MirrorMap.random(seed=1).save(folder / "map.safetensors")
    found["texts"] = folder / "texts.jsonl"
    found["texts"].write_text('{"text": "A text to measure."}\n', encoding="utf-8")
    for case in (*task_names(), *algorithm_names()):
        kinds = {"rows": rows_of(case, "a"), "more": rows_of(case, "b"), "held": rows_of(case, "c")}
        kinds["both"] = [
            {**row, "instruction": f"Do {i}.", "output": "Done.", "question": f"{i} + 1?", "answer": f"#### {i + 1}"}
            for i, row in enumerate(kinds["rows"])
        ]
        kinds["bad"], kinds["twice"] = kinds["rows"], kinds["rows"] + kinds["rows"][:1]
        for name, rows in kinds.items():
            found[f"{case}/{name}"] = folder / f"{case}-{name}.jsonl"
            found[f"{case}/{name}"].write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        with open(found[f"{case}/bad"], "a", encoding="utf-8") as file:
            file.write("no row\n")
    return found


@dataclasses.dataclass(frozen=True)
class Case:
    """One algorithm or task on one backend."""

    name: str
    backend: str
    places: dict[str, Any]

    @property
    def sft(self) -> bool:
        return self.name in task_names()

    @property
    def samples(self) -> bool:
        """Whether it learns from completions that it samples itself."""
        return not self.sft and get_algorithm(self.name).uses_rewards

    def fill(self, value: Any) -> Any:
        """Put paths and keys of this case in the place of `{held}` and the like."""
        if isinstance(value, dict):
            return {self.fill(k): self.fill(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self.fill(v) for v in value]
        if not isinstance(value, str) or not value.startswith("{"):
            return value
        name, _, rest = value.partition("}")
        name = name[1:]
        import torch

        gpu = torch.cuda.is_available()  # another value than the one that `auto` takes
        known = {
            "device": "cpu" if gpu else "cuda",
            "precision": "fp32" if gpu else "bf16",
            "other_backend": "trl" if self.backend == "unsloth" else "unsloth",
            "preset": "gsm8k" if self.name in ("instruction_following", "spin", "gkd") or self.samples else "alpaca",
            "mapped": {
                "chat_completion": "messages",
                "text_generation": "text",
                **CLASSIFIED,
                **dict.fromkeys(PAIRED, "chosen"),
            }.get(self.name, "prompt"),
        }
        if name in known:
            return known[name] + rest
        return (
            f"{self.places.get(f'{self.name}/{name}', self.places.get(name, value))}{rest}" if name.isalpha() else value
        )

    def key(self, key: str) -> str:
        return key.replace("@data", "dataset" if self.sft else "datasets.0")

    def raw(self, changes: dict[str, Any]) -> dict[str, Any]:
        """The plain values of a small run with some keys set."""
        model = {"name_or_path": str(self.places["model"]), "max_seq_length": 64}
        raw: dict[str, Any] = {
            "model": model,
            "backend": self.backend,
            "output_dir": str(self.places["folder"] / "out"),
        }
        rows = {"name": str(self.places[f"{self.name}/rows"])}
        raw |= (
            {"task": {"name": self.name}, "dataset": rows}
            if self.sft
            else {"algo": {"name": self.name}, "datasets": [rows]}
        )
        if self.samples:
            if self.name != "online_dpo":  # which has two
                raw["algo"]["num_generations"] = 4
            raw["rewards"] = [{"type": f"{self.places['rewards']}:letters"}]
            raw["generation"] = {"max_prompt_length": 50, "max_completion_length": 12}
        if self.name == "gkd":
            raw["algo"]["teacher"] = str(self.places["model"])
        if self.name == "meta_es":  # it measures its members there
            raw["evaluation"] = {"dataset": {"name": str(self.places["meta_es/held"])}}
        for key, value in changes.items():
            if key == "datasets" and self.sft:  # a supervised run has one source, so its weight must be refused
                continue
            set_key(raw, self.key(key), self.fill(value))
        return raw


def full_config(case: Case) -> Any:
    """A configuration of the case with every optional section present, so that all keys can be walked."""
    cls: Any = SFTConfig if case.sft else RLConfig
    data = DatasetConfig(name="x")
    own = (
        {"task": {"name": case.name}, "dataset": data}
        if case.sft
        else {"algo": {"name": case.name}, "datasets": [data]}
    )
    more = {} if case.sft else {"rewards": [RewardConfig(type="length")], "judge": JudgeConfig(model="m")}
    return cls(model={"name_or_path": "x", "peft": PeftConfig()}, evaluation={"dataset": data}, **own, **more)


def keys_of(case: Case) -> dict[str, Other]:
    """The rows of the table for every key of the case.

    Raises:
        KeyError: a key has no row.
    """
    data = "dataset." if case.sft else "datasets.0."
    found = {}
    for key, _ in walk(full_config(case)):
        section, _, rest = key.partition(".")
        if section in ("algo", "task"):
            found[key] = OWN[case.name][rest]
        else:
            generic = key.replace(data, "@data.", 1) if key.startswith(data) else key
            found[key] = KEYS[generic]
    return found


# ---- the probe ---------------------------------------------------------------------------------------------------


class Recorder:
    """Stands for the run folder; keeps what is appended."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.path = Path(tempfile.mkdtemp())

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *values: self.rows.append((name, plainly(values)))


def plainly(value: Any) -> Any:
    """Something that compares by value."""
    if is_section(value):
        return to_plain(value)
    if isinstance(value, dict):
        return {str(k): plainly(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plainly(v) for v in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


class Probe:
    """What a run would do. Each part is computed when it is asked for."""

    PARTS = (
        "made",
        "arguments",
        "plugged",
        "loaded",
        "data",
        "asked",
        "judged",
        "scored",
        "watched",
        "classified",
        "kept",
        "followed",
        "stopped",
    )

    def __init__(self, config: Any, patch: pytest.MonkeyPatch, hub_rows: Path) -> None:
        self.config, self.patch, self.hub_rows = config, patch, hub_rows
        self.calls: list[Any] = []

    def trainer(self) -> Any:
        from aligntune.core.backend_factory import create_trainer

        self._offer_hub()
        config = dataclasses.replace(self.config, isolation="auto", python=None)
        trainer = create_trainer(config)
        self.patch.setattr(trainer.backend, "prepare", self._prepare)
        return trainer

    def _prepare(self, config: Any) -> None:
        if config.backend == "unsloth":  # what it refuses; its import is in test_unsloth
            from aligntune.backends.unsloth.backend import _refuse_on_cpu, _refuse_on_gpu
            from aligntune.backends.unsloth.loading import uses_vllm

            (_refuse_on_gpu if uses_vllm(config) else _refuse_on_cpu)(config)

    def record(self, name: str, *values: Any) -> None:
        self.calls.append((name, plainly(values)))

    def made(self) -> Any:
        from aligntune.core.backend_factory import create_trainer
        from aligntune.core.process import ProcessTrainer

        trainer = create_trainer(self.config)
        made = type(trainer)
        return f"{made.__module__}.{made.__name__}", trainer._python() if isinstance(trainer, ProcessTrainer) else ""

    def arguments(self) -> Any:
        trainer = self.trainer()
        trainer._ready()
        values = trainer.arguments()
        trainer.backend.args_class(self.config.algorithm)  # the class that takes them exists
        return values

    def plugged(self) -> Any:
        """What the algorithm adds to the library's trainer is made with; the algorithm's own tests show its effect."""
        params = self.config.algorithm
        if isinstance(params, Preference):
            pairs = [(-3.0, 2, -4.0)], [(-6.0, 3, -5.0)]
            found = [params.keeps_reference(), params.implicit_reward(*pairs[0][0]), params.held_out_loss(*pairs)]
            named = isinstance(params, Referenced) and params.reference_config(self.config).model.name_or_path
            return [*found, named]
        if params.key in plugs.OUTPUTS:
            return plugs.OUTPUTS[params.key](self.config)
        make = getattr(params, "plugin", None)
        if make is None:
            return None
        made = make(self.config)
        return [type(made).__name__, {k: v for k, v in plainly(vars(made)).items() if " at 0x" not in str(v)}]

    def loaded(self) -> Any:
        """What the libraries' loaders are given; the model that comes back."""
        import peft
        import transformers

        self.calls = []
        models = ("CausalLM", "SequenceClassification", "TokenClassification")
        autos = [("model", getattr(transformers, f"AutoModelFor{name}")) for name in models]
        for label, owner in (*autos, ("tokenizer", transformers.AutoTokenizer)):
            real = owner.from_pretrained

            def spy(path: Any, *a: Any, _real: Any = real, _label: str = label, **k: Any) -> Any:
                self.record(_label, path, a, k)
                return _real(path, *a, **{x: y for x, y in k.items() if x not in ("revision", "trust_remote_code")})

            self.patch.setattr(owner, "from_pretrained", spy)
        adapt = peft.get_peft_model
        self.patch.setattr(
            peft, "get_peft_model", lambda m, c, **k: (self.record("adapters", c.to_dict(), k), adapt(m, c, **k))[1]
        )
        if self.config.backend == "unsloth":
            self._fake_unsloth()
        trainer = self.trainer()
        model, tokenizer = trainer.model, trainer.tokenizer
        return [self.calls, tokenizer.chat_template, tokenizer.padding_side, model.is_gradient_checkpointing]

    def _fake_unsloth(self) -> None:
        from aligntune.backends.unsloth import backend

        outer, folder = self, self.config.model.name_or_path

        class Fast:
            @staticmethod
            def from_pretrained(**given: Any) -> Any:
                from transformers import AutoModelForCausalLM, AutoTokenizer

                outer.record("unsloth", given)
                return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

            @staticmethod
            def get_peft_model(model: Any, **given: Any) -> Any:
                outer.record("unsloth adapters", given)
                return model

        real = backend.import_attribute
        self.patch.setattr(backend, "import_attribute", lambda n: Fast if n == "unsloth:FastLanguageModel" else real(n))

    def data(self) -> Any:
        """The rows as the library's trainer gets them, and what the hub is asked for."""
        self.calls = []
        if self.config.backend == "unsloth":
            self._fake_unsloth()
        trainer = self.trainer()
        train, held = trainer._train_rows(), trainer._eval_rows()
        return [self.calls, list(train.dataset), list(held.dataset) if held else None]

    def kept(self) -> Any:
        """How many entries a fresh data cache holds after the rows are prepared."""
        from aligntune.data import DatasetCache

        self.patch.setenv("ALIGNTUNE_CACHE", tempfile.mkdtemp(dir=self.hub_rows.parent))
        if self.config.backend == "unsloth":
            self._fake_unsloth()
        self.trainer()._train_rows()
        return len(DatasetCache().list())

    def _offer_hub(self) -> None:
        """Let every hub id be there, and record what is asked for."""
        import datasets

        def hub(name: str, *a: Any, **k: Any) -> Any:
            self.record("hub", name, a, k)
            rows = [json.loads(line) for line in self.hub_rows.read_text().splitlines()]
            return datasets.Dataset.from_list(rows)

        self.patch.setattr(datasets, "load_dataset", hub)

    def _measuring(self) -> Any:
        """A trainer whose generation and likelihood record what they are asked, instead of running the model."""
        from aligntune.core.sft import classification as labelling
        from aligntune.eval import classification, generation, likelihood

        self.calls = []
        real = classification.log_probabilities

        def chances(model: Any, ids: Any, pad: int, batch_size: int) -> Any:
            self.record("classify", len(ids), batch_size)
            return real(model, ids, pad, batch_size)

        for module in (labelling, classification):
            self.patch.setattr(module, "log_probabilities", chances)

        def texts(model: Any, tokenizer: Any, prompts: Any, **k: Any) -> Any:
            self.record("generate", len(prompts), k)
            return [["an answer"]] * len(prompts)

        def nll(model: Any, tokenizer: Any, rows: Any, *a: Any, **k: Any) -> Any:
            self.record("likelihood", len(rows), a, k)
            return [(1.0, 1)] * len(rows)

        self.patch.setattr(generation, "generate_texts", texts)
        self.patch.setattr(likelihood, "completion_nll", nll)
        self.patch.setattr(likelihood, "sequence_logprobs", nll)
        if self.config.backend == "unsloth":
            self._fake_unsloth()
        trainer = self.trainer()
        trainer._run = Recorder()
        return trainer

    def asked(self) -> Any:
        trainer = self._measuring()
        trainer.predict(["hello"]) if self.config.algorithm.head != "causal_lm" else trainer.generate(["hello"])
        if self.config.evaluation.dataset is not None or self.config.evaluation.tasks:
            self.record("measured", trainer.evaluate())
        return self.calls

    def classified(self) -> Any:
        """The labels of a classifier, its loss and its sampler."""
        trainer = self.trainer()
        if self.config.algorithm.head == "causal_lm":
            return None
        loss = self.config.algorithm.trainer_kwargs(trainer)["compute_loss_func"]
        hf = SimpleNamespace(compute_loss_func=loss, class_sampler=None, add_callback=lambda callback: None)
        self.config.algorithm.attach(hf, trainer)
        return [loss.weights, type(hf.class_sampler).__name__, trainer.labels.names]

    def judged(self) -> Any:
        """The judge that the rewards ask, and what it is made of; `test_judges` shows what each key does."""
        rewards = self.trainer().rewards
        judges = [getattr(c.reward, "judge", None) for c in rewards.components] if rewards is not None else []
        return [[type(j).__name__, to_plain(j.config)] for j in judges if j is not None]

    def scored(self) -> Any:
        """Scores of two answers by the run's rewards."""
        trainer = self.trainer()
        if trainer.rewards is None:
            return None
        columns = {"prompt": ["p", "p"], "other": ["other 1", "other 2"]}
        scores = trainer.rewards.score_batch(["banana", "eel"], columns)
        trained = trainer.rewards.score_batch(["banana", "eel"], columns, train=True).total
        return [scores.total, trained, scores.components, {k: v for k, v in scores.stats.items() if v}]

    def watched(self) -> Any:
        """What the callback does in four steps, and what reaches the run folder."""
        from aligntune.core.callbacks import Progress, StopRequest, make_callback

        trainer = self._measuring()
        trainer._train_rows()
        trainer._eval_rows()
        callback = make_callback(trainer, StopRequest(), Progress("x"))
        control = SimpleNamespace(should_save=False, should_training_stop=False)
        for step in (0, 1, 2, 3):
            state = SimpleNamespace(global_step=step, epoch=0.1, max_steps=4, is_world_process_zero=True)
            (callback.on_step_end if step else callback.on_train_begin)(None, state, control)
        if trainer._eval_data is not None:
            trainer.evaluate_now(4)
        if trainer.rewards is not None:
            scores = trainer.rewards.score_batch(["banana", "eel"], {"prompt": ["p", "p"]})
            record_rollouts(trainer, 0, ["p", "p"], ["banana", "eel"], {}, scores)
        return [self.calls, trainer._run.rows, vars(control), vars(trainer.state)]

    def stopped(self) -> Any:
        """When a run is stopped, whether it would go on with half a batch, and how it is shown."""
        from aligntune.core.exhaustion import can_halve
        from aligntune.core.live import progress_of
        from aligntune.core.stopping import request_of

        trainer = self.trainer()
        trainer._began = 0.0
        request = request_of(trainer)
        return [request._deadline, request.grace, can_halve(trainer), progress_of(trainer).mode]

    def followed(self) -> Any:
        """The events of a stream in which everything goes wrong, and what is asked of the library then."""
        from aligntune.core.following import Follower

        trainer = self.trainer()
        folder = Path(tempfile.mkdtemp(dir=self.hub_rows.parent))
        trainer._run = SimpleNamespace(path=folder, leads=True, update_manifest=lambda entries: None)
        follower = Follower(SimpleNamespace(), trainer)
        follower.collector.due = dict  # type: ignore[method-assign]
        for row in health_streams.everything_wrong():
            follower.row(row)
        control = SimpleNamespace(should_save=False, should_training_stop=False)
        follower.mark = lambda: None  # type: ignore[method-assign]
        follower.act(SimpleNamespace(global_step=240, max_steps=999), control)
        return [[(e.step, e.rule) for e in follower.monitor.events], vars(control)]


FIRST = {
    "judge": "judged",
    "model": "loaded",
    "@data": "data",
    "rewards": "scored",
    "evaluation": "asked",
    "logging": "watched",
    "health": "followed",
}


def outcome(case: Case, changes: dict[str, Any], part: str, patch: pytest.MonkeyPatch) -> Any:
    """The value of one part of the probe, or the refusal."""
    with patch.context() as local:
        try:
            config = build_config(case.raw(changes))
            return plainly(getattr(Probe(config, local, case.places[f"{case.name}/rows"]), part)())
        except AlignTuneError as error:
            return error


def refuses(error: AlignTuneError, key: str, value: Any) -> bool:
    """Whether an error speaks of this key, by its path, its last part, or the value that was given."""
    said = f"{error.message} {error.hint}"
    return key in said or key.rpartition(".")[2] in said or (isinstance(value, str) and value in said)


def fault(case: Case, key: str, other: Other, patch: pytest.MonkeyPatch, known: dict[Any, Any]) -> str | None:
    """None if the key has an effect or is refused; else what is wrong."""
    value = case.fill(other.value)
    first = FIRST.get(
        key.partition(".")[0]
        if key.startswith(("model", "rewards", "evaluation", "logging", "judge", "health"))
        else ""
    )
    if key.startswith(("dataset", "evaluation.dataset")):
        first = "data"
    if key in ("cache.enabled", "cache.max_gb"):
        first = "kept"
    if key in ("train.time_limit", "train.stop_grace", "train.auto_batch", "logging.display"):
        first = "stopped"
    for part in sorted(Probe.PARTS, key=lambda p: p != first):
        changed = outcome(case, {**other.needs, key: value}, part, patch)
        if isinstance(changed, AlignTuneError):
            if refuses(changed, key, value):
                return None
            return f"{key} = {value!r} fails for another reason: {changed}"
        at = (part, repr(other.needs))
        if at not in known:
            known[at] = outcome(case, other.needs, part, patch)
        before = known[at]
        if isinstance(before, AlignTuneError) or before != changed:
            return None
    return f"{key} = {value!r} changes nothing"


CASES = [(name, backend) for name in (*task_names(), *algorithm_names()) for backend in ("trl", "unsloth")]


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_no_key_is_dead(
    name: str, backend: str, places: dict[str, Any], monkeypatch: pytest.MonkeyPatch, pretend_unsloth: None
) -> None:
    case = Case(name, backend, places)
    known: dict[Any, Any] = {}
    faults = [f for key, other in keys_of(case).items() if (f := fault(case, key, other, monkeypatch, known))]
    assert not faults, "\n".join(faults)


@pytest.fixture
def pretend_unsloth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the factory find the packages of both backends."""
    from aligntune.core.backend import BackendInfo

    monkeypatch.setattr(BackendInfo, "available", True)


@pytest.mark.parametrize("name", [*task_names(), *algorithm_names()])
def test_every_key_has_a_row(name: str, places: dict[str, Any]) -> None:
    keys = keys_of(Case(name, "trl", places))
    assert len(keys) > 50
    cls = get_task(name) if name in task_names() else get_algorithm(name)
    assert set(OWN[name]) == {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]


def test_no_row_is_left_over(places: dict[str, Any]) -> None:
    used = set()
    for name in (*task_names(), *algorithm_names()):
        case = Case(name, "trl", places)
        data = "dataset." if case.sft else "datasets.0."
        used |= {k.replace(data, "@data.", 1) if k.startswith(data) else k for k in keys_of(case)}
    assert {k for k in KEYS if k not in used} == set()


def test_a_key_without_effect_is_refused_by_name(places: dict[str, Any]) -> None:
    for name, key, value in (
        ("dpo", "generation.temperature", 0.5),
        ("dpo", "logging.rollouts", False),
        ("grpo", "datasets.0.weight", 2.0),
        ("text_generation", "logging.samples", 2),
        ("instruction_following", "train.save_total_limit", 2),
    ):
        with pytest.raises(ConfigurationError, match=f"{key}: has no effect"):
            build_config(Case(name, "trl", places).raw({key: value}))


def test_the_probe_finds_a_dead_key(
    places: dict[str, Any], monkeypatch: pytest.MonkeyPatch, pretend_unsloth: None
) -> None:
    """The same walk, with keys that are made dead: one in the arguments, one in generation."""
    from aligntune.core import trainer as module

    real = module.trainer_arguments
    monkeypatch.setattr(module, "trainer_arguments", lambda c, **k: {**real(c, **k), "weight_decay": 0.0})
    monkeypatch.setattr(module.Trainer, "generate", lambda self, prompts, **k: ["x"] * len(prompts))
    case = Case("dpo", "trl", places)
    rows = keys_of(case)
    dead = [
        k
        for k in ("train.weight_decay", "evaluation.max_new_tokens", "train.max_grad_norm")
        if fault(case, k, rows[k], monkeypatch, {})
    ]
    assert dead == ["train.weight_decay", "evaluation.max_new_tokens"]
