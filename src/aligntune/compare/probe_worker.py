"""One side of the parity probe: the first loss of a run, its gradient and its log-probabilities, in this process.

    python -m aligntune.compare.probe_worker < request.json     # {"config": ..., "bare": false, "folder": ...}

The run's trainer is built as `train` builds it, and gives its own loss on its own first batch. Policy optimisation
samples that batch, so it gets completions and advantages made by hand, which pass through the algorithm's own hooks.
`bare` builds the library's class alone, with the same arguments and none of our subclasses, hooks and token rows.

Every trained weight is moved a little first, by noise that its name decides: adapters start at no effect and a policy
at its reference, where many faults cannot be seen. Dropout is off. Nothing is trained or saved, no reward is called.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from aligntune.compare.probe_bare import bare_refusal, bare_trainer
from aligntune.core.config.io import build_config
from aligntune.core.config.root import RunConfig
from aligntune.errors import AlignTuneError, ConfigurationError
from aligntune.utils.logging import quiet_libraries

NUDGE = 0.02
"""Size of the noise, as a share of each weight's root mean square."""
LONGEST = 64
"""Most tokens of a prompt or completion that is made by hand."""
IGNORED = -100
REFERENCES = ("ref_model", "teacher", "teacher_model")
"""Attributes that hold the model which a loss compares with."""


def measure(config: RunConfig, folder: Path, *, bare: bool = False) -> dict[str, Any]:
    """Measure one side, and write its arrays.

    Args:
        config: a resolved configuration; its backend is prepared in this process.
        folder: gets `gradient.safetensors` (one tensor for each trained weight, fp32) and `batch.safetensors`:
            ids, trained, attended, logps and, where there is one, reference, each (B, T).
        bare: build the library's class without anything of ours.

    Returns:
        loss, metrics, class, precision, starting weights (norm and a projection of each), sizes and notes.

    Raises:
        AlignTuneError: the run could not be built.
        ConfigurationError: the algorithm has no single loss, or none that a bare library has.
    """
    import torch
    from safetensors.torch import save_file

    hf, run = _build(config, bare)
    model = hf.model = hf.accelerator.prepare_model(hf.model)  # mixed precision is part of it
    _no_dropout(model)
    start = _describe_weights(model)
    _nudge(model)
    model.train()
    hf.current_gradient_accumulation_steps = hf.args.gradient_accumulation_steps
    made = config.kind == "rl" and config.algorithm.uses_rewards
    inputs, items = _made_batch(hf, run, bare) if made else _own_batch(hf)
    arrays = _read(hf, model, inputs)
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)
    with hf.compute_loss_context_manager():
        loss = hf.compute_loss(model, inputs, num_items_in_batch=items)
    loss.backward()
    gradient = {
        _plain_name(name): p.grad.detach().float().cpu().contiguous()
        for name, p in model.named_parameters()
        if p.requires_grad and p.grad is not None
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(gradient, folder / "gradient.safetensors")
    save_file({k: v.detach().cpu().contiguous() for k, v in arrays.items()}, folder / "batch.safetensors")
    return {
        "loss": float(loss.detach()),
        "metrics": {k: sum(v) / len(v) for k, v in getattr(hf, "_metrics", {}).get("train", {}).items() if v},
        "class": f"{type(hf).__module__}.{type(hf).__qualname__}",
        "precision": run.precision,
        "weights": start,
        "sizes": _sizes(hf, arrays),
        "notes": run.trainer.notes,
    }


class _Run:
    """What `_build` made beside the library's trainer."""

    def __init__(self, trainer: Any, precision: str) -> None:
        self.trainer, self.precision = trainer, precision


def _build(config: RunConfig, bare: bool) -> tuple[Any, _Run]:
    from aligntune.core.backend_factory import create_trainer
    from aligntune.core.callbacks import Progress
    from aligntune.core.stopping import StopRequest
    from aligntune.utils.device import DeviceManager
    from aligntune.utils.run_folder import RunFolder

    params = config.algorithm
    if params.driver:
        raise ConfigurationError(
            f"{params.key} trains in several rounds and has no single loss to probe",
            hint="probe the algorithm of its rounds: dpo for spin, grpo for meta_es",
        )
    if bare and (reason := bare_refusal(config)):
        raise ConfigurationError(reason, hint="probe without the bare library")
    trainer = create_trainer(config)
    trainer._train_rows()
    trainer._load()
    trainer._run = RunFolder.claim(config.output_dir)  # in the probe's folder, for what the run's hooks write
    precision = DeviceManager(config.model.device).precision(config.model.precision)
    with quiet_libraries():
        hf = bare_trainer(trainer) if bare else trainer._build(StopRequest(), Progress(""))
    return hf, _Run(trainer, precision)


# ---- weights ---------------------------------------------------------------------------------------------------


def _plain_name(name: str) -> str:
    """A weight's name without what wrappers put before it."""
    for prefix in ("module.", "_orig_mod.", "_fsdp_wrapped_module."):
        name = name.replace(prefix, "")
    return name


def _noise(name: str, like: Any) -> Any:
    """Normal noise of a weight's shape, the same on every machine."""
    import torch

    seed = int.from_bytes(hashlib.sha256(_plain_name(name).encode()).digest()[:6], "big")
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=draw, dtype=torch.float32).to(like.device)


def _describe_weights(model: Any) -> dict[str, list[float]]:
    """Norm and projection onto fixed noise of every trained weight, in float64 sums."""
    found = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            values = p.detach().float()
            projected = float((values * _noise(name, p)).double().sum())
            found[_plain_name(name)] = [float(values.double().norm()), projected]
    return found


def _nudge(model: Any) -> None:
    """Move every trained weight a little; LoRA matrices, whose start is a draw, are set."""
    import torch

    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.requires_grad:
                continue
            noise = _noise(name, p)
            if "lora_A" in name or "lora_embedding_A" in name:
                p.copy_(noise / p.shape[-1] ** 0.5)
            elif "lora_B" in name or "lora_embedding_B" in name:
                p.copy_(NUDGE * noise)
            else:
                p.add_((NUDGE * p.float().square().mean().sqrt() * noise).to(p.dtype))


def _no_dropout(model: Any) -> None:
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


# ---- the batch -------------------------------------------------------------------------------------------------


def _own_batch(hf: Any) -> tuple[dict[str, Any], Any]:
    """The first micro-batch that the trainer would train on, and the items of its optimizer step."""
    count = hf.args.gradient_accumulation_steps
    batches, items = hf.get_batch_samples(iter(hf.get_train_dataloader()), count, hf.args.device)
    return hf._prepare_inputs(batches[0]), items


def _made_batch(hf: Any, run: _Run, bare: bool) -> tuple[dict[str, Any], Any]:
    """A micro-batch of completions and advantages that nobody sampled."""
    config = run.trainer.config
    size = hf.args.per_device_train_batch_size
    steps = getattr(hf.args, "steps_per_generation", None) or hf.args.gradient_accumulation_steps
    group = config.algorithm.group_size or 1
    rows = [hf.train_dataset[i // group % len(hf.train_dataset)] for i in range(size * steps)]
    made = _completions(hf, run.trainer.tokenizer, rows, config)
    out = made
    if not bare:
        import torch

        draw = torch.Generator().manual_seed(2)
        hf.last_rewards = torch.rand(len(rows), len(hf.reward_funcs), generator=draw).to(hf.args.device)
        hf._sampled = lambda _: dict(made)
        out = hf._generate_and_score_completions(rows)
    parts = [
        {k: v[i : i + size] if hasattr(v, "dim") and v.dim() and len(v) == len(rows) else v for k, v in out.items()}
        for i in range(0, len(rows), size)
    ]
    hf._buffered_inputs = parts  # where the library keeps them, and algorithms of several updates look
    return parts[0], out["num_items_in_batch"]


def _completions(hf: Any, tokenizer: Any, rows: list[Any], config: Any) -> dict[str, Any]:
    """The dictionary that the library's own sampling would return for `rows`."""
    import torch

    from aligntune.data.tokens import Tokens

    tokens = Tokens(tokenizer)
    prompts = tokens.ids(tokens.texts([r["prompt"] for r in rows], None, start=0, prompt=True))
    prompts = [p[-LONGEST:] for p in prompts]
    longest = max(2, min(LONGEST, config.generation.max_completion_length))
    draw, device = torch.Generator().manual_seed(1), hf.args.device
    special = set(tokenizer.all_special_ids)
    plain = torch.tensor([i for i in range(len(tokenizer)) if i not in special])
    ids = plain[torch.randint(len(plain), (len(rows), longest), generator=draw)]
    lengths = [max(1, longest * (1 + i % 4) // 4) for i in range(len(rows))]
    for i, n in enumerate(lengths):
        ids[i, n - 1] = tokenizer.eos_token_id
        ids[i, n:] = tokenizer.pad_token_id
    width = max(map(len, prompts))
    left = [[tokenizer.pad_token_id] * (width - len(p)) + list(p) for p in prompts]
    mask = torch.tensor([[int(t < n) for t in range(longest)] for n in lengths])
    made = {
        "prompt_ids": torch.tensor(left),
        "prompt_mask": torch.tensor([[int(t >= width - len(p)) for t in range(width)] for p in prompts]),
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": torch.randn(len(rows), generator=draw),
        "num_items_in_batch": mask.sum(),
    }
    made = {k: v.to(device) for k, v in made.items()}
    drift = 0.1 * torch.randn(mask.shape, generator=draw).to(device)
    with torch.no_grad():
        made["old_per_token_logps"] = _policy_logps(hf.model, made) + drift
        if hf.beta != 0.0:
            made["ref_per_token_logps"] = _reference_logps(hf, made)
    return made


def _policy_logps(model: Any, batch: dict[str, Any]) -> Any:
    """(B, T) log-probabilities of the completions."""
    ids = _joined(batch, "ids")
    logps = _logps(model, {"input_ids": ids, "attention_mask": _joined(batch, "mask")}, ids)
    return logps[:, -batch["completion_ids"].shape[1] :]


def _reference_logps(hf: Any, batch: dict[str, Any]) -> Any:
    if hf.ref_model is not None:
        return _policy_logps(hf.ref_model, batch)
    with _without_adapter(hf.accelerator.unwrap_model(hf.model)):
        return _policy_logps(hf.model, batch)


def _without_adapter(model: Any) -> AbstractContextManager[Any]:
    """The model as the reference that an adapter has: the kept copy, or no adapter."""
    if not hasattr(model, "peft_config"):
        return nullcontext()
    from trl.trainer.utils import use_adapter

    return use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None)  # type: ignore[no-any-return]


def _joined(batch: dict[str, Any], what: str) -> Any:
    import torch

    return torch.cat([batch[f"prompt_{what}"], batch[f"completion_{what}"]], dim=1)


def _logps(model: Any, given: Mapping[Any, Any], ids: Any) -> Any:
    """(B, T) fp32: the log-probability of each token after those before it; 0 for the first."""
    import torch

    logits = model(**given, use_cache=False).logits
    found = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:].unsqueeze(-1)).squeeze(-1)
    return torch.cat([torch.zeros_like(found[:, :1]), found], dim=1)


def _read(hf: Any, model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The batch as arrays (B, T): ids, which are in the loss, which are attended, and log-probabilities."""
    import torch

    with torch.no_grad(), hf.compute_loss_context_manager():
        if "completion_ids" in inputs and "input_ids" not in inputs:
            ids, attended = _joined(inputs, "ids"), _joined(inputs, "mask")
            trained = torch.cat([torch.zeros_like(inputs["prompt_mask"]), inputs["completion_mask"]], dim=1)
            found = {"logps": _logps(model, {"input_ids": ids, "attention_mask": attended}, ids)}
            if "ref_per_token_logps" in inputs:
                whole = torch.zeros_like(found["logps"])
                whole[:, -inputs["completion_ids"].shape[1] :] = inputs["ref_per_token_logps"].to(whole.dtype)
                found["reference"] = whole * trained
        elif "chosen_input_ids" in inputs:  # TRL's experimental trainers of pairs
            both = hf.concatenated_inputs(inputs, padding_value=hf.processing_class.pad_token_id)
            ids, attended = both["concatenated_input_ids"], both["concatenated_attention_mask"]
            trained = both["concatenated_labels"] != IGNORED
            found = {"logps": _logps(model, {"input_ids": ids, "attention_mask": attended}, ids)}
        elif _labels_only(model):
            ids, attended = inputs["input_ids"], inputs["attention_mask"]
            trained, found = _label_logps(model, inputs)
        else:
            ids = inputs["input_ids"]
            attended = inputs.get("attention_mask", torch.ones_like(ids))
            trained = inputs["labels"] != IGNORED if "labels" in inputs else inputs["completion_mask"]
            given = {k: inputs[k] for k in ("input_ids", "attention_mask", "position_ids") if k in inputs}
            found = {"logps": _logps(model, given, ids)}
            reference = next((m for n in REFERENCES if (m := getattr(hf, n, None)) is not None), None)
            if reference is not None:
                found["reference"] = _logps(reference, given, ids)
            elif hasattr(hf, "beta") and hasattr(model, "peft_config") and not _reference_free(hf):
                with _without_adapter(hf.accelerator.unwrap_model(model)):
                    found["reference"] = _logps(model, given, ids)
    marks = {"ids": ids, "trained": trained, "attended": attended}
    return {**{k: v.to(torch.int64) for k, v in marks.items()}, **{k: v.float() for k, v in found.items()}}


def _reference_free(hf: Any) -> bool:
    """Whether a loss of ours that compares with no reference stands in a trainer that has one."""
    from aligntune.algorithms.reference_free import ReferenceFree

    return isinstance(getattr(hf, "params", None), ReferenceFree)


def _labels_only(model: Any) -> bool:
    """Whether the model is a classifier: its outputs are labels, not tokens."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return not hasattr(inner, "lm_head") and inner.get_output_embeddings() is None


def _label_logps(model: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Which tokens have a label, and its log-probability there; a text's label stands at its first token."""
    import torch

    labels, attended = inputs["labels"], inputs["attention_mask"]
    logits = model(input_ids=inputs["input_ids"], attention_mask=attended).logits
    if labels.dim() == 1:
        first = attended.argmax(1, keepdim=True)
        labels = torch.full_like(attended, IGNORED).scatter(1, first, labels.unsqueeze(1))
        logits = logits.unsqueeze(1).expand(-1, labels.shape[1], -1)
    trained = labels != IGNORED
    logps = logits.float().log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return trained, {"logps": logps * trained}


def _sizes(hf: Any, arrays: dict[str, Any]) -> dict[str, float]:
    """Numbers by which a loss is commonly divided, to name a normaliser by."""
    trained = arrays["trained"]
    return {
        "sequences": float(trained.shape[0]),
        "tokens in the loss": float(trained.sum()),
        "all tokens": float(arrays["attended"].sum()),
        "padded tokens": float(trained.numel()),
        "gradient accumulation steps": float(hf.args.gradient_accumulation_steps),
        "max_completion_length": float(getattr(hf, "max_completion_length", 0) or 0),
    }


def main() -> None:
    """Read a request on standard input, and leave `result.json` in its folder."""
    request = json.loads(sys.stdin.read())
    folder = Path(request["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    try:
        config = build_config(request["config"])
        result = measure(replace(config, output_dir=str(folder / "run")), folder, bare=request["bare"])
    except AlignTuneError as e:
        result = {"error": {"type": type(e).__name__, "message": e.message, "hint": e.hint}}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
