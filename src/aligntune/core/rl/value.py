"""The value model of PPO: a trunk that reads text, and a head that gives one number for each position.

    value = build_value(hf, config, kind="separate", path=None)
    value.of(batch)              # (B, T), without gradient, for a whole rollout
    value.learning(batch)        # (B, T), with gradient, inside the loss

`separate` copies the policy's trunk as it stands when training starts (adapters merged in), or takes the trunk and the
head of a reward model; where `model.peft` is set, adapters of the same shape are trained on that copy, else all its
weights. `shared` puts the head on the policy's own trunk and reads the hidden states of the forward pass that the
policy loss makes anyway, so that it costs one small layer. A new head starts at zero: every value is 0 at first.

The value at token t is read where the token before it stands, so it knows the prompt and the tokens before t. Source:
Ouyang et al. 2022 (arXiv:2203.02155, appendix C.4: the value function starts from the reward model); Huang et al. 2024
(arXiv:2403.17031). It does not run under FSDP or DeepSpeed, which split weights that are read here.
"""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from typing import Any

from aligntune.errors import ConfigurationError, TrainingError

FOLDER = "value_model"
"""Folder of a saved value model inside the run's."""
SPLITTING = ("DEEPSPEED", "FSDP", "MEGATRON_LM")
"""Accelerate's kinds of distribution that split weights over processes."""


def trunk_of(model: Any) -> Any:
    """The part of a causal or classifying model below its head, adapters in place."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    return getattr(inner, inner.base_model_prefix)


@cache
def value_class() -> type:
    """The module (made on first use, because it is one of torch)."""
    import torch

    class Value(torch.nn.Module):  # type: ignore[misc]
        """See this module.

        Args:
            trunk: reads ids and mask, gives hidden states.
            owned: whether the trunk's weights are the value model's own.
            accelerator: gives the mixed precision of the run.
            micro: rows per forward pass without gradient.
        """

        def __init__(self, trunk: Any, *, owned: bool, accelerator: Any, micro: int) -> None:
            super().__init__()
            size = trunk.config.get_text_config().hidden_size
            self.score = torch.nn.Linear(size, 1, bias=False)
            torch.nn.init.zeros_(self.score.weight)
            self.trunk = trunk if owned else None
            self._reader = (trunk,)  # a tuple, so that a shared trunk is no part of this module
            self._accelerator, self._micro = accelerator, micro
            self._hidden: Any = None
            if not owned:
                trunk.register_forward_hook(self._keep)

        def _keep(self, module: Any, given: Any, out: Any) -> None:
            hidden = out[0]
            if hidden.requires_grad:
                self._hidden = hidden

        def of(self, batch: dict[str, Any]) -> Any:
            """Values of the completions' tokens, (B, T), without gradient."""
            with torch.no_grad():
                ids, mask = _joined(batch)
                rows = range(0, len(ids), self._micro)
                hidden = [self._read(ids[i : i + self._micro], mask[i : i + self._micro]) for i in rows]
                return torch.cat([self._score(h, batch["completion_ids"].shape[1]) for h in hidden])

        def learning(self, batch: dict[str, Any]) -> Any:
            """Values of the completions' tokens, (B, T), with gradient.

            Raises:
                TrainingError: the shared trunk was not seen in the policy's forward pass.
            """
            if self.trunk is not None:
                hidden = self._read(*_joined(batch))
            else:
                hidden, self._hidden = self._hidden, None
                rows, tokens = batch["completion_ids"].shape
                if hidden is None or hidden.shape[:2] != (rows, batch["prompt_ids"].shape[1] + tokens):
                    raise TrainingError(
                        "the forward pass of this training library does not show the trunk's hidden states",
                        hint="set algo.value_model: separate",
                    )
            return self._score(hidden, batch["completion_ids"].shape[1])

        def _read(self, ids: Any, mask: Any) -> Any:
            with self._accelerator.autocast():
                return self._reader[0](input_ids=ids, attention_mask=mask, use_cache=False)[0]

        def _score(self, hidden: Any, tokens: int) -> Any:
            with torch.autocast(hidden.device.type, enabled=False):
                return self.score(hidden[:, -tokens - 1 : -1].float()).squeeze(-1)

    return Value


def _joined(batch: dict[str, Any]) -> tuple[Any, Any]:
    import torch

    parts = (("prompt_ids", "completion_ids"), ("prompt_mask", "completion_mask"))
    ids, mask = (torch.cat([batch[a], batch[b]], dim=1) for a, b in parts)
    return ids, mask


def build_value(hf: Any, config: Any, *, kind: str, path: str | None) -> Any:
    """The value model of a run, on the run's device.

    Args:
        hf: the library's trainer, with the policy.
        config: the run's configuration.
        kind: `separate` or `shared`.
        path: a reward model that a separate one starts from; None copies the policy.

    Raises:
        ConfigurationError: weights are split over processes; the reward model cannot be read.
    """
    if hf.accelerator.distributed_type.value in SPLITTING:
        raise ConfigurationError(
            f"PPO's value model is not split over processes, as {hf.accelerator.distributed_type.value} would do",
            hint="launch with plain data parallelism (DDP), or train with algo: grpo, which has no value model",
        )
    policy = hf.accelerator.unwrap_model(hf.model)
    head = None
    if kind == "shared":
        trunk = trunk_of(policy)
    elif path is not None:
        trunk, head = load_reward_trunk(path)
    else:
        copied = copy.deepcopy(policy)
        trunk = trunk_of(copied.merge_and_unload() if hasattr(copied, "peft_config") else copied)
    owned = kind == "separate"
    if owned:
        trunk = _trainable(trunk, config)
    made = value_class()(trunk, owned=owned, accelerator=hf.accelerator, micro=hf.args.per_device_train_batch_size)
    if head is not None:
        made.score.weight.data.copy_(head)
    return made.to(hf.accelerator.device)


def _trainable(trunk: Any, config: Any) -> Any:
    """A trunk of its own that learns: dropout off, adapters where the policy has them."""
    import torch

    for module in trunk.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trunk.requires_grad_(config.model.peft is None)
    if config.model.peft is not None:
        from peft import TaskType, get_peft_model

        from aligntune.utils.model_loader import ModelLoader

        shape = ModelLoader(config.model, training=True, seed=config.train.seed).lora_config()
        shape.task_type, shape.modules_to_save, shape.lora_dropout = TaskType.FEATURE_EXTRACTION, None, 0.0
        with torch.random.fork_rng():
            torch.manual_seed(config.train.seed)
            trunk = get_peft_model(trunk, shape)
    checkpointing = config.train.gradient_checkpointing
    if checkpointing:
        trunk.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return trunk.train(checkpointing)  # it recomputes in training mode only, which nothing else depends on here


def load_reward_trunk(path: str) -> tuple[Any, Any]:
    """Trunk and head weights (1, H) of a reward model.

    Raises:
        ConfigurationError: it is no whole sequence classifier with one output.
    """
    from transformers import AutoModelForSequenceClassification

    from aligntune.utils.model_source import faults_of, find_source

    with faults_of("algo.value_model_path"):
        source = find_source(path)
    if source.adapter is not None:
        raise ConfigurationError(f"algo.value_model_path: {path} is an adapter", hint="merge it into its base first")
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            source.base, dtype="float32", use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"algo.value_model_path: {path} cannot be loaded ({error})", hint=source.advice) from (
            error
        )
    head = getattr(model, "score", None)
    if info["missing_keys"] or head is None or tuple(head.weight.shape[:1]) != (1,):
        raise ConfigurationError(
            f"algo.value_model_path: {path} is no reward model: it has no trained head with one output",
            hint="give a sequence classifier with num_labels 1 on a decoder, or leave value_model_path out",
        )
    return trunk_of(model), head.weight.detach()


def check_family(path: str, tokenizer: Any) -> None:
    """Refuse a reward model whose tokens are not the policy's, because a value model reads the policy's token ids.

    Raises:
        ConfigurationError: the vocabularies or the chat templates differ.
    """
    from transformers import AutoTokenizer

    from aligntune.utils.model_source import faults_of, find_source

    with faults_of("algo.value_model_path"):
        source = find_source(path)
    try:
        other = AutoTokenizer.from_pretrained(source.tokenizer)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"algo.value_model_path: {path} has no tokenizer ({error})", hint=source.advice) from (
            error
        )
    bridge = (
        "use it as a reward instead, where the text is tokenised again (rewards), and leave algo.value_model_path out"
    )
    if other.get_vocab() != tokenizer.get_vocab():
        raise ConfigurationError(
            f"algo.value_model_path: the tokenizer of {path} differs from the policy's, and a value model reads the "
            "policy's token ids",
            hint=bridge,
        )
    if other.chat_template != tokenizer.chat_template:
        raise ConfigurationError(
            f"algo.value_model_path: the chat template of {path} differs from the policy's, so it has never seen the "
            "text that it would value",
            hint=f"set model.chat_template to the template that it was trained with, or {bridge}",
        )


def save_value(value: Any, folder: Path, tokenizer: Any) -> None:
    """Write a value model into `folder`/value_model, as safetensors.

    A whole one becomes a sequence classifier that Transformers (and `algo.value_model_path`) load again, with its
    tokenizer. Of a shared or an adapted one the trained tensors are written, in `value.safetensors`.
    """
    from safetensors.torch import save_file

    target = folder / FOLDER
    target.mkdir(parents=True, exist_ok=True)
    if value.trunk is None or hasattr(value.trunk, "peft_config"):
        learned = {n: p.detach().cpu().contiguous() for n, p in value.named_parameters() if p.requires_grad}
        save_file(learned, target / "value.safetensors", metadata={"format": "pt"})
        return
    import torch
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(value.trunk.config)
    config.num_labels, config.pad_token_id = 1, tokenizer.pad_token_id
    with torch.random.fork_rng():  # its first weights are random, and all replaced
        model = AutoModelForSequenceClassification.from_config(config)
    prefix = model.base_model_prefix
    tensors = {f"{prefix}.{name}": tensor for name, tensor in value.trunk.state_dict().items()}
    model.load_state_dict({**tensors, "score.weight": value.score.weight})
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
