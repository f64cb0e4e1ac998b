"""What Unsloth's `FastLanguageModel` is given: every value explicit, because its defaults are others.

    model, tokenizer = FastLanguageModel.from_pretrained(**load_arguments(config, dtype))
    model = FastLanguageModel.get_peft_model(model, **adapter_arguments(config))

| key | argument | Unsloth's default |
|---|---|---|
| `model.quantization: 4bit` | `load_in_4bit` | True |
| `model.quantization: 8bit` | `load_in_8bit` | False |
| none, with `model.peft` | `load_in_16bit` | False |
| none, without `model.peft` | `full_finetuning`, `float32_mixed_precision` | False, None: all in bf16 |
| `train.gradient_checkpointing` | `use_gradient_checkpointing` | "unsloth" |
| `train.seed` | `random_state` | 3407 |
| `generation.use_vllm` | `fast_inference`, `gpu_memory_utilization`, `max_lora_rank` | False, 0.5, 64 |

Source: `FastLanguageModel` of Unsloth 2026.10.9 (`unsloth/models/loader.py`). vLLM and 8-bit weights have not been run.
"""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

from aligntune.core.backend import BACKENDS
from aligntune.core.config.root import RunConfig
from aligntune.errors import EnvironmentError

RETURNED = {"UNSLOTH_RETURN_HIDDEN_STATES": "0", "UNSLOTH_RETURN_LOGITS": "1"}
"""Variables that its forward pass reads; its GRPO trainer sets the first to 1 while it computes a loss."""


def uses_vllm(config: RunConfig) -> bool:
    """Whether completions are sampled with vLLM."""
    generation = getattr(config, "generation", None)
    return bool(generation is not None and generation.use_vllm)


def load_arguments(config: RunConfig, dtype: Any) -> dict[str, Any]:
    """Arguments of `FastLanguageModel.from_pretrained`.

    Args:
        config: the run.
        dtype: of the frozen weights and of the forward pass, a torch dtype.
    """
    m, train = config.model, config.train
    whole = m.peft is None
    found = {
        "model_name": m.name_or_path,
        "revision": m.revision,
        "max_seq_length": m.max_seq_length,
        "dtype": dtype,
        "load_in_4bit": m.quantization == "4bit",
        "load_in_8bit": m.quantization == "8bit",
        "load_in_16bit": m.quantization is None and not whole,
        "full_finetuning": whole,
        "float32_mixed_precision": True,  # trained weights are kept in fp32, as on TRL
        "trust_remote_code": m.trust_remote_code,
        "use_gradient_checkpointing": train.gradient_checkpointing,
        "random_state": train.seed,
        "fast_inference": uses_vllm(config),
    }
    if uses_vllm(config):
        found["gpu_memory_utilization"] = config.generation.vllm_gpu_memory_utilization  # type: ignore[attr-defined]
        found["max_lora_rank"] = m.peft.r if m.peft else 64
    return found


def adapter_arguments(config: RunConfig) -> dict[str, Any]:
    """Arguments of `FastLanguageModel.get_peft_model`; empty where all weights are trained."""
    peft = config.model.peft
    if peft is None:
        return {}
    return {
        "r": peft.r,
        "lora_alpha": peft.alpha,
        "lora_dropout": peft.dropout,
        "target_modules": peft.target_modules,
        "modules_to_save": peft.modules_to_save,
        "use_rslora": peft.use_rslora,
        "use_dora": peft.use_dora,  # reaches PEFT's LoraConfig; its fused kernels step aside for it
        "bias": "none",
        "use_gradient_checkpointing": config.train.gradient_checkpointing,
        "random_state": config.train.seed,
        "max_seq_length": config.model.max_seq_length,
    }


OPTIONAL = ("load_in_16bit", "float32_mixed_precision", "random_state")
"""Arguments that the CPU backend does not name, because they mean nothing there."""


def accepted(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that this release of Unsloth names; one that it does not would go on to Transformers, or nowhere.

    Args:
        function: `FastLanguageModel.from_pretrained`.
        arguments: what it is to get.

    Raises:
        EnvironmentError: it lacks one that matters.
    """
    named = {
        name
        for name, p in inspect.signature(function).parameters.items()
        if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    }
    if not named:
        return arguments  # wrapped in a way that hides its parameters
    unknown = sorted(name for name in arguments if name not in named and name not in OPTIONAL)
    if unknown:
        raise EnvironmentError(
            f"this release of Unsloth does not take {', '.join(unknown)}",
            hint=f"install the tested one (`{BACKENDS['unsloth'].install}`), or set `backend: trl`",
        )
    return {name: value for name, value in arguments.items() if name in named}


@contextlib.contextmanager
def returning_logits() -> Iterator[None]:
    """Make Unsloth's forward pass return logits in the block, whatever its trainer has asked for."""
    before = {name: os.environ.get(name) for name in RETURNED}
    os.environ.update(RETURNED)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
