"""Memory: what the run will take on each device, beside what the device has.

>>> memory(config, rows=None)[0].reason
'about 1.71 GB on the CPU of 23.1 GB: 0.28 weights, 0.28 gradients, 0.57 optimizer, 0.42 activations, 0.52 logits'

The model is `aligntune.utils.memory`; here a configuration becomes its setting, and the hardware is asked. Where either
is not known, that is said, and nothing is guessed.
"""

from __future__ import annotations

from typing import Any

from aligntune.algorithms.base import Schema
from aligntune.core.config.root import RunConfig
from aligntune.errors import AlignTuneError, first_line
from aligntune.preflight.settings import gigabytes
from aligntune.preflight.verdict import Verdict
from aligntune.utils.memory import Estimate, Setting, Shape, estimate, read_shape

MEASURED = ("dpo", "grpo")
"""Algorithms beside the supervised tasks whose estimate was held against peaks (`benchmarks/memory.py`)."""
TIGHT = 0.9
"""Share of a device's memory from which an estimate within 20% is no assurance."""


def setting_of(config: RunConfig, shape: Shape, *, device: str, precision: str, longest: int | None = None) -> Setting:
    """What of a configuration decides its memory.

    Args:
        config: the run.
        shape: its model's shape.
        device: "cpu", "cuda" or "mps".
        precision: "fp32", "bf16" or "fp16".
        longest: tokens of the longest row; None takes the limit.
    """
    t, params, model = config.train, config.algorithm, config.model
    batch, length = t.per_device_batch_size, model.max_seq_length
    if longest is not None:
        length = min(length, longest)
    generated = generated_length = 0
    logits = None
    if params.data is Schema.PROMPT:
        g = config.generation  # type: ignore[attr-defined]
        prompt = min(g.max_prompt_length, longest or g.max_prompt_length)
        length = generated_length = prompt + g.max_completion_length
        logits = g.max_completion_length + 1
        passes = params.schedule(config)[0] if hasattr(params, "schedule") else 1
        generated = 0 if g.use_vllm else batch * passes
    if params.data is Schema.PREFERENCE:
        batch *= 2
    keeps = getattr(params, "keeps_reference", None)
    reference = bool(keeps()) if keeps else bool(getattr(params, "beta", 0) and params.uses_rewards)
    return Setting(
        batch=batch,
        length=length,
        precision=precision,
        trained=shape.adapters(model.peft) if model.peft else None,
        quantization=model.quantization,
        optimizer=t.optimizer,
        checkpointing=t.gradient_checkpointing,
        reference=reference,
        generated=generated,
        generated_length=generated_length,
        logits=logits,
        device=device,
    )


def device_of(config: RunConfig) -> tuple[Any, str | None]:
    """The device manager and the precision; or None and what is missing."""
    from aligntune.utils.device import DeviceManager

    try:
        manager = DeviceManager(config.model.device)
        return manager, manager.precision(config.model.precision)
    except AlignTuneError as error:
        return None, error.message


def hardware(config: RunConfig) -> Verdict:
    """The device that the run will use, and its precision."""
    manager, precision = device_of(config)
    if manager is None:
        return Verdict("hardware", "config", "fail", str(precision), fix="set model.device and model.precision to auto")
    count = len(manager.summary().get("gpus", [])) or 1
    several = f", {count} of them" if count > 1 else ""
    said = f"{manager.name}{several}, {precision}, {manager.summary()['threads']} threads"
    return Verdict("hardware", "config", "pass", said, data={**manager.summary(), "precision": precision})


def shape(config: RunConfig) -> tuple[Shape | None, str]:
    """The model's shape, or None and why it is not known."""
    from aligntune.utils.model_source import find_source

    if config.algorithm.head != "causal_lm":
        return None, "the memory of classifiers is not modelled"
    try:
        source = find_source(config.model.name_or_path, config.model.revision)
        return read_shape(source.base, trust_remote_code=config.model.trust_remote_code), ""
    except AlignTuneError as error:
        return None, error.message
    except (OSError, ValueError, AttributeError) as error:
        return None, f"the model's config does not tell its shape ({first_line(error)})"


def memory(config: RunConfig, made: Shape | None, why: str, longest: int | None = None) -> Verdict:
    """The estimate as a verdict.

    Args:
        config: the run.
        made: its model's shape; None with `why` it is not known.
        longest: tokens of the longest row.
    """
    manager, precision = device_of(config)
    if made is None or manager is None:
        return Verdict("memory", "memory", "skip", why or "the device is not known")
    setting = setting_of(config, made, device=manager.device, precision=str(precision), longest=longest)
    said = estimate(made, setting)
    has, where = capacity(manager)
    evidence = _evidence(said, made, setting)
    if getattr(config, "rewards", None):
        evidence.append("not counted: models that rewards load")
    if getattr(config.algorithm, "data", None) is Schema.PROMPT and config.generation.use_vllm:  # type: ignore[attr-defined]
        evidence.append("not counted: vLLM, which takes generation.vllm_gpu_memory_utilization of each GPU")
    data = {**said.to_dict(), "capacity": has, "parameters": made.parameters, "setting": setting.__dict__}
    told = f"about {gigabytes(said.peak)} per device at its peak ({said.moment})"
    if has is None:
        told += f"; how much memory {where} has is not known"
        return Verdict("memory", "memory", "pass", told, evidence, data=data)
    told += f"; {where} has {gigabytes(has)}"
    measured = (config.kind == "sft" or config.algorithm.key in MEASURED) and manager.device == "cpu"
    if not measured:
        told_of = f"supervised runs, {', '.join(MEASURED)}"
        evidence.append(f"the estimate has been measured against {told_of} on the CPU only")
    if said.peak > (1 if measured else 2) * has:
        return Verdict("memory", "memory", "fail", told, evidence, _fix(said, setting), data)
    if said.peak > TIGHT * has:
        return Verdict("memory", "memory", "warn", told, evidence, _fix(said, setting), data)
    return Verdict("memory", "memory", "pass", told, evidence, data=data)


def capacity(manager: Any) -> tuple[int | None, str]:
    """Bytes that a device has for a run, and its name; None where the system does not tell."""
    if manager.device == "cuda":
        return min(gpu["memory_bytes"] for gpu in manager.summary()["gpus"]), manager.name
    if manager.device == "cpu":
        import psutil

        return int(psutil.virtual_memory().available), "this machine (free memory)"
    return None, manager.name


def _evidence(said: Estimate, made: Shape, setting: Setting) -> list[str]:
    parts = {
        name: getattr(said, name)
        for name in ("weights", "gradients", "optimizer", "activations", "logits", "reference", "cache")
    }
    trained = made.parameters if setting.trained is None else setting.trained
    return [
        ", ".join(f"{name} {gigabytes(size)}" for name, size in parts.items() if size),
        f"{made.parameters / 1e6:,.1f}M parameters, {trained / 1e6:,.1f}M trained; forward pass of {setting.batch} x "
        f"{setting.length} tokens in {setting.precision}; logits {setting.batch} x "
        f"{setting.logits or setting.length} x {made.vocabulary}",
    ]


def _fix(said: Estimate, setting: Setting) -> str:
    """What to change first: the largest part decides."""
    sizes = {
        "lower train.per_device_batch_size (and raise train.gradient_accumulation_steps)": said.logits,
        "set train.gradient_checkpointing=true, or lower model.max_seq_length": 0
        if setting.checkpointing
        else said.activations,
        "train adapters: model.peft={}": 0 if setting.trained is not None else said.optimizer + said.gradients,
        "set model.quantization=4bit": 0 if setting.trained is None else said.weights,
    }
    return max(sizes, key=lambda k: sizes[k])
