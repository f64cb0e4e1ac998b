"""From a configuration to the values of the trainer's configuration class: one function, every value explicit.

Backends change defaults (Unsloth: learning rate, batch size, seed, optimizer ...), so "the same configuration" is only
true where nothing is left to them. The result is plain data, which `--dry-run` prints and tests compare.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from aligntune.core.config.root import RunConfig


def library_arguments(kind: type, values: dict[str, Any]) -> Any:
    """An object of the trainer's configuration class.

    Newer Transformers call checkpointing of activations otherwise and warn of the name that all versions take; nobody
    who runs a file can act on that.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`gradient_checkpointing", category=FutureWarning)
        return kind(**values)


def common_arguments(config: RunConfig, *, device: str, precision: str, output_dir: str) -> dict[str, Any]:
    """Values of Transformers' `TrainingArguments` that every algorithm takes.

    Args:
        config: the resolved configuration.
        device: "cpu", "cuda" or "mps".
        precision: "fp32", "bf16" or "fp16".
        output_dir: the run folder.
    """
    t = config.train
    return {
        "output_dir": output_dir,
        "learning_rate": t.learning_rate,
        "num_train_epochs": t.num_epochs,
        "max_steps": t.max_steps or -1,
        "per_device_train_batch_size": t.per_device_batch_size,
        "per_device_eval_batch_size": config.evaluation.batch_size,
        "gradient_accumulation_steps": t.gradient_accumulation_steps,
        "warmup_steps": t.warmup_ratio or t.warmup_steps,  # a value below 1 is a share of all steps
        "lr_scheduler_type": t.lr_scheduler,
        "optim": t.optimizer,
        "weight_decay": t.weight_decay,
        "adam_beta1": t.adam_beta1,
        "adam_beta2": t.adam_beta2,
        "adam_epsilon": t.adam_epsilon,
        "max_grad_norm": t.max_grad_norm,
        "gradient_checkpointing": t.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if t.gradient_checkpointing else None,
        "seed": t.seed,
        "data_seed": t.seed,
        "save_strategy": "steps" if t.save_steps else "no",
        "save_steps": t.save_steps or 500,
        "save_total_limit": t.save_total_limit,
        "logging_strategy": "steps",
        "logging_steps": config.logging.steps,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # a NaN loss must be seen, not averaged away
        "report_to": list(config.logging.report_to) or "none",
        "run_name": config.logging.run_name or Path(config.output_dir).name,
        "eval_strategy": "no",  # evaluation is ours: token-weighted, and the same for every algorithm
        "dataloader_num_workers": t.dataloader_workers,
        "dataloader_pin_memory": device == "cuda",
        "bf16": precision == "bf16",
        "fp16": precision == "fp16",
        "use_cpu": device == "cpu",
        "disable_tqdm": True,
        "auto_find_batch_size": False,
        "label_smoothing_factor": 0.0,
        "use_liger_kernel": False,
        "torch_compile": False,
        "dataloader_drop_last": False,
        "router_aux_loss_coef": None,  # a mixture of experts keeps its own coefficient; Unsloth's default is 0
    }


def trainer_arguments(config: RunConfig, *, device: str, precision: str, output_dir: str) -> dict[str, Any]:
    """All values for the trainer's configuration class: the common ones and the algorithm's own."""
    common = common_arguments(config, device=device, precision=precision, output_dir=output_dir)
    if config.algorithm.args in ("transformers:TrainingArguments", "trl:RewardConfig"):
        del common["router_aux_loss_coef"]  # a setting of TRL's trainers of causal models
    return {**common, **config.algorithm.arguments(config)}
