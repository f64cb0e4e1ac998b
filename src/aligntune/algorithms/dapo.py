"""DAPO: decoupled clip and dynamic sampling policy optimisation (Yu et al. 2025, arXiv:2503.14476), all four parts.

1. Clip-higher: the ratio is clipped to [1 - 0.2, 1 + 0.28] (section 3.1).
2. Dynamic sampling: groups whose task rewards are all equal teach nothing; they are dropped, and new prompts are
   sampled until the batch is full, at most `max_resample` times. Slots that stay empty are masked out of the loss and
   of its normaliser; an empty batch makes no update (section 3.2).
3. Token-level loss: the mean over all tokens of the batch (section 3.3).
4. Overlong shaping: a length L costs 0 up to L_max - C, (L_max - C - L) / C up to L_max, -1 beyond (equation 13),
   added after the groups were judged; truncated completions are left out of the loss (section 3.4). There is no KL
   term.

    algo: {name: dapo, num_generations: 8, max_resample: 3}

TRL has 1, 3 and the masking; 2 and the punishment stand here. Completions of a new round are drawn by the policy of
the same step, and their prompts by a stream seeded with (seed, step, round), so that a resumed run draws the same
ones.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, ClassVar

from annotated_types import Ge
from pydantic import NonNegativeInt, PositiveFloat

from aligntune.algorithms.base import Schema, algorithm
from aligntune.algorithms.group import Clip
from aligntune.algorithms.plugin import Generate, Plugin

LEFT_PADDED = ("prompt_ids", "prompt_mask")


@algorithm("dapo", trainer="trl:GRPOTrainer", args="trl:GRPOConfig", data=Schema.PROMPT)
class DAPO(Clip):
    """GRPO that samples until every group teaches, clips upwards more widely, and punishes overlong answers softly."""

    fixed: ClassVar[dict[str, Any]] = {
        "loss_type": "dapo",
        "scale_rewards": "group",
        "importance_sampling_level": "token",
        "beta": 0.0,
    }

    epsilon_high: PositiveFloat | None = 0.28
    """Upper clip (DAPO, section 3.1); None takes `epsilon`."""
    mask_truncated_completions: bool = True
    """Leave completions without a terminator out of the loss (DAPO, section 3.4)."""
    max_resample: NonNegativeInt = 3
    """Most rounds of new prompts for one batch; 0 only drops groups (a bound of ours: the paper samples on)."""
    overlong_buffer: Annotated[int, Ge(0)] | None = None
    """Tokens C before `generation.max_completion_length` in which the punishment grows; 0 is off, None a fifth of that
    length (DAPO, section 4.1: 4,096 of 20,480)."""

    def buffer(self, config: Any) -> int:
        """The length of the punished stretch in tokens."""
        longest: int = config.generation.max_completion_length
        return max(1, longest // 5) if self.overlong_buffer is None else self.overlong_buffer

    @property
    def invariance(self) -> frozenset[str]:
        """A scale counts, because the punishment is added to the totals as they are."""
        return frozenset({"shift", "group shift"})

    def plugin(self, config: Any) -> Plugin:
        return DynamicSampling(self.max_resample, self.buffer(config))

    def faults(self, config: Any) -> list[tuple[str, str]]:
        found, longest = super().faults(config), config.generation.max_completion_length
        if self.buffer(config) > longest:
            sentence = f"{self.overlong_buffer} is longer than generation.max_completion_length {longest}"
            found.append(("algo.overlong_buffer", sentence))
        return found


def overlong_punishment(lengths: Any, longest: int, buffer: int) -> Any:
    """Equation 13: 0, falling to -1 over the last `buffer` of `longest` tokens.

    Args:
        lengths: any shape, in tokens.
        longest: L_max.
        buffer: C; 0 punishes nothing.
    """
    if not buffer:
        return lengths * 0.0
    return ((longest - buffer - lengths) / buffer).clamp(-1.0, 0.0)


def informative(totals: Any, group: int) -> Any:
    """(groups,) whether a group's rewards differ, so that it has a gradient.

    Args:
        totals: (N,) task rewards, groups of `group` together; NaN for a completion without a score.
        group: completions per prompt.
    """
    grouped = totals.view(-1, group)
    known = ~grouped.isnan()
    high = grouped.masked_fill(~known, float("-inf")).amax(1)
    low = grouped.masked_fill(~known, float("inf")).amin(1)
    return high > low


def group_advantages(totals: Any, group: int) -> Any:
    """(N,) GRPO's advantages, (R - mean) / (std + 1e-4) in each group; 0 for a completion without a score."""
    grouped = totals.view(-1, group)
    mean = grouped.nanmean(1, keepdim=True)
    count = (~grouped.isnan()).sum(1, keepdim=True)
    variance = ((grouped - mean) ** 2).nansum(1, keepdim=True) / (count - 1).clamp(min=1)
    return ((grouped - mean) / (variance.sqrt() + 1e-4)).nan_to_num(nan=0.0).view(-1)


def draw(count: int, rows: int, seed: int, *place: int) -> list[int]:
    """`count` row numbers below `rows`, none twice before all are used, decided by the seed and the place alone."""
    import torch

    digest = hashlib.sha256(repr((seed, *place)).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += torch.randperm(rows, generator=generator)[: count - len(drawn)].tolist()
    return drawn


def fill(kept: dict[str, Any], slots: Any, fresh: dict[str, Any], sources: Any, padding: int) -> dict[str, Any]:
    """Rows `slots` of a rollout replaced by rows `sources` of another, padded to a common width.

    Args:
        kept: TRL's dictionary, tensors of leading dimension N; others are left as they are.
        slots: (M,) rows to replace.
        fresh: another one.
        sources: (M,) rows to take.
        padding: the pad token's id.
    """
    import torch
    from torch.nn.functional import pad

    def widen(name: str, tensor: Any, width: int) -> Any:
        missing = width - tensor.shape[1]
        side = (missing, 0) if name in LEFT_PADDED else (0, missing)
        return pad(tensor, side, value=padding if name.endswith("_ids") else 0) if missing else tensor

    filled = dict(kept)
    for name, tensor in kept.items():
        if not isinstance(tensor, torch.Tensor) or tensor.dim() == 0:
            continue
        new = fresh[name]
        if tensor.dim() > 1:
            width = max(tensor.shape[1], new.shape[1])
            tensor, new = widen(name, tensor, width), widen(name, new, width)
        filled[name] = tensor.index_copy(0, slots, new[sources])
    return filled


class DynamicSampling(Plugin):
    """DAPO's sampling and its advantages.

    Args:
        rounds: most rounds of new prompts.
        buffer: tokens of the overlong punishment.
    """

    def __init__(self, rounds: int, buffer: int) -> None:
        self.rounds, self.buffer = rounds, buffer
        self._totals: Any = None  # (N,) task rewards of the batch as it was filled
        self._filled: Any = None  # (groups,) of the same
        self._round = 0
        self._useful = False

    # ---- sampling ------------------------------------------------------------------------------------------------

    def rollout(self, generate: Generate, rows: list[dict[str, Any]]) -> dict[str, Any]:
        self._round, group = 0, self.trainer.num_generations
        out = self._gathered(generate(rows))
        totals = self.total(self.trainer.last_rewards)
        filled = informative(totals, group)
        sampled, useless = filled.numel(), int((~filled).sum())
        while self._round < self.rounds and not bool(filled.all()):
            self._round += 1
            fresh, scores = self._more(generate, int((~filled).sum()))
            good = informative(scores, group)
            sampled, useless = sampled + good.numel(), useless + int((~good).sum())
            out, totals, filled = self._take(out, totals, filled, fresh, scores, good)
        self._totals, self._filled = totals, filled
        self.log("dynamic_sampling/dropped_share", useless / sampled)
        self.log("dynamic_sampling/unfilled_share", 1 - float(filled.float().mean()))
        self.log("dynamic_sampling/rounds", self._round)
        return self._masked(out)

    def _more(self, generate: Generate, groups: int) -> tuple[dict[str, Any], Any]:
        """Completions of `groups` new prompts or a few more, so that every process gets as many, and their rewards."""
        t = self.trainer
        group, processes = t.num_generations, t.accelerator.num_processes
        while groups * group % processes:
            groups += 1
        place = (t.state.global_step, t._step % t.args.gradient_accumulation_steps, self._round)
        numbers = draw(groups, len(t.train_dataset), t.args.seed, *place)
        size = groups * group // processes
        first = t.accelerator.process_index * size
        rows = [t.train_dataset[numbers[i // group]] for i in range(first, first + size)]
        out = self._gathered(generate(rows))
        return out, self.total(t.last_rewards)

    def _take(
        self, out: dict[str, Any], totals: Any, filled: Any, fresh: dict[str, Any], scores: Any, good: Any
    ) -> tuple[dict[str, Any], Any, Any]:
        """Put the good groups of `fresh` into the empty slots of `out`."""
        import torch

        group = self.trainer.num_generations
        empty, new = (~filled).nonzero().view(-1), good.nonzero().view(-1)
        count = min(len(empty), len(new))
        within = torch.arange(group, device=totals.device)
        slots = (empty[:count, None] * group + within).view(-1)
        sources = (new[:count, None] * group + within).view(-1)
        out = fill(out, slots, fresh, sources, self._padding)
        totals, filled = totals.index_copy(0, slots, scores[sources]), filled.clone()
        filled[empty[:count]] = True
        return out, totals, filled

    def _gathered(self, out: dict[str, Any]) -> dict[str, Any]:
        """The rows of all processes, which hold equally many."""
        import torch

        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return out
        whole = dict(out)
        for name, tensor in sorted(out.items()):
            if not isinstance(tensor, torch.Tensor) or tensor.dim() == 0:
                continue
            if tensor.dim() > 1:
                index = self._padding if name.endswith("_ids") else 0
                first = name in LEFT_PADDED
                tensor = accelerator.pad_across_processes(tensor, dim=1, pad_index=index, pad_first=first)
            whole[name] = accelerator.gather(tensor)
        return whole

    def _masked(self, out: dict[str, Any]) -> dict[str, Any]:
        """This process's rows, empty slots out of the loss, and the number of tokens that are in it."""
        import torch

        group = self.trainer.num_generations
        mask = self._filled.repeat_interleave(group).unsqueeze(1).to(out["completion_mask"].dtype)
        self._lengths = self._length(out["completion_mask"])
        out["completion_mask"] = out["completion_mask"] * mask
        counted = out["completion_mask"] * out["tool_mask"] if "tool_mask" in out else out["completion_mask"]
        whole = {"num_items_in_batch": counted.sum()}
        for name, value in out.items():
            if isinstance(value, torch.Tensor) and value.dim() > 0:
                whole[name] = self.local(value)
        return {**out, **whole}

    def _length(self, mask: Any) -> Any:
        """(N,) tokens of each completion; the library masks truncated ones, which have the full length."""
        lengths = mask.sum(1)
        return lengths.masked_fill(lengths == 0, self.trainer.max_completion_length).float()

    @property
    def _padding(self) -> int:
        return int(self.trainer._tokenizer.pad_token_id)

    # ---- advantages and updates ------------------------------------------------------------------------------------

    def advantages(self, rewards: Any, out: dict[str, Any]) -> Any:
        group = self.trainer.num_generations
        punished = overlong_punishment(self._lengths, self.trainer.max_completion_length, self.buffer)
        self.log("overlong/punishment", float(punished.mean()))
        values = group_advantages(self._totals + punished, group)
        return self.local(values * self._filled.repeat_interleave(group))

    def micro_batch(self, inputs: dict[str, Any]) -> dict[str, Any]:
        tokens = self.trainer.accelerator.gather(inputs["completion_mask"].sum())
        self._useful |= bool(tokens.sum() > 0)
        return inputs

    def skip_update(self) -> bool:
        """An optimizer step without a single token would still move the weights by their momentum."""
        if not self.trainer.accelerator.sync_gradients:
            return False
        skip, self._useful = not self._useful, False
        if skip:
            self.log("dynamic_sampling/skipped_updates", 1.0)
        return skip

    def rollout_columns(self, totals: list[float | None]) -> dict[str, list[Any]]:
        columns: dict[str, list[Any]] = {"round": [self._round] * len(totals)}
        group = self.trainer.num_generations
        if self.trainer.accelerator.num_processes == 1:
            known = [{t for t in totals[i : i + group] if t is not None} for i in range(0, len(totals), group)]
            columns["dropped"] = [len(known[i // group]) < 2 for i in range(len(totals))]
        return columns
