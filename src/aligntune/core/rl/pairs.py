"""What preference algorithms of ours change in TRL's DPOTrainer: no reference, a uniform one, or one that is saved.

    trainer_class = without_reference(trl.DPOTrainer)     # or Unsloth's; the loss is `params.objective`
    trainer_class = keeping_reference(trl.DPOTrainer)     # a reference that moves, in the checkpoint

`compute_loss` is overridden, which both backends call, and a step in which it was not called is an error. The forward
pass is one over chosen and rejected answers together, as in TRL.

Source: `DPOTrainer` of TRL 1.14.2. It does not change batches, the optimizer or what DPO itself computes.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from aligntune.algorithms.reference_free import Answers, ReferenceFree
from aligntune.errors import TrainingError

REFERENCE = "aligntune_reference.safetensors"
"""Name of a checkpoint's file with the moved reference."""
NO_INPUTS = ("completion_mask", "ref_chosen_logps", "ref_rejected_logps")
"""Entries of a batch that the model does not take."""


def no_reference() -> Any:
    """A module without weights, given as the reference so that none is loaded and no adapter is copied.

    Its configuration is an empty one, which newer releases of TRL (1.16) read before they use the reference.
    """
    import torch
    from transformers import PreTrainedConfig

    absent = torch.nn.Module()
    absent.config = PreTrainedConfig()  # type: ignore[assignment]
    return absent


class ZeroReference:
    """A collator that gives each pair 0 as the reference's log-probabilities: a uniform reference.

    Args:
        inner: the library's collator.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        import torch

        batch: dict[str, Any] = self.inner(examples)
        zeros = torch.zeros(len(examples))
        return {**batch, "ref_chosen_logps": zeros, "ref_rejected_logps": zeros}


def drop_fresh_copy(model: Any) -> None:
    """Delete the copy of an untrained adapter that TRL keeps as the reference: the model with its adapter off is equal.

    The copy of an adapter that training goes on with stays, because there it is the reference.
    """
    settings = getattr(model, "peft_config", {}).get("ref")
    if settings is None or getattr(settings, "modules_to_save", None):
        return
    updates = [p for n, p in model.named_parameters() if ".ref" in n and ("lora_B" in n or "lora_embedding_B" in n)]
    if updates and not any(bool(p.any()) for p in updates):
        model.delete_adapter("ref")


def answer_logps(logits_BTV: Any, ids_BT: Any, mask_BT: Any) -> Answers:
    """Summed log-probabilities of the tokens that `mask_BT` marks, in fp32 at least, with gradient.

    Args:
        logits_BTV: the model's output; position t predicts token t + 1.
        ids_BT: the tokens.
        mask_BT: 1 for the answer's tokens.
    """
    import torch

    mask = mask_BT[:, 1:].bool()
    logits = logits_BTV[:, :-1][mask]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logps_N = -torch.nn.functional.cross_entropy(logits, ids_BT[:, 1:][mask], reduction="none")
    logps_BT = torch.zeros(mask.shape, dtype=logps_N.dtype, device=logps_N.device).masked_scatter(mask, logps_N)
    return Answers(logps_BT.sum(1), mask.sum(1))


def halves(both: Answers) -> tuple[Answers, Answers]:
    """The chosen and the rejected answers of a batch, which stand one after the other."""
    (first, second), (lengths, others) = both.logps.chunk(2), both.tokens.chunk(2)
    return Answers(first, lengths), Answers(second, others)


@cache
def without_reference(base: type) -> type:
    """`base`, which is DPOTrainer or what a backend has put in its place, with the loss of a `ReferenceFree`."""

    class WithoutReference(base):  # type: ignore[misc]
        """See `without_reference`; `params` is set after construction."""

        params: ReferenceFree
        reached = False

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            self.reached = True
            given = {k: v for k, v in inputs.items() if k not in NO_INPUTS}
            if self.aux_loss_enabled:  # a mixture of experts
                given["output_router_logits"] = True
            outputs = model(**given, use_cache=False)
            chosen, rejected = halves(answer_logps(outputs.logits, inputs["input_ids"], inputs["completion_mask"]))
            losses, values = self.params.objective(chosen, rejected)
            self._note(chosen, rejected, values, inputs)
            loss = losses.mean()
            if self.aux_loss_enabled:
                loss = loss + self.router_aux_loss_coef * outputs.aux_loss
            return (loss, outputs) if return_outputs else loss

        def _note(self, chosen: Answers, rejected: Answers, values: dict[str, Any], inputs: Any) -> None:
            """Log TRL's metrics of a preference batch, and the loss's own."""
            mode = "train" if self.model.training else "eval"
            better, worse = self.params.scores(chosen).detach(), self.params.scores(rejected).detach()
            shown = {
                "rewards/chosen": better,
                "rewards/rejected": worse,
                "rewards/accuracies": (better > worse).float(),
                "rewards/margins": better - worse,
                "logps/chosen": chosen.logps.detach(),
                "logps/rejected": rejected.logps.detach(),
                **{name: value.detach() for name, value in values.items()},
            }
            for name, value in shown.items():
                self._metrics[mode][name].append(self.accelerator.gather(value).mean().item())
            if mode == "train":
                tokens = self.accelerator.gather(inputs["attention_mask"].sum()).sum().item()
                self._total_train_tokens += tokens
            self._metrics[mode]["num_tokens"] = [self._total_train_tokens]

        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            output = super().training_step(*args, **kwargs)
            if not self.reached:
                raise TrainingError(
                    f"{base.__module__}.{base.__qualname__} never called compute_loss, so it does not train "
                    f"{self.params.key}",
                    hint="this training library ignores the algorithm; install the versions of constraints.txt",
                )
            return output

    WithoutReference.__name__, WithoutReference.__qualname__ = base.__name__, base.__qualname__
    return WithoutReference


@cache
def keeping_reference(base: type) -> type:
    """`base` with the reference model in its checkpoints, so that a run whose reference moves can be resumed."""
    from safetensors.torch import load_file, save_file

    class KeepingReference(base):  # type: ignore[misc]
        """See `keeping_reference`."""

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                weights = {k: v.detach().cpu().clone() for k, v in self._reference().named_parameters()}
                folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
                save_file(weights, folder / REFERENCE)

        def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
            super()._load_optimizer_and_scheduler(checkpoint)
            if checkpoint is None:
                return
            file = Path(checkpoint) / REFERENCE
            if not file.is_file():
                raise TrainingError(
                    f"{checkpoint} holds no reference model, and algo.sync_ref_model moves it",
                    hint="resume from a checkpoint that was written with sync_ref_model, or start anew",
                )
            stored = load_file(file)
            for name, weight in self._reference().named_parameters():
                weight.data.copy_(stored[name])

        def _reference(self) -> Any:
            return self.accelerator.unwrap_model(self.ref_model)

    KeepingReference.__name__, KeepingReference.__qualname__ = base.__name__, base.__qualname__
    return KeepingReference
