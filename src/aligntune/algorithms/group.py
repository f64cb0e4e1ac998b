"""What the algorithms on TRL's GRPOTrainer have in common, in sets of options: each takes the sets that it leaves open.

    @algorithm("cispo", trainer="trl:GRPOTrainer", args="trl:GRPOConfig", data=Schema.PROMPT)
    class CISPO(Scaling, Reference, Reuse): ...

Every option of TRL's GRPOConfig that decides what is computed has a neutral value in `NEUTRAL`. Over it come the values
that an algorithm fixes (`fixed`), and the fields that it has, which carry TRL's names where TRL has the option. So an
option that an algorithm fixes is no field of it, and nothing is left to a default of the library.

Source: `GRPOConfig` and `GRPOTrainer` of TRL 1.14.2. It computes nothing; the losses are TRL's, and a plugin's.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from aligntune.algorithms.base import AlgorithmParams
from aligntune.algorithms.plugin import Plugin
from aligntune.core.config.base import section, to_plain
from aligntune.core.config.sections import Fraction, OpenFraction
from aligntune.registry import import_attribute

LAYER = "aligntune.core.rl.layer:layered"  # a lazy name, because the layer stands higher
NEUTRAL: dict[str, Any] = {
    "num_generations": 8,
    "num_generations_eval": 1,
    "beta": 0.0,
    "epsilon": 0.2,
    "epsilon_high": None,
    "delta": None,
    "loss_type": "grpo",
    "scale_rewards": "group",
    "importance_sampling_level": "token",
    "num_iterations": 1,
    "mask_truncated_completions": False,
    "use_bias_correction_kl": False,
    "disable_dropout": False,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
    "entropy_coef_min": 0.0,
    "entropy_coef_max": 1.0,
    "entropy_coef_delta": 0.005,
    "entropy_target": 0.2,
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "sync_ref_model": False,
    "ref_model_mixup_alpha": 0.6,
    "ref_model_sync_steps": 512,
    "sapo_temperature_pos": 1.0,
    "sapo_temperature_neg": 1.05,
    "vespo_k_pos": 2.0,
    "vespo_lambda_pos": 3.0,
    "vespo_k_neg": 3.0,
    "vespo_lambda_neg": 2.0,
}
"""What TRL gets for an option that an algorithm neither has nor fixes: no term, no correction, GRPO's average."""
_COLOCATED = ("gpu_memory_utilization", "tensor_parallel_size", "max_model_length", "enable_sleep_mode")
_SERVER = ("server_base_url", "server_host", "server_port", "server_timeout", "group_port")
_CORRECTION = ("importance_sampling_mode", "importance_sampling_clip_max", "importance_sampling_clip_min")


def vllm_arguments(generation: Any) -> dict[str, Any]:
    """TRL's `use_vllm` and `vllm_*` values out of the section `generation`."""
    return {k: v for k, v in to_plain(generation).items() if k == "use_vllm" or k.startswith("vllm_")}


def vllm_inert(generation: Any) -> dict[str, str]:
    """The keys of vLLM that other keys switch off, with the reason."""
    g = generation
    if not g.use_vllm:
        names = [k for k in vllm_arguments(g) if k != "use_vllm"]
        return {f"generation.{k}": "`generation.use_vllm` is false" for k in names}
    other = _SERVER if g.vllm_mode == "colocate" else _COLOCATED
    keys = {f"generation.vllm_{k}": f"`generation.vllm_mode` is {g.vllm_mode}" for k in other}
    if not g.vllm_importance_sampling_correction:
        keys |= {
            f"generation.vllm_{k}": "`generation.vllm_importance_sampling_correction` is false" for k in _CORRECTION
        }
    return keys


def nearest_batches(batch: int, passes: int, group: int) -> str:
    """The nearest batches, one below and one above, whose completions in `passes` passes make whole groups."""
    whole = group // math.gcd(group, passes)
    below = batch // whole * whole
    return " or ".join(str(n) for n in (below, below + whole) if n)


def nearest_divisors(completions: int, group: int) -> str:
    """The nearest group sizes of at least 2, one below and one above, that divide `completions`."""
    fitting = [n for n in range(2, completions + 1) if completions % n == 0]
    near = [*[n for n in fitting if n < group][-1:], *[n for n in fitting if n > group][:1]]
    return " or ".join(map(str, near)) or f"a divisor of {completions}"


@section
class GroupPolicy(AlgorithmParams):
    """Base of the algorithms that compare the completions of one prompt, with the options that all of them have."""

    learning_rate: ClassVar[float] = 1e-6  # DeepSeekMath, section 4.2; TRL's GRPOConfig
    uses_rewards: ClassVar[bool] = True
    limits: ClassVar[dict[str, str]] = {
        "num_generations": "a completion is compared with the others of its prompt; pace and ppo take single ones"
    }

    num_generations: Annotated[int, Ge(2)] = 8
    """Completions per prompt, G (TRL; DeepSeekMath samples 64)."""
    num_generations_eval: PositiveInt = 1
    """Answers per held-out prompt, averaged; above 1 needs `evaluation.temperature` (1: greedy decoding)."""
    mask_truncated_completions: bool = False
    """Leave completions without a terminator out of the loss (DAPO, arXiv:2503.14476, section 3.4; off in TRL)."""
    disable_dropout: bool = False
    """Switch the model's dropout off, so that the ratio of an unchanged policy is 1 (off in TRL)."""
    top_entropy_quantile: OpenFraction = 1.0
    """Take the policy loss of this share of tokens only, those of highest entropy (arXiv:2506.01939 takes 0.2; TRL: 1,
    all)."""
    entropy_coef: NonNegativeFloat = 0.0
    """Factor of an entropy bonus; with `use_adaptive_entropy` its start (TRL: 0, none)."""
    use_adaptive_entropy: bool = False
    """Steer `entropy_coef` so that the entropy stays near `entropy_target` (Skywork-OR1, arXiv:2505.22312; TRL)."""
    entropy_coef_min: NonNegativeFloat = 0.0
    """Least adaptive factor (TRL)."""
    entropy_coef_max: NonNegativeFloat = 1.0
    """Largest adaptive factor (TRL)."""
    entropy_coef_delta: PositiveFloat = 0.005
    """Step of the adaptive factor (Skywork-OR1; TRL)."""
    entropy_target: PositiveFloat = 0.2
    """Entropy per token, in nats, below which the adaptive factor rises (Skywork-OR1; TRL)."""

    def arguments(self, config: Any) -> dict[str, Any]:
        g, own = config.generation, to_plain(self)
        steps, _ = self.schedule(config)
        policy = {**NEUTRAL, **self.fixed, **{name: own[name] for name in NEUTRAL if name in own}}
        if policy["epsilon_high"] is None:  # TRL takes `epsilon`, and Unsloth 0.28 with some losses
            policy["epsilon_high"] = policy["epsilon"]
        return {
            **policy,
            "steps_per_generation": steps,
            "multi_objective_aggregation": own.get("reward_aggregation", "sum_then_normalize"),
            "reward_weights": [r.weight for r in config.rewards] if self.splits_rewards else None,
            "cast_lm_head_to_fp32": False,
            "generation_kwargs": None,
            "max_completion_length": g.max_completion_length,
            "temperature": g.temperature,
            "top_p": g.top_p,
            "top_k": g.top_k,
            "min_p": g.min_p,
            "repetition_penalty": g.repetition_penalty,
            **vllm_arguments(g),
            "shuffle_dataset": True,
            "log_completions": False,
        }

    def plugin(self, config: Any) -> Plugin:
        """What this algorithm adds to TRL's trainer; nothing here, and more in its descendants."""
        return Plugin()

    def trainer_type(self, base: type) -> type:
        return import_attribute(LAYER)(base)  # type: ignore[no-any-return]

    def attach(self, hf: Any, trainer: Any) -> None:
        hf.attach(self.plugin(trainer.config), trainer.config, trainer.backend)

    def schedule(self, config: Any) -> tuple[int, int]:
        """Micro-batches that one generation is cut into, and how often they are all used (`num_iterations`)."""
        return config.train.gradient_accumulation_steps, 1

    def window(self, config: Any) -> int:
        """Micro-batches between two generations."""
        steps, iterations = self.schedule(config)
        return steps * iterations

    def on_policy(self, config: Any) -> bool:
        """Whether every update is made by the policy that sampled, so that all ratios are 1."""
        return bool(config.train.gradient_accumulation_steps % self.window(config) == 0)

    def bound_to_batch(self, config: Any) -> str | None:
        if getattr(self, "loss_type", None) == "bnpo":
            return "`algo.loss_type` bnpo averages over the tokens of one forward pass"
        if getattr(self, "steps_per_generation", None) is not None:
            return "`algo.steps_per_generation` is set, so that fewer completions would be sampled together"
        return None

    def resumable(self, config: Any, step: int) -> bool:
        return bool(step * config.train.gradient_accumulation_steps % self.window(config) == 0)

    def inert_keys(self, config: Any) -> dict[str, str]:
        keys = {**super().inert_keys(config), **vllm_inert(config.generation)}
        if not self.use_adaptive_entropy:
            adaptive = ("entropy_coef_min", "entropy_coef_max", "entropy_coef_delta", "entropy_target")
            keys |= {f"algo.{name}": "`algo.use_adaptive_entropy` is false" for name in adaptive}
        return keys

    def faults(self, config: Any) -> list[tuple[str, str]]:
        return [
            *super().faults(config),
            *self._batch_faults(config),
            *self._reward_faults(config),
            *self._length_faults(config),
            *self._option_faults(config),
        ]

    def _batch_faults(self, config: Any) -> list[tuple[str, str]]:
        t, found = config.train, []
        steps, iterations = self.schedule(config)
        rollout = t.per_device_batch_size * steps
        if rollout % self.num_generations:
            found.append(
                (
                    "algo.num_generations",
                    f"{self.num_generations} does not divide the completions of one generation: "
                    f"per_device_batch_size {t.per_device_batch_size} x steps per generation {steps} = "
                    f"{rollout}, and {rollout} / {self.num_generations} = "
                    f"{rollout / self.num_generations:.3g} prompts; "
                    "set train.per_device_batch_size to "
                    f"{nearest_batches(t.per_device_batch_size, steps, self.num_generations)}"
                    f", or algo.num_generations to {nearest_divisors(rollout, self.num_generations)}",
                )
            )
        if not self.resumable(config, t.save_steps or 0):
            found.append(
                (
                    "train.save_steps",
                    f"{t.save_steps} falls inside a generation window, where a resume is not exact: "
                    f"save_steps x gradient_accumulation_steps ({t.save_steps * t.gradient_accumulation_steps}) must "
                    f"be a multiple of steps_per_generation x num_iterations ({steps * iterations})",
                )
            )
        return found

    def _reward_faults(self, config: Any) -> list[tuple[str, str]]:
        if not config.rewards:
            name = self.key.upper() if self.key == "grpo" else self.key
            return [("rewards", f"is empty; {name} needs at least one, for example `rewards: [math_correctness]`")]
        if all(r.weight == 0 for r in config.rewards):
            return [("rewards", "have only zero weights, so every advantage would be 0")]
        return []

    def _length_faults(self, config: Any) -> list[tuple[str, str]]:
        g = config.generation
        longest = g.max_prompt_length + g.max_completion_length
        if longest <= config.model.max_seq_length:
            return []
        return [
            (
                "model.max_seq_length",
                f"{config.model.max_seq_length} is below generation.max_prompt_length {g.max_prompt_length} + "
                f"generation.max_completion_length {g.max_completion_length} = {longest}",
            )
        ]

    def _option_faults(self, config: Any) -> list[tuple[str, str]]:
        g, found = config.generation, []
        if self.num_generations_eval > 1 and config.evaluation.temperature == 0:
            sentence = "several answers decoded greedily are all the same; set evaluation.temperature above 0"
            found.append(("algo.num_generations_eval", sentence))
        if self.entropy_coef_min > self.entropy_coef_max:
            found.append(("algo.entropy_coef_min", f"is above algo.entropy_coef_max {self.entropy_coef_max}"))
        low, high = g.vllm_importance_sampling_clip_min, g.vllm_importance_sampling_clip_max
        if low is not None and high is not None and low >= high:
            found.append(("generation.vllm_importance_sampling_clip_min", f"must be below the upper limit {high}"))
        if low is None and high is None and g.vllm_importance_sampling_mode.endswith("truncate"):
            sentence = "and its lower limit are both unset, so there is nothing to truncate at"
            found.append(("generation.vllm_importance_sampling_clip_max", sentence))
        return found

    @property
    def invariance(self) -> frozenset[str]:
        kind = getattr(self, "scale_rewards", self.fixed.get("scale_rewards", NEUTRAL["scale_rewards"]))
        scales = {"group": {"scale", "group scale"}, "batch": {"scale"}, "none": set()}[kind]
        return frozenset({"shift", "group shift", *scales})


@section
class Reuse(GroupPolicy):
    """Several updates per generation."""

    num_iterations: PositiveInt = 1
    """Passes over one batch of completions, mu in DeepSeekMath's algorithm 1 (TRL)."""
    steps_per_generation: PositiveInt | None = None
    """Micro-batches that one generation is cut into; None takes `train.gradient_accumulation_steps` (TRL)."""
    off_policy_mask_threshold: PositiveFloat | None = None
    """Leave completions of negative advantage out whose mean log-probability fell by more than this since they were
    sampled (DeepSeek-V3.2's sequence mask; TRL: None, off)."""

    def schedule(self, config: Any) -> tuple[int, int]:
        return self.steps_per_generation or config.train.gradient_accumulation_steps, self.num_iterations

    def inert_keys(self, config: Any) -> dict[str, str]:
        keys = super().inert_keys(config)
        if self.on_policy(config) and not config.generation.use_vllm:
            reason = "the policy that is updated is the one that sampled (one update per generation)"
            keys["algo.off_policy_mask_threshold"] = reason
        return keys

    def clip_notes(self, config: Any, names: tuple[str, ...]) -> list[str]:
        """A sentence where clipping does nothing, though it was set or is what the algorithm is about."""
        default = type(self)()
        set_here = any(getattr(self, n) != getattr(default, n) for n in names)
        central = any(getattr(default, n) not in (None, NEUTRAL[n]) for n in names)
        if not self.on_policy(config) or not (set_here or central):
            return []
        return [
            "every update is made by the policy that sampled, so all ratios are 1 and clipping does nothing; "
            "raise algo.num_iterations or algo.steps_per_generation for several updates per generation"
        ]


@section
class Clip(Reuse):
    """PPO's clipped ratio."""

    epsilon: Annotated[float, Gt(0)] = 0.2
    """Lower clip of the ratio, and the upper one where `epsilon_high` is not set (PPO, Schulman et al. 2017)."""
    epsilon_high: PositiveFloat | None = None
    """Upper clip (DAPO, arXiv:2503.14476, section 3.1); None takes `epsilon`."""
    delta: PositiveFloat | None = None
    """Cap of the ratio for negative advantages too, above 1 + `epsilon_high` (two-sided clipping, INTELLECT-2,
    arXiv:2505.07291; TRL: None, off)."""

    def faults(self, config: Any) -> list[tuple[str, str]]:
        found = super().faults(config)
        top = 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)
        if self.delta is not None and self.delta <= top:
            found.append(("algo.delta", f"{self.delta} must be above 1 + the upper clip = {top:g}"))
        return found

    def notes(self, config: Any) -> list[str]:
        return [*super().notes(config), *self.clip_notes(config, ("epsilon", "epsilon_high", "delta"))]


@section
class Reference(GroupPolicy):
    """A KL term against the starting model in the loss: beta (exp(-D) + D - 1), D = log pi - log pi_ref."""

    beta: NonNegativeFloat = 0.0
    """KL strength; 0 keeps no reference model (TRL)."""
    use_bias_correction_kl: bool = False
    """Multiply the KL term by the ratio (DeepSeek-V3.2; on in TRL, absent from the papers of these algorithms)."""
    sync_ref_model: bool = False
    """Move the reference towards the policy every `ref_model_sync_steps` (TR-DPO, arXiv:2404.09656; off in TRL)."""
    ref_model_mixup_alpha: Fraction = 0.6
    """Share of the policy in the new reference (TR-DPO; TRL)."""
    ref_model_sync_steps: PositiveInt = 512
    """Optimizer steps between two moves (TR-DPO; TRL)."""

    def inert_keys(self, config: Any) -> dict[str, str]:
        keys = super().inert_keys(config)
        if not self.beta:
            keys |= {f"algo.{n}": "`algo.beta` is 0" for n in ("use_bias_correction_kl", "sync_ref_model")}
        if not self.sync_ref_model:
            names = ("ref_model_mixup_alpha", "ref_model_sync_steps")
            keys |= {f"algo.{n}": "`algo.sync_ref_model` is false" for n in names}
        return keys

    def faults(self, config: Any) -> list[tuple[str, str]]:
        found = super().faults(config)
        if self.sync_ref_model and config.model.peft is not None:
            sentence = "the reference of adapters is the base model without them, which cannot move; remove model.peft"
            found.append(("algo.sync_ref_model", sentence))
        return found


@section
class Scaling(GroupPolicy):
    """How rewards become advantages: (R - mean of the group) / (standard deviation + 1e-4)."""

    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Divide the advantage by the standard deviation of its group (DeepSeekMath), of the batch, or not at all."""
    reward_aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    """Several rewards: their weighted sum is compared (TRL), or each is normalised in its group, then they are summed
    by weight and normalised over the batch (GDPO, arXiv:2601.05242)."""

    @property
    def splits_rewards(self) -> bool:
        return self.reward_aggregation == "normalize_then_sum"

    def inert_keys(self, config: Any) -> dict[str, str]:
        keys = super().inert_keys(config)
        if self.splits_rewards:
            keys["algo.scale_rewards"] = "`algo.reward_aggregation` normalize_then_sum does its own scaling"
        return keys
