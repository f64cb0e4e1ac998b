"""One thin layer over GRPOTrainer: advantages, token weights, extra losses, state in the checkpoint, a better sampler.

    trainer_class = layered(trl.GRPOTrainer)     # or Unsloth's rewritten class
    hf = trainer_class(model=..., args=..., ...)
    hf.attach(plugin, config, backend)

Each method calls `super()` and adds to it; nothing of TRL is copied but the way a per-token loss is averaged
(`aggregate`, tested against TRL's own). A loss enters through `compute_loss`, because Unsloth's rewritten trainer
never calls `_compute_loss`; the policy's log-probabilities are those of the forward pass that TRL makes anyway, and
come from the backend where there is none to be seen.

Source: `GRPOTrainer` of TRL 1.14.2. It does not change what TRL computes where a plugin adds nothing.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from aligntune.algorithms.plugin import Plugin
from aligntune.core.rl.held import ROW, Held
from aligntune.core.rl.packed import aligned, packed, repacks
from aligntune.errors import TrainingError

STATE = "aligntune_state"
"""Name of a checkpoint's files with the plugin's state."""
REFERENCE = "reference/"
"""Prefix of a moving reference's weights in that state."""
REWARDS = "rewards"
"""Name of the rewards' running statistics in that state."""
HOOKS = {
    "rollout": ("rollout", "advantages", "token_weights"),
    "rewards": ("advantages",),
    "loss": ("micro_batch", "token_loss", "batch_loss"),
}
"""Method of the layer to the plugin's methods that only it calls."""


PATIENCE = 20
"""Optimizer steps from the start after which a run without a single score is an error."""


def aggregate(
    values_BT: Any,
    mask_BT: Any,
    loss_type: str,
    *,
    max_completion_length: int,
    accumulation: float,
    window_tokens: Any,
) -> Any:
    """A scalar of per-token losses, averaged as TRL's `loss_type` does.

    Args:
        values_BT: loss per token.
        mask_BT: 1 for the tokens that count.
        loss_type: TRL's name.
        max_completion_length: normaliser of dr_grpo.
        accumulation: micro-batches per optimizer step (1 in evaluation).
        window_tokens: counted tokens of one optimizer step, per process (cispo, dapo, vespo).

    Raises:
        ValueError: an unknown `loss_type`.
    """
    masked = values_BT * mask_BT
    if loss_type in ("grpo", "sapo"):
        return (masked.sum(-1) / mask_BT.sum(-1).clamp(min=1.0)).mean() / accumulation
    if loss_type == "bnpo":
        return masked.sum() / mask_BT.sum().clamp(min=1.0) / accumulation
    if loss_type == "dr_grpo":
        return masked.sum() / (masked.size(0) * max_completion_length) / accumulation
    if loss_type == "luspo":
        return masked.sum(-1).mean() / accumulation
    if loss_type in ("cispo", "dapo", "vespo"):
        return masked.sum() / window_tokens
    raise ValueError(f"unknown loss_type {loss_type}")


def loss_mask(inputs: dict[str, Any]) -> Any:
    """(B, T), 1 for the tokens of a micro-batch that are in the loss."""
    mask = inputs["completion_mask"]
    return mask * inputs["tool_mask"] if "tool_mask" in inputs else mask


@cache
def epoch_sampler() -> type:
    """TRL's `RepeatSampler` with an order of its own in each epoch, so that a resume in a later epoch is exact."""
    from trl.trainer.utils import RepeatSampler

    class EpochSampler(RepeatSampler):  # type: ignore[misc]
        """See `epoch_sampler`."""

        def set_epoch(self, epoch: int) -> None:
            """Called by Transformers and Accelerate before each epoch."""
            if self.shuffle:
                self.generator.manual_seed(self.seed + epoch)

    return EpochSampler


@cache
def layered(base: type) -> type:
    """The layer over `base`, which is GRPOTrainer or what a backend has put in its place."""
    import torch
    from safetensors.torch import load_file, save_file

    class Layered(base):  # type: ignore[misc]
        """See this module."""

        plugin: Plugin
        beta: float
        moves_padding = repacks(base)

        def attach(self, plugin: Plugin, config: Any, backend: Any) -> None:
            """Connect the plugin; called once, after construction."""
            self.plugin = plugin
            self._seen: set[str] = set()
            self._in_loss, self._policy_logps, self._step_taken = False, None, False
            self.last_rewards: Any = None  # (N, F), of the latest generation
            self._unscored: int | None = 0  # completions so far, while not one has had a score
            self._first_step: int | None = None
            self.held = Held(self.accelerator.process_index << 40)
            plugin.trainer, plugin.config, plugin.backend = self, config, backend
            plugin.start()

        def _get_train_sampler(self, dataset: Any = None) -> Any:
            sampler = super()._get_train_sampler(dataset)
            fields = ("data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed")
            return epoch_sampler()(**{name: getattr(sampler, name) for name in fields})

        def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
            self._seen.add("rewards")
            self.last_rewards = super()._calculate_rewards(*args, **kwargs)
            if self._unscored is not None and self.model.training:
                self._check_scored(self.last_rewards)
            return self.last_rewards

        def _check_scored(self, rewards: Any) -> None:
            """Stop a run whose rewards give no completion a score: nothing would be learned, without a word."""
            if not rewards.isnan().all():
                self._unscored = None
                return
            self._unscored += rewards.shape[0]
            if self._first_step is None:
                self._first_step = self.state.global_step
            if self.state.global_step - self._first_step + 1 >= PATIENCE:
                raise TrainingError(
                    f"none of {self._unscored} completions in {PATIENCE} steps had a score, so nothing was learned",
                    hint="mend the rewards, which gave None or were left out by on_error: skip; the columns "
                    "rewards/*/none and rewards/*/errors of metrics.jsonl count them",
                )

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            self._seen.add("rollout")
            self.held.flush()
            out = self.plugin.rollout(self._sampled, inputs)
            advantages = self.plugin.advantages(self.last_rewards, out)
            if advantages is not None:
                out["advantages"] = advantages
            self._complete(out)
            weights = self.plugin.token_weights(out)
            if weights is not None:
                given = out["advantages"]
                out["advantages"] = (given if given.dim() == 2 else given.unsqueeze(1)) * weights
            return out

        def _sampled(self, inputs: Any) -> Any:
            """Completions of the library, with the numbers of their stored rows."""
            out = super()._generate_and_score_completions(inputs)
            if self.moves_padding:
                out = aligned(out, self.processing_class.pad_token_id)
            numbers = self.held.latest(len(inputs))
            if numbers is not None:
                out[ROW] = torch.tensor(numbers, device=out["completion_ids"].device)
            return out

        def _complete(self, out: dict[str, Any]) -> None:
            """Tell the stored rows what is known of them, and write them where nothing is to come."""
            if ROW not in out:
                return
            numbers = out[ROW].flatten().tolist()
            if self.plugin.has_advantages:
                values = out["advantages"]
                if values.dim() > 1:  # of tokens: their mean
                    mask = out["completion_mask"]
                    values = (values * mask).sum(-1) / mask.sum(-1).clamp(min=1)
                self.held.fill("advantage", numbers, values.flatten().tolist())
            known = out.get("sampling_per_token_logps", out.get("old_per_token_logps"))
            if known is not None:
                self._fill_logps(numbers, known.flatten(0, -2))
                self.held.flush()
            else:
                self.held.awaited = set(numbers)

        def _fill_logps(self, numbers: list[int], logps_BT: Any) -> None:
            """Sums over each completion's tokens, those that are not in the loss too."""
            counts = torch.tensor([self.held.tokens(n) or 0 for n in numbers], device=logps_BT.device)
            inside = torch.arange(logps_BT.shape[1], device=logps_BT.device) < counts[:, None]
            sums = torch.where(inside, logps_BT.detach().nan_to_num(0.0), 0.0).sum(-1).tolist()
            known = [s if self.held.tokens(n) is not None else None for n, s in zip(numbers, sums, strict=True)]
            self.held.fill("logprob_sum", numbers, known)

        def _settle(self, inputs: dict[str, Any]) -> None:
            """The log-probabilities of the first loss after sampling are those of the policy that sampled."""
            if ROW not in inputs or not self.held.awaited:
                return
            numbers = inputs[ROW].tolist()
            if self._policy_logps is not None:
                self._fill_logps(numbers, self._policy_logps)
            self.held.settle(numbers)

        def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
            result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
            if self._in_loss:
                self._policy_logps = result[0]
            return result

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            self._seen.add("loss")
            inputs = self.plugin.micro_batch(inputs)
            kept = self.beta
            self._in_loss, self._policy_logps = True, None
            if self.plugin.loss_beta is not None:
                self.beta = self.plugin.loss_beta
            given = packed(inputs, self.processing_class.pad_token_id) if self.moves_padding else inputs
            try:
                loss = super().compute_loss(model, given, return_outputs, num_items_in_batch)
            finally:
                self.beta, self._in_loss = kept, False
            self._settle(inputs)
            return self._with_extra(model, inputs, loss)

        def _with_extra(self, model: Any, inputs: Any, loss: Any) -> Any:
            wanted = type(self.plugin)
            per_token, scalar = wanted.token_loss is not Plugin.token_loss, wanted.batch_loss is not Plugin.batch_loss
            if not per_token and not scalar:
                return loss
            logps, self._policy_logps = self._policy_logps, None
            if logps is None:  # this trainer keeps them to itself
                logps = self.plugin.backend.per_token_logps(model, inputs, self.temperature)
            training = self.model.training
            accumulation = float(self.current_gradient_accumulation_steps) if training else 1.0
            extra = self.plugin.token_loss(logps, inputs)
            if extra is not None:
                window = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
                if training:
                    window = window * accumulation / self.args.steps_per_generation
                loss = loss + aggregate(
                    extra,
                    loss_mask(inputs),
                    self.loss_type,
                    max_completion_length=self.max_completion_length,
                    accumulation=accumulation,
                    window_tokens=window,
                )
            added = self.plugin.batch_loss(logps, inputs)
            return loss if added is None else loss + added / accumulation

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            if self._step_taken:  # the library's loop clears the gradients of the policy alone
                self._clear_plugin_gradients()
            output = super().training_step(*args, **kwargs)
            self._check_hooks()
            if self.plugin.skip_update():
                self.model.zero_grad(set_to_none=True)
                self._clear_plugin_gradients()
            self._step_taken = self.accelerator.sync_gradients
            return output

        def _clear_plugin_gradients(self) -> None:
            for parameter in self.plugin.parameters():
                parameter.grad = None

        def _check_hooks(self) -> None:
            missed = [
                method
                for method, uses in HOOKS.items()
                if method not in self._seen
                and any(getattr(type(self.plugin), u) is not getattr(Plugin, u) for u in uses)
            ]
            if missed:
                raise TrainingError(
                    f"{base.__module__}.{base.__qualname__} never called {', '.join(missed)}, "
                    f"which {type(self.plugin).__name__} needs",
                    hint="this training library ignores the algorithm; install the versions of constraints.txt",
                )

        def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
            made = self.optimizer is None
            optimizer = super().create_optimizer(*args, **kwargs)
            extra = self.plugin.parameters()
            if made and extra:
                optimizer.add_param_group({"params": extra, "weight_decay": 0.0, **self.plugin.optimizer_options()})
            return optimizer

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            super()._save_checkpoint(model, trial)
            state = {**self.plugin.state(), **self._moved_reference()}
            if running := self._rewards_state():
                state[REWARDS] = running
            if not state or not self.args.should_save:
                return
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            tensors = {
                k: v.detach().cpu().contiguous().clone() for k, v in state.items() if isinstance(v, torch.Tensor)
            }
            plain = {k: v for k, v in state.items() if k not in tensors}
            if tensors:
                save_file(tensors, folder / f"{STATE}.safetensors")
            (folder / f"{STATE}.json").write_text(json.dumps(plain), encoding="utf-8")

        def _rewards_state(self) -> dict[str, Any]:
            composite = getattr(self.reward_funcs[0], "composite", None)
            return {} if composite is None else composite.state()

        def _moved_reference(self) -> dict[str, Any]:
            """Weights of a reference that moves (`sync_ref_model`), which no file of the run holds otherwise."""
            if not self.args.sync_ref_model:
                return {}
            reference = self.accelerator.unwrap_model(self.ref_model)
            return {f"{REFERENCE}{name}": weight for name, weight in reference.named_parameters()}

        def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
            stateful, moves = type(self.plugin).state is not Plugin.state, self.args.sync_ref_model
            runs = bool(self._rewards_state())
            needed = checkpoint is not None and (stateful or moves or runs)
            if needed and not (Path(checkpoint) / f"{STATE}.json").is_file():
                raise TrainingError(
                    f"{checkpoint} holds no state of {type(self.plugin).__name__}",
                    hint="resume from a checkpoint that this algorithm wrote, or start anew",
                )
            super()._load_optimizer_and_scheduler(checkpoint)
            if not needed:
                return
            plain, tensors = (Path(checkpoint) / f"{STATE}.{kind}" for kind in ("json", "safetensors"))
            state = json.loads(plain.read_text(encoding="utf-8"))
            state |= load_file(tensors) if tensors.is_file() else {}
            for name, weight in self.accelerator.unwrap_model(self.ref_model).named_parameters() if moves else ():
                weight.data.copy_(state.pop(f"{REFERENCE}{name}"))
            running = state.pop(REWARDS, None)
            if runs:
                if running is None:
                    raise TrainingError(
                        f"{checkpoint} holds no running statistics of rewards, and composition.normalise is running",
                        hint="resume from a checkpoint that was written with it, or start anew",
                    )
                self.reward_funcs[0].composite.load_state(running)
            if stateful:
                self.plugin.load_state(state)

    Layered.__name__, Layered.__qualname__ = base.__name__, base.__qualname__
    return Layered
