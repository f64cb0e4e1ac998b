"""A small configuration for every algorithm and task that AlignTune has, on the models and data of the suite."""

from __future__ import annotations

from pathlib import Path

from gpu import models
from gpu.record import Settings, Values

SUPERVISED = {
    "instruction_following": "sft",
    "chat_completion": "chat",
    "text_generation": "text",
    "text_classification": "labels",
    "token_classification": "tags",
}
"""Task to the kind of its rows."""
ROWS = {**dict.fromkeys(("dpo", "orpo", "cpo", "simpo"), "pairs"), "kto": "judged", "gkd": "sft", "spin": "sft"}
"""Algorithm to the kind of its rows; all others sample answers to prompts."""
OWN: dict[str, Values] = {
    "meta_es": {"iterations": 1, "population": 2, "steps": 2, "num_generations": 4},
    "spin": {"rounds": 1},
    "gkd": {"lmbda": 0.5},
    "ppo": {},
    "online_dpo": {},
    "reinforce_pp": {},
}
"""Parameters that make an algorithm short, or that it has in place of `num_generations`."""
LORA = {"r": 16, "alpha": 32}


def names() -> list[str]:
    """All tasks and algorithms."""
    from aligntune.algorithms.base import algorithm_names, task_names

    return [*task_names(), *algorithm_names()]


def samples(name: str) -> bool:
    """Whether an algorithm samples answers."""
    return name not in SUPERVISED and name not in ROWS


def config(
    name: str,
    settings: Settings,
    folder: Path,
    *,
    backend: str,
    steps: int = 4,
    batch: int = 8,
    precision: str | None = None,
    peft: Values | None = LORA,
    **sections: Values,
) -> Values:
    """Plain values of a run.

    Args:
        name: an algorithm or task.
        settings: of the suite.
        folder: of the model.
        backend: trl or unsloth.
        steps: of the optimizer.
        batch: sequences in a forward pass.
        precision: None takes bf16 on a GPU and fp32 without one.
        peft: of adapters; None trains all weights.
        sections: entries that are laid over the sections of the same names.
    """
    files = models.data(settings)
    values: Values = {
        "backend": backend,
        "model": {
            "name_or_path": str(folder),
            "max_seq_length": 128,
            "precision": precision or ("fp32" if settings.cpu else "bf16"),
            "peft": peft,
        },
        "train": {"max_steps": steps, "per_device_batch_size": batch, "learning_rate": 1e-4, "seed": 3},
        "logging": {"steps": 1},
    }
    if name in SUPERVISED:
        values |= {"task": {"name": name}, "dataset": {"name": str(files[SUPERVISED[name]])}}
    elif samples(name):
        values |= {
            "algo": {"name": name, **OWN.get(name, {"num_generations": 4})},
            "datasets": [{"name": str(files["rl"])}],
            "rewards": [{"type": "math_correctness"}, {"type": "length", "weight": 0.1}],
            "generation": {"max_prompt_length": 40, "max_completion_length": 24},
        }
        if name == "meta_es":  # it measures its members there
            values["evaluation"] = {"dataset": {"name": str(files["test"]), "max_samples": 8}, "max_new_tokens": 24}
    else:
        values |= {"algo": {"name": name, **OWN.get(name, {})}, "datasets": [{"name": str(files[ROWS[name]])}]}
        if name == "gkd":
            values["algo"]["teacher"] = str(folder)
        if name in ("gkd", "spin"):
            values["generation"] = {"max_completion_length": 24}
    for section, changes in sections.items():
        values[section] = {**values.get(section, {}), **changes}
    return values
