"""One table from the factories' keyword arguments and the short flags to dotted configuration keys.

>>> keywords_to_keys("rl", {"model_name": "gpt2", "beta": 0.1})
{'model.name_or_path': 'gpt2', 'algo.beta': 0.1}

A keyword that is not in the table may be a parameter of the algorithm (`epsilon_high`), or a dotted key with
`__` for the dot (`train__adam_beta1`); anything else is an error with the nearest name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_type_hints

from aligntune.algorithms.base import Kind, algorithm_names, get_algorithm, get_task, task_names
from aligntune.core.config.base import UNSET
from aligntune.core.config.root import RLConfig, SFTConfig
from aligntune.errors import ConfigurationError
from aligntune.registry import nearest

COMMON: dict[str, str] = {
    "model_name": "model.name_or_path",
    "model_revision": "model.revision",
    "max_seq_length": "model.max_seq_length",
    "precision": "model.precision",
    "device": "model.device",
    "quantization": "model.quantization",
    "trust_remote_code": "model.trust_remote_code",
    "chat_template": "model.chat_template",
    "lora_r": "model.peft.r",
    "lora_alpha": "model.peft.alpha",
    "lora_dropout": "model.peft.dropout",
    "lora_target_modules": "model.peft.target_modules",
    "dataset_name": "@data.name",
    "subset": "@data.subset",
    "split": "@data.split",
    "preset": "@data.preset",
    "data_format": "@data.format",
    "column_mapping": "@data.column_mapping",
    "prompt_template": "@data.prompt_template",
    "system_prompt": "@data.system_prompt",
    "max_samples": "@data.max_samples",
    "eval_dataset_name": "evaluation.dataset.name",
    "eval_split": "evaluation.dataset.split",
    "eval_steps": "evaluation.every",
    "eval_batch_size": "evaluation.batch_size",
    "num_epochs": "train.num_epochs",
    "max_steps": "train.max_steps",
    "batch_size": "train.per_device_batch_size",
    "gradient_accumulation_steps": "train.gradient_accumulation_steps",
    "learning_rate": "train.learning_rate",
    "lr_scheduler": "train.lr_scheduler",
    "optimizer": "train.optimizer",
    "weight_decay": "train.weight_decay",
    "warmup_steps": "train.warmup_steps",
    "warmup_ratio": "train.warmup_ratio",
    "max_grad_norm": "train.max_grad_norm",
    "gradient_checkpointing": "train.gradient_checkpointing",
    "seed": "train.seed",
    "save_steps": "train.save_steps",
    "logging_steps": "logging.steps",
    "report_to": "logging.report_to",
    "run_name": "logging.run_name",
    "backend": "backend",
    "isolation": "isolation",
    "output_dir": "output_dir",
}
RL_ONLY: dict[str, str] = {
    "algorithm": "algo.name",
    "rewards": "rewards",
    "temperature": "generation.temperature",
    "top_p": "generation.top_p",
    "top_k": "generation.top_k",
    "max_prompt_length": "generation.max_prompt_length",
    "max_completion_length": "generation.max_completion_length",
}
SFT_ONLY: dict[str, str] = {"task_type": "task.name"}
HANDLED = ("use_peft", "reward_functions", "reward_function_weights", "reward_model_name")


def keyword_table(kind: Kind) -> dict[str, str]:
    """Keyword to dotted key, for one kind of run."""
    data = "dataset" if kind == "sft" else "datasets.0"
    table = {**COMMON, **(SFT_ONLY if kind == "sft" else RL_ONLY)}
    return {k: v.replace("@data", data) for k, v in table.items()}


def keywords_to_keys(kind: Kind, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Map keyword arguments to dotted keys; those that are UNSET are left out.

    Raises:
        ConfigurationError: an argument that nobody knows (the nearest is named), or two that contradict.
    """
    given = {k: v for k, v in keywords.items() if v is not UNSET}
    table = keyword_table(kind)
    section_name = "task" if kind == "sft" else "algo"
    name = given.get("task_type" if kind == "sft" else "algorithm")
    own = _parameters(kind, name)
    keys: dict[str, Any] = {}
    for keyword, value in given.items():
        if keyword in HANDLED:
            continue
        if keyword in table:
            keys[table[keyword]] = value
        elif keyword in own:
            keys[f"{section_name}.{keyword}"] = value
        elif (dotted := keyword.replace("__", ".")) in dotted_keys(kind):
            keys[dotted] = value
        else:
            owners = [n for n in (*task_names(), *algorithm_names()) if keyword in _all_parameters(n)]
            if owners:
                raise ConfigurationError(
                    f"'{keyword}' is no parameter of {name or 'this run'}", hint=f"it belongs to {', '.join(owners)}"
                )
            known = [*table, *own, *(HANDLED if kind == "rl" else HANDLED[:1])]
            raise ConfigurationError(f"unknown argument '{keyword}'", hint=nearest(keyword, known))
    if kind == "rl":
        _reward_keywords(given, keys)
    elif set(given) & set(HANDLED[1:]):
        raise ConfigurationError("supervised runs have no rewards", hint="drop the rewards, or use create_rl_trainer")
    _peft_keywords(given, keys)
    order = sorted(keys, key=lambda k: not k.endswith(".name"))  # a name first: it clears old parameters
    return {k: keys[k] for k in order}


def _parameters(kind: Kind, name: Any) -> set[str]:
    """Parameters of the named algorithm, or of all when no name is given (a file may name it)."""
    get, names = (get_task, task_names) if kind == "sft" else (get_algorithm, algorithm_names)
    chosen = [str(name)] if name is not None else names()
    return {f.name for n in chosen for f in dataclasses.fields(get(n))}  # type: ignore[arg-type]


def _all_parameters(name: str) -> set[str]:
    """Parameters of a task or an algorithm, and for those with rollouts the keywords of rewards and generation."""
    cls = get_task(name) if name in task_names() else get_algorithm(name)
    own = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if cls.kind == "rl":
        own |= {"algorithm"}
    return own | ({*RL_ONLY, *HANDLED[1:]} if cls.uses_rewards else set())


def _reward_keywords(given: Mapping[str, Any], keys: dict[str, Any]) -> None:
    _function_keywords(given, keys)
    if (path := given.get("reward_model_name")) is not None:
        model = {"type": "reward_model", "params": {"path": str(path)}}
        listed = keys.get("rewards", [])
        keys["rewards"] = [*(listed if isinstance(listed, (list, tuple)) else [listed]), model]


def _function_keywords(given: Mapping[str, Any], keys: dict[str, Any]) -> None:
    functions = given.get("reward_functions")
    weights = given.get("reward_function_weights")
    if functions is None:
        if weights is not None:
            raise ConfigurationError("reward_function_weights needs reward_functions", hint="name the functions")
        return
    if "rewards" in keys:
        raise ConfigurationError("both rewards and reward_functions are given", hint="keep `rewards`")
    weights = [1.0] * len(functions) if weights is None else weights
    if len(weights) != len(functions):
        raise ConfigurationError(
            f"{len(functions)} reward_functions have {len(weights)} weights", hint="give one weight for each"
        )
    keys["rewards"] = [{"type": f, "weight": w} for f, w in zip(functions, weights, strict=True)]


def _peft_keywords(given: Mapping[str, Any], keys: dict[str, Any]) -> None:
    use = given.get("use_peft", UNSET)
    lora = [k for k in keys if k.startswith("model.peft.")]
    if use is False:
        if lora:
            raise ConfigurationError("use_peft is False, but LoRA arguments are given", hint="drop one of the two")
        keys["model.peft"] = None
    elif use is True and not lora:
        keys["model.peft"] = {}


def dotted_keys(kind: Kind) -> set[str]:
    """Every dotted key of a run configuration, without the algorithm's own and list items."""
    keys: set[str] = set()

    def descend(cls: Any, prefix: str) -> None:
        for name, hint in get_type_hints(cls).items():
            if name in ("algo", "task", "kind") or name.startswith("_"):
                continue
            inner = next((t for t in (hint, *getattr(hint, "__args__", ())) if dataclasses.is_dataclass(t)), None)
            if inner is not None and "list" not in str(hint):
                descend(inner, f"{prefix}{name}.")
            else:
                keys.add(f"{prefix}{name}")

    descend(SFTConfig if kind == "sft" else RLConfig, "")
    return keys
