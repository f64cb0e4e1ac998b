"""Refusals around the library's trainer: a missing package, values that it changed, a wrong reference model.

>>> check_values(SFTConfig(learning_rate=1e-4), {"learning_rate": 5e-5})
TrainingError: the training library changed settings: learning_rate: 5e-05 became 0.0001

Source: the libraries change settings and reload the reference model without a word (measured with TRL 1.14 and Unsloth
2026.10). It does not check what a configuration alone shows (`core.config.io.resolve`).
"""

from __future__ import annotations

import importlib.util
from typing import Any

from aligntune.core.config.root import RunConfig
from aligntune.errors import ConfigurationError, EnvironmentError, TrainingError

SERVICES = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}
"""Logging service to the packages of which one must be there (Transformers)."""


def check_config(config: Any, name: str) -> None:
    """Refuse what is no loaded configuration.

    Args:
        config: what was given.
        name: of the class that takes one.

    Raises:
        ConfigurationError: it is something else.
    """
    if not isinstance(config, RunConfig):
        raise ConfigurationError(
            f"{name} takes a configuration, and this is {type(config).__name__}",
            hint="load one with load_config(...), or call create_trainer(...), which takes paths and mappings too",
        )


def check_packages(config: RunConfig) -> None:
    """Refuse settings whose package is not installed, before anything is loaded or written.

    Raises:
        EnvironmentError: names the key, the package and the command that installs it.
    """
    wanted = {f"logging.report_to: {s}": SERVICES[s] for s in config.logging.report_to}
    if "8bit" in config.train.optimizer:
        wanted[f"train.optimizer: {config.train.optimizer}"] = ("bitsandbytes",)
    generation = getattr(config, "generation", None)
    if generation is not None and generation.use_vllm:
        wanted["generation.use_vllm: true"] = ("vllm",)
    for key, packages in wanted.items():
        if not any(importlib.util.find_spec(package) for package in packages):
            raise EnvironmentError(
                f"`{key}` needs the package '{packages[0]}', which is not installed",
                hint=f"run `pip install {packages[0]}`, or change {key.partition(':')[0]}",
            )


def check_values(args: Any, values: dict[str, Any]) -> None:
    """Refuse to train where the library has changed a value that we sent.

    Raises:
        TrainingError: names each value with what was sent and what stands there now.
    """
    changed = []
    for key, sent in values.items():
        now: Any = getattr(args, key, None)
        now = getattr(now, "value", now)
        same = now == sent or (key == "report_to" and list(now or []) in ([], [sent], sent)) or (sent is None)
        if not same and key not in ("save_steps", "gradient_checkpointing_kwargs"):
            changed.append(f"{key}: {sent!r} became {now!r}")
    if changed:
        raise TrainingError(
            "the training library changed settings: " + "; ".join(changed),
            hint="set these keys to the values that it uses, or choose the other backend",
            context={"changed": changed},
        )


def check_reference(hf: Any) -> None:
    """Refuse to train against a reference model that differs from the starting model (TRL reloads it by name).

    Raises:
        TrainingError: names the first weight that differs.
    """
    reference = getattr(hf, "ref_model", None)
    if reference is None:
        return
    import torch

    start = dict(hf.accelerator.unwrap_model(hf.model).named_parameters())
    for name, weight in hf.accelerator.unwrap_model(reference).named_parameters():
        mine = start.get(name)
        if mine is None or mine.shape != weight.shape or not torch.equal(mine.to(weight.dtype), weight.to(mine.device)):
            raise TrainingError(
                f"the reference model differs from the starting model in {name}",
                hint="train from a folder or hub revision that holds exactly these weights",
            )
