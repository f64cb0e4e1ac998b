"""Proximal policy optimisation with a value model (arXiv:1707.06347), in InstructGPT's form (arXiv:2203.02155).

    algo: {name: ppo, kl_coef: 0.05, num_ppo_epochs: 4, num_mini_batches: 1}

A rollout is per_device_batch_size x gradient_accumulation_steps x num_mini_batches completions per process. Each token
is rewarded by -kl_coef KL_t against the starting model, the last one by the completion's score too (the weighted sum of
`rewards`, which may be functions, reward models or both). With generalised advantages A_t, whitened over the rollout,
each of its minibatches then trains num_ppo_epochs times:

    -min(r_t A_t, clip(r_t, 1 - epsilon, 1 + epsilon) A_t) + vf_coef L_V,      r_t = pi(y_t) / pi_old(y_t)

averaged over the tokens of the minibatch, exactly so under gradient accumulation and on several processes: each token
weighs the same, in whatever micro-batch it stands. Only the entropy bonus is TRL's mean of micro-batch means. One
optimizer step is one minibatch, so a rollout makes num_ppo_epochs x num_mini_batches steps. The maths is in
`ppo_losses`, the clipped policy loss is TRL's, the value model is `core.rl.value`.

Worked example, two tokens, kl_coef 0.05, KL 0.2 and -0.1, score 1, values 0.5, 0.5, lam 0.95: rewards -0.01, 1.005;
advantages 0.505 at the second token and -0.01 + 0.95 x 0.505 = 0.46975 at the first; returns 0.96975, 1.005.

Defaults are those of Huang et al. 2024 (arXiv:2403.17031, table of PPO hyperparameters). It does not bootstrap behind
completions that were cut off; after an early stop the rest of the rollout is still computed, and not stepped with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from aligntune.algorithms import ppo_losses as maths
from aligntune.algorithms.base import Schema, algorithm
from aligntune.algorithms.group import GroupPolicy
from aligntune.algorithms.plugin import Plugin
from aligntune.core.config.sections import Fraction, OpenFraction, Text
from aligntune.errors import ConfigurationError, TrainingError
from aligntune.registry import import_attribute

VALUE = "aligntune.core.rl.value:"  # lazy names, because these modules stand higher
TASK_REWARDS = "aligntune.rewards.by_task:TaskRewards"


@algorithm("ppo", trainer="trl:GRPOTrainer", args="trl:GRPOConfig", data=Schema.PROMPT)
class PPO(GroupPolicy):
    """Learn from rewards of sampled completions, compared with the values that a value model predicts."""

    learning_rate: ClassVar[float] = 3e-6  # arXiv:2403.17031
    fixed: ClassVar[dict[str, Any]] = {"loss_type": "dapo", "scale_rewards": "none"}  # both through the plugin

    num_generations: PositiveInt = 1
    """Completions per prompt; PPO compares with the value model, not within a group (one, as InstructGPT samples)."""
    disable_dropout: bool = True
    """Switch the policy's dropout off, so that the ratio of an unchanged policy is 1 (arXiv:2403.17031)."""
    kl_coef: NonNegativeFloat = 0.05
    """Strength of the KL penalty in each token's reward (arXiv:2403.17031); 0 keeps no reference model."""
    kl_estimator: Literal["k1", "k3"] = "k1"
    """KL of a token: log pi - log pi_ref (InstructGPT), or the estimate that is never negative (Schulman 2020)."""
    target_kl: PositiveFloat | None = None
    """KL of a whole completion, in nats, that an adaptive `kl_coef` aims at (6 to 10 in Ziegler et al. 2019,
    arXiv:1909.08593); None keeps the coefficient fixed (InstructGPT)."""
    kl_horizon: PositiveInt = 10_000
    """Completions over which the adaptive coefficient follows the error (code of Ziegler et al. 2019)."""
    gamma: OpenFraction = 1.0
    """Discount (arXiv:2403.17031)."""
    lam: Fraction = 0.95
    """Weight of long estimates in the advantages, GAE's lambda (arXiv:2403.17031)."""
    whiten_advantages: bool = True
    """Bring the advantages of a rollout to mean 0 and variance 1 (arXiv:2403.17031)."""
    whiten_rewards: bool = False
    """Bring the rewards per token to variance 1, their mean kept (arXiv:2403.17031, where it is off)."""
    missing_eos_penalty: NonNegativeFloat = 1.0
    """Taken from the score of a completion that was cut off (arXiv:2403.17031)."""
    epsilon: PositiveFloat = 0.2
    """Clip of the policy's ratio (arXiv:1707.06347)."""
    value_clip: PositiveFloat | None = 0.2
    """Clip of the value's change since the rollout (arXiv:2403.17031); None takes the plain squared error."""
    vf_coef: PositiveFloat = 0.1
    """Factor of the value loss (arXiv:2403.17031)."""
    num_ppo_epochs: PositiveInt = 4
    """Passes over each rollout (arXiv:2403.17031; InstructGPT makes one)."""
    num_mini_batches: PositiveInt = 1
    """Optimizer steps per pass: the parts that a rollout is cut into, anew in each pass (arXiv:2403.17031)."""
    early_stop_kl: PositiveFloat | None = None
    """Approximate KL between the present policy and the one that sampled, in nats per token, above which the rest of
    the rollout is not stepped with; None never stops (OpenAI's Spinning Up stops at 0.015)."""
    value_model: Literal["separate", "shared"] = "separate"
    """A trunk of its own (InstructGPT), or a head on the policy's trunk, which needs no second model in memory."""
    value_model_path: Text | None = None
    """A reward model, as a folder or hub id, whose trunk and head the value model starts from (InstructGPT); None
    copies the policy's trunk, under a head of zeros."""
    value_learning_rate: PositiveFloat | None = None
    """Peak learning rate of the value model; None takes `train.learning_rate` (arXiv:2403.17031)."""
    task_column: str | None = None
    """The data column that names each row's task, for `task_weights` (None: one task)."""
    task_weights: dict[str, dict[str, float]] = Field(default_factory=dict)
    """Task to reward to weight, in place of the rewards' own weights (none by default)."""

    @property
    def invariance(self) -> frozenset[str]:
        return frozenset()  # the value model learns the totals themselves

    def schedule(self, config: Any) -> tuple[int, int]:
        return config.train.gradient_accumulation_steps * self.num_mini_batches, self.num_ppo_epochs

    def arguments(self, config: Any) -> dict[str, Any]:
        steps, epochs = self.schedule(config)
        single = self.num_generations == 1  # refused by GRPOConfig, but not by its trainer: `late_arguments`
        return {
            **super().arguments(config),
            "num_generations": config.train.per_device_batch_size * steps if single else self.num_generations,
            "num_iterations": epochs,
            "beta": self.kl_coef,  # keeps the reference; the loss itself has no KL term
        }

    def late_arguments(self, config: Any) -> dict[str, Any]:
        return {**super().late_arguments(config), "num_generations": self.num_generations}

    def plugin(self, config: Any) -> Plugin:
        return PPOPlugin(self)

    def rewards(self, composite: Any) -> Any:
        if self.task_column is None:
            return composite
        return import_attribute(TASK_REWARDS)(composite, column=self.task_column, weights=self.task_weights)

    def check(self, trainer: Any) -> None:
        super().check(trainer)
        if self.task_column is not None:
            found = {str(task) for task in trainer._train_rows().dataset[self.task_column]}
            trainer._tell(trainer.rewards.check_tasks(found))
        if self.value_model_path is not None:
            import_attribute(VALUE + "check_family")(self.value_model_path, trainer.tokenizer)

    def inert_keys(self, config: Any) -> dict[str, str]:
        keys = super().inert_keys(config)
        if not self.kl_coef:
            keys |= {f"algo.{name}": "`algo.kl_coef` is 0" for name in ("kl_estimator", "target_kl")}
        if self.target_kl is None:
            keys["algo.kl_horizon"] = "there is no `algo.target_kl`, so the coefficient is fixed"
        if self.mask_truncated_completions:
            keys["algo.missing_eos_penalty"] = "`algo.mask_truncated_completions` leaves those completions out"
        if self.value_model == "shared":
            keys["algo.value_model_path"] = "`algo.value_model` is shared, so the trunk is the policy's"
        if self.on_policy(config):
            same = "a rollout makes one update, so the policy is the one that sampled (algo.num_ppo_epochs is 1)"
            keys |= {f"algo.{name}": same for name in ("epsilon", "value_clip", "early_stop_kl")}
        return keys

    def faults(self, config: Any) -> list[tuple[str, str]]:
        found = super().faults(config)
        steps, _ = self.schedule(config)
        if config.train.per_device_batch_size * steps < 2:
            sentence = "a rollout of one completion has nothing to be whitened with; raise it to 2 or more"
            found.append(("train.per_device_batch_size", sentence))
        if self.value_model == "separate" and config.model.quantization is not None:
            sentence = "separate copies the policy's trunk, which model.quantization does not allow; set it to shared"
            found.append(("algo.value_model", sentence))
        if bool(self.task_weights) != (self.task_column is not None):
            missing, given = ("task_column", "task_weights") if self.task_weights else ("task_weights", "task_column")
            found.append((f"algo.{given}", f"needs algo.{missing} beside it"))
        return found


class PPOPlugin(Plugin):
    """Shaped rewards, advantages, the value loss and the two controllers of PPO; see this module.

    Args:
        params: the parameters.

    Attributes:
        kl_coef: the coefficient of the next rollout.
        skipped: updates that an early stop has left out so far.
    """

    def __init__(self, params: PPO) -> None:
        self.params = params
        self.kl_coef = params.kl_coef
        self.skipped = 0
        self.value: Any = None
        self.loss_beta = 0.0 if params.kl_coef else None
        self._stopped = False
        self._tokens: Any = None  # of the minibatch, over all processes
        self._sums: Any = None  # statistics of the minibatch so far

    def start(self) -> None:
        params = self.params
        self.value = import_attribute(VALUE + "build_value")(
            self.trainer, self.config, kind=params.value_model, path=params.value_model_path
        )
        if params.early_stop_kl is not None and getattr(self.trainer.accelerator, "scaler", None) is not None:
            raise ConfigurationError(
                "algo.early_stop_kl skips optimizer steps, which the loss scaler of fp16 cannot follow",
                hint="set model.precision to bf16 or fp32, or leave algo.early_stop_kl out",
            )

    # ---- a rollout -------------------------------------------------------------------------------------------

    def advantages(self, rewards: Any, out: dict[str, Any]) -> Any:
        import torch

        p, reduce = self.params, self._over_processes
        with torch.no_grad():
            scores = self._scores(rewards, out)
            mask = out["completion_mask"]
            old, reference = self._old_logps(out), out.get("ref_per_token_logps")
            if p.kl_coef and reference is None:
                raise TrainingError(
                    "the training library gave no log-probabilities of the reference", hint="set algo.kl_coef to 0"
                )
            kl = torch.zeros_like(old) if reference is None else maths.kl_terms(old, reference, p.kl_estimator)
            values = self.value.of(out) * mask
            shaped = maths.shaped_rewards(scores, kl, mask, self.kl_coef)
            if p.whiten_rewards:
                shaped = maths.whiten(shaped, mask, shift_mean=False, reduce=reduce)
            advantages, returns = maths.gae(shaped, values, mask, gamma=p.gamma, lam=p.lam)
            out |= {"old_per_token_logps": old, "values": values, "returns": returns}
            self._after_rollout(kl, out)
            return maths.whiten(advantages, mask, reduce=reduce) if p.whiten_advantages else advantages

    def _scores(self, rewards: Any, out: dict[str, Any]) -> Any:
        """(B,) scores with the penalty; a completion without one is left out of the loss through its mask."""
        import torch

        scores, mask = self.local(self.total(rewards)), out["completion_mask"]
        ends = torch.tensor(sorted(self._terminators()), device=mask.device)
        last = (mask.sum(-1) - 1).clamp(min=0).unsqueeze(1)
        cut_off = ~torch.isin(out["completion_ids"].gather(1, last).squeeze(1), ends) & (mask.sum(-1) > 0)
        out["completion_mask"] = mask * (~scores.isnan()).unsqueeze(1).to(mask.dtype)
        self.log("ppo/cut_off", self._mean(cut_off.float()))
        return scores.nan_to_num(0.0) - self.params.missing_eos_penalty * cut_off

    def _terminators(self) -> set[int]:
        """Ids that end a completion; padding stands there where the model stopped at an end that is not masked."""
        tokenizer = self.trainer.processing_class
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        given = model.generation_config.eos_token_id
        many = given if isinstance(given, list) else [given]
        return {i for i in (*many, tokenizer.eos_token_id, tokenizer.pad_token_id) if i is not None}

    def _old_logps(self, out: dict[str, Any]) -> Any:
        """(B, T) log-probabilities of the policy that sampled; TRL computes them only where it needs them."""
        import torch

        if "old_per_token_logps" in out:
            return out["old_per_token_logps"]
        trainer, size = self.trainer, self.trainer.args.per_device_train_batch_size
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        rows = range(0, len(out["completion_ids"]), size)
        chunks = [{name: out[name][i : i + size] for name in names} for i in rows]
        return torch.cat([self.backend.per_token_logps(trainer.model, c, trainer.temperature) for c in chunks])

    def _after_rollout(self, kl: Any, out: dict[str, Any]) -> None:
        """Log what describes a rollout, and move the adaptive coefficient."""
        p, mask, reduce = self.params, out["completion_mask"], self._over_processes
        if p.kl_coef:
            per_token, _ = maths.moments(kl, mask, reduce)
            per_completion = self._mean((kl * mask).sum(-1))
            self.log("kl", per_token)
            self.log("ppo/completion_kl", per_completion)
            self.log("ppo/kl_coef", self.kl_coef)
            if p.target_kl is not None and self.training:
                episodes = len(kl) * self.trainer.accelerator.num_processes
                self.kl_coef = maths.adapted(
                    self.kl_coef, per_completion, target=p.target_kl, episodes=episodes, horizon=p.kl_horizon
                )
        explained = maths.explained_variance(out["values"], out["returns"], mask, reduce)
        if explained is not None:
            self.log("ppo/explained_variance", explained)
        self.log("ppo/returns", maths.moments(out["returns"], mask, reduce)[0])

    # ---- an update -------------------------------------------------------------------------------------------

    def micro_batch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Make TRL's normaliser the tokens of this minibatch, in place of the rollout's share for one."""
        if not self.training:
            return inputs
        args, step = self.trainer.args, self.trainer._step
        parts, size = args.gradient_accumulation_steps, args.steps_per_generation
        if step % parts == 0 or self._tokens is None:
            first = step % size // parts * parts
            minibatch = self.trainer._buffered_inputs[first : first + parts]
            self._tokens = self._over_processes(sum(b["completion_mask"].sum() for b in minibatch))
        return {**inputs, "num_items_in_batch": self._tokens * (size / parts)}

    def token_loss(self, logps: Any, inputs: dict[str, Any]) -> Any:
        import torch

        p, mask = self.params, inputs["completion_mask"]
        values = self.value.learning(inputs)
        loss = maths.value_loss(values, inputs["values"], inputs["returns"], p.value_clip)
        if self.training:
            with torch.no_grad():
                sums = maths.update_statistics(logps, inputs["old_per_token_logps"], mask, p.epsilon)
                sums = torch.cat([sums, (loss * mask).sum().unsqueeze(0)])
                self._sums = sums if self._sums is None else self._sums + sums
        return p.vf_coef * loss

    def skip_update(self) -> bool:
        trainer = self.trainer
        if not trainer.accelerator.sync_gradients:
            return self._stopped
        sums = self._over_processes(self._sums)
        _, *means = (sums / sums[0].clamp(min=1.0)).tolist()
        self._sums = None
        for name, mean in zip(("ratio", "approx_kl", "clip_fraction", "value_loss"), means, strict=True):
            self.log(f"ppo/{name}", mean)
        limit = self.params.early_stop_kl
        if limit is not None:
            self._stopped = skip = self._stopped or means[1] > limit
            self.skipped += skip
            self.log("ppo/skipped", float(skip))
            self.log("ppo/skipped_so_far", self.skipped)
        else:
            skip = False
        if not skip:
            self._join_gradients()
        self._next_pass()
        return skip

    def _next_pass(self) -> None:
        """Cut the rollout into other minibatches for its next pass; end a stop with its rollout."""
        trainer = self.trainer
        size, step = trainer.args.steps_per_generation, trainer._step
        if step % (size * trainer.num_iterations) == 0:
            self._stopped = False
        elif step % size == 0 and self.params.num_mini_batches > 1:
            shuffle, split = (
                import_attribute(f"trl.trainer.utils:{n}") for n in ("shuffle_sequence_dict", "split_tensor_dict")
            )
            trainer._buffered_inputs = split(shuffle(_joined(trainer._buffered_inputs)), size)

    def _join_gradients(self) -> None:
        """Average the value model's gradients over processes and clip their norm, which the library's loop does for the
        policy's alone."""
        import torch

        accelerator, learned = self.trainer.accelerator, self.parameters()
        for parameter in learned:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if accelerator.num_processes > 1:
            for parameter in learned:
                parameter.grad.copy_(accelerator.reduce(parameter.grad, reduction="mean"))
        scaler = getattr(accelerator, "scaler", None)
        scale = scaler.get_scale() if scaler is not None else 1.0
        norm = torch.nn.utils.clip_grad_norm_(learned, self.trainer.args.max_grad_norm * scale)
        self.log("ppo/value_grad_norm", float(norm) / scale)

    def parameters(self) -> list[Any]:
        return [p for p in self.value.parameters() if p.requires_grad]

    def optimizer_options(self) -> dict[str, Any]:
        rate = self.params.value_learning_rate
        return {} if rate is None else {"lr": rate}

    # ---- state -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        learned = {f"value.{n}": p for n, p in self.value.named_parameters() if p.requires_grad}
        return {"kl_coef": self.kl_coef, "skipped": self.skipped, **learned}

    def load_state(self, state: dict[str, Any]) -> None:
        self.kl_coef, self.skipped = float(state["kl_coef"]), int(state["skipped"])
        for name, parameter in self.value.named_parameters():
            if parameter.requires_grad:
                parameter.data.copy_(state[f"value.{name}"])

    def save(self, folder: Path) -> None:
        import_attribute(VALUE + "save_value")(self.value, folder, self.trainer.processing_class)

    # ---- over processes --------------------------------------------------------------------------------------

    def _over_processes(self, values: Any) -> Any:
        return self.trainer.accelerator.reduce(values, reduction="sum")

    def _mean(self, values: Any) -> float:
        """Mean of (B,) values over all processes."""
        return float(self._over_processes(values.sum()) / (len(values) * self.trainer.accelerator.num_processes))


def _joined(batches: list[dict[str, Any]]) -> dict[str, Any]:
    """Micro-batches of one rollout as one batch again."""
    import torch

    first = batches[0]
    many = {k for k, v in first.items() if isinstance(v, torch.Tensor) and v.dim()}
    return {k: torch.cat([b[k] for b in batches]) if k in many else v for k, v in first.items()}
