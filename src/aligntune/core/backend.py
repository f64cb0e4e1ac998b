"""What a backend is, and the table of those that exist, without importing any of them.

A backend says how the process is prepared, how a model is loaded, and where trainer classes come from. The trainers
themselves are written once, above. `BACKENDS` is the one place that lists them.
"""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aligntune.core.config.sections import GenerationConfig
from aligntune.core.fingerprint import fingerprint
from aligntune.errors import ConfigurationError, EnvironmentError
from aligntune.registry import import_attribute, nearest

if TYPE_CHECKING:
    from aligntune.algorithms.base import AlgorithmParams
    from aligntune.core.config.root import RunConfig


class BackendType(StrEnum):
    """The training stacks."""

    TRL = "trl"
    UNSLOTH = "unsloth"


class TrainingType(StrEnum):
    """The two kinds of run."""

    SFT = "sft"
    RL = "rl"


class Backend(ABC):
    """How one training stack prepares a process, loads models and supplies trainer classes."""

    name: str

    @abstractmethod
    def prepare(self, config: RunConfig) -> None:
        """Make the process ready: environment, guards, import order.

        Raises:
            EnvironmentError: a package is missing, or another backend was imported first.
        """

    def check(self, config: RunConfig) -> None:  # noqa: B027  a backend may have nothing to refuse
        """Refuse what `prepare` would refuse on this machine, without importing the stack (for a dry run).

        Raises:
            ConfigurationError: a setting that this backend cannot keep here.
        """

    @abstractmethod
    def load_model(self, config: RunConfig) -> Any:
        """Model and tokenizer as `aligntune.utils.Loaded`, with adapters applied."""

    def load_classifier(self, config: RunConfig, labels: Sequence[str]) -> Any:
        """Model with a classification head and tokenizer as `aligntune.utils.Loaded`: a plain Transformers model.

        The same on every backend: Unsloth's CPU loader ignores the number of labels and gives a causal model.

        Args:
            config: the run; `config.algorithm.head` says which head.
            labels: the label list, in the order of the head's outputs.
        """
        t = config.train
        loader = import_attribute(CLASSIFIER)(
            config.model,
            head=config.algorithm.head,
            labels=labels,
            new_head=getattr(config.algorithm, "new_head", False),
            training=True,
            seed=t.seed,
            gradient_checkpointing=t.gradient_checkpointing,
        )
        return loader.load()

    def trainer_class(self, params: AlgorithmParams) -> type:
        """The class that trains this algorithm, after `prepare`: TRL's, or what the backend has put in its place."""
        return import_attribute(params.trainer)  # type: ignore[no-any-return]

    def args_class(self, params: AlgorithmParams) -> type:
        """Its configuration class, after `prepare`."""
        return import_attribute(params.args)  # type: ignore[no-any-return]

    def arguments(self, config: RunConfig) -> dict[str, Any]:
        """Values of the trainer's configuration that belong to the backend."""
        return {}

    def per_token_logps(self, model: Any, inputs: dict[str, Any], temperature: float) -> Any:
        """Log-probabilities of the completion's tokens from a forward pass of our own, (B, T), with gradient.

        For losses that need them where the training library shows none.

        Args:
            model: the policy.
            inputs: prompt_ids, prompt_mask (B, P), completion_ids, completion_mask (B, T).
            temperature: the sampling temperature, by which logits are divided.
        """
        import torch

        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        kept = inputs["completion_ids"].shape[1]
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -kept - 1 : -1] / temperature
        logps = logits.float().log_softmax(-1)
        return logps.gather(-1, inputs["completion_ids"].unsqueeze(-1)).squeeze(-1)

    def save_merged(self, config: RunConfig, model: Any, tokenizer: Any, folder: Path) -> None:
        """Write base model and adapters as one 16-bit model (`aligntune.core.merging`).

        Args:
            config: the run.
            model: with the trained adapters.
            tokenizer: goes beside the weights.
            folder: to write to; it is not there yet.

        Raises:
            EnvironmentError: this machine cannot do it.
        """
        import_attribute(MERGE)(config, model, tokenizer, folder)

    def fingerprint(self) -> dict[str, Any]:
        """The fingerprint of the loaded training code, once the classes are loaded.

        Raises:
            EnvironmentError: code of another backend stands where this one's should.
        """
        return fingerprint()


@dataclass(frozen=True)
class BackendInfo:
    """One row of the table.

    Attributes:
        name: what `backend:` says.
        implementation: lazy name of the class.
        package: the import name whose presence makes it available.
        install: the command that installs it.
        inert: dotted keys that it does not read, with the reason.
        prefix: how its trainer classes are named (`TRLDPOTrainer`).
        notes: what a user should know about single algorithms and tasks on it.
    """

    name: str
    implementation: str
    package: str
    install: str
    prefix: str
    inert: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def available(self) -> bool:
        """Whether the package is installed; nothing is imported."""
        try:
            return importlib.util.find_spec(self.package) is not None
        except (ImportError, ValueError):
            return False


CLASSIFIER = "aligntune.utils.classifier_loader:ClassifierLoader"  # a lazy name, because the loader stands higher
MERGE = "aligntune.core.merging:merge_again"
PLAIN_MODEL = (
    "trains a plain Transformers model, without Unsloth's kernels: its CPU loader ignores the number of labels"
)

VLLM_READ = (
    "vllm_gpu_memory_utilization", "vllm_importance_sampling_correction", "vllm_importance_sampling_mode",
    "vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min",
)  # fmt: skip
"""Keys of vLLM that Unsloth reads: the first when it loads the model, the others in its GRPO trainer."""
REBOUND = (
    "trl:SFTTrainer", "trl:DPOTrainer", "trl:KTOTrainer", "trl:RLOOTrainer", "trl:GRPOTrainer", "trl:RewardTrainer",
)  # fmt: skip
"""Trainers that Unsloth 2026.10.9 replaces by generated ones on a GPU (read in its GPU-shaped process; a test does)."""
BACKENDS: dict[str, BackendInfo] = {
    "trl": BackendInfo(
        name="trl",
        implementation="aligntune.backends.trl.backend:TRLBackend",
        package="trl",
        install="pip install trl==1.14.2",
        prefix="TRL",
    ),
    "unsloth": BackendInfo(
        name="unsloth",
        implementation="aligntune.backends.unsloth.backend:UnslothBackend",
        package="unsloth",
        install="pip install --no-deps unsloth==2026.10.9 unsloth_zoo==2026.10.9",
        prefix="Unsloth",
        inert={
            "model.device": "Unsloth chooses the device itself",
            "model.attn_implementation": "Unsloth chooses its own attention kernels",
            **{
                f"generation.{f.name}": "Unsloth keeps vLLM inside its own model, which decides this"
                for f in fields(GenerationConfig)  # type: ignore[arg-type]
                if f.name.startswith("vllm_") and f.name not in VLLM_READ
            },
        },
        notes=dict.fromkeys(("text_classification", "token_classification"), PLAIN_MODEL),
    ),
}


def get_backend(name: str) -> Backend:
    """An instance of the backend called `name`; its training stack is not imported yet.

    Raises:
        ConfigurationError: unknown name.
        EnvironmentError: its package is not installed; the hint is the install command.
    """
    if name not in BACKENDS:
        raise ConfigurationError(f"unknown backend '{name}'", hint=nearest(name, BACKENDS))
    info = BACKENDS[name]
    if not info.available:
        other = next(b for b in BACKENDS if b != name)
        raise EnvironmentError(
            f"backend '{name}' needs the package '{info.package}', which is not installed",
            hint=f"run `{info.install}`, or set `backend: {other}`",
        )
    return import_attribute(info.implementation)()  # type: ignore[no-any-return]
