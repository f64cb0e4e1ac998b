"""PACE: single-stream policy optimisation (arXiv:2509.13232) with a curriculum. One completion per prompt is enough.

The baseline of a completion is what is known of its prompt (`tracker`), not the mean of a group: A = R - v, with v from
before the visit, normalised over the batch: (A - mean) / (standard deviation + 1e-4). Then the loss is GRPO's. After
the visit the tracker takes the reward in; with several completions per prompt it forgets once and takes their mean.

    algo: {name: pace}                         # num_generations 1
    train: {per_device_batch_size: 64}         # so 64 prompts per step

Curriculum: each generation draws its prompts with the weight sqrt(v (1 - v)) + `exploration`, without repetition while
there are enough, from a stream that the seed and the number of the generation decide. The weights are taken anew every
`refresh` steps; they and the tracker are in the checkpoint, so a resumed run draws what the straight one would have.

Cost: one forward pass without gradient of two completions per prompt (the stored one again, and the new one), against
G - 1 completions less to generate than with a group of G. Memory: the last completion of each prompt that was visited,
8 bytes a token, on each process and in each checkpoint. It does not touch the tracker in evaluation.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Gt, Lt, MinLen
from pydantic import PositiveFloat, PositiveInt

from aligntune.algorithms.base import Schema, algorithm
from aligntune.algorithms.group import Clip, Reference
from aligntune.algorithms.plugin import Generate, Plugin
from aligntune.algorithms.scoring import completion_logps
from aligntune.algorithms.tracker import Belief, Tracker, curriculum_weight, drift, normalised, prompt_key
from aligntune.errors import ConfigurationError, TrainingError, ValidationError

Share = Annotated[float, Gt(0), Lt(1)]


@algorithm("pace", trainer="trl:GRPOTrainer", args="trl:GRPOConfig", data=Schema.PROMPT)
class PACE(Reference, Clip):
    """Learn from single completions, each compared with what its prompt has earned before."""

    fixed: ClassVar[dict[str, Any]] = {"scale_rewards": "none"}
    bounded_rewards: ClassVar[bool] = True

    num_generations: PositiveInt = 1
    """Completions per prompt and visit, G (the paper)."""
    loss_type: Literal["grpo", "bnpo", "dr_grpo", "dapo"] = "grpo"
    """How token losses are averaged (TRL's names): `grpo` per completion and then over completions (DeepSeekMath)."""
    rho_min: Share = 0.875
    """Least share of the past that a visit keeps; a prompt starts with strength 1 / (1 - rho_min) = 8 (the paper)."""
    rho_max: Share = 0.96
    """Largest share of the past that a visit keeps, and that of a first visit (the paper)."""
    d_half: PositiveFloat = 0.06
    """Drift of the policy, in nats per token, that halves the past (the paper)."""
    offline_estimate: Annotated[str, MinLen(1)] | None = None
    """Expected reward in [0, 1] of each prompt before training: a column, or a .jsonl file of `prompt` and `value`
    (several values of one prompt are averaged); None starts every prompt at 0.5 (the paper estimates it)."""
    curriculum: bool = True
    """Draw prompts by the tracker (the paper); false takes them in the shuffled order of the data, as GRPO does."""
    refresh: PositiveInt = 10
    """Optimizer steps after which the curriculum's weights are taken anew (ours)."""
    exploration: PositiveFloat = 0.05
    """Weight of a prompt that is never or always answered well; 0.5 more at even odds (the paper)."""

    def arguments(self, config: Any) -> dict[str, Any]:
        values = super().arguments(config)
        if self.num_generations == 1:  # the constructor refuses 1, and takes one group of the whole batch
            values["num_generations"] = self._rollout(config)
        return values

    def late_arguments(self, config: Any) -> dict[str, Any]:
        return {**super().late_arguments(config), "num_generations": self.num_generations}

    def _rollout(self, config: Any) -> int:
        """Completions per process and generation."""
        return int(config.train.per_device_batch_size * self.schedule(config)[0])

    def plugin(self, config: Any) -> Plugin:
        return PacePlugin(self)

    def inert_keys(self, config: Any) -> dict[str, str]:
        keys = super().inert_keys(config)
        if not self.curriculum:
            keys |= {f"algo.{name}": "`algo.curriculum` is false" for name in ("refresh", "exploration")}
        return keys

    def faults(self, config: Any) -> list[tuple[str, str]]:
        found = super().faults(config)
        if self._rollout(config) < 2:
            sentence = "1 gives generations of one completion; advantages are normalised over at least 2"
            found.append(("train.per_device_batch_size", sentence))
        if self.rho_min > self.rho_max:
            found.append(("algo.rho_min", f"{self.rho_min:g} is above algo.rho_max {self.rho_max:g}"))
        return found

    def check(self, trainer: Any) -> None:
        super().check(trainer)
        reward_range(trainer.rewards)
        rows = trainer._train_rows().dataset
        prompts = self._rollout(trainer.config) * int(os.environ.get("WORLD_SIZE", "1")) // self.num_generations
        if len(rows) < prompts:
            raise ValidationError(
                f"{len(rows)} training prompts are fewer than the {prompts} of one generation",
                hint="lower train.per_device_batch_size, or give more data",
            )
        if self.offline_estimate is not None:
            offline_priors(self.offline_estimate, rows)


def reward_range(composite: Any) -> tuple[float, float]:
    """Lowest and highest total of a run's rewards, by their declared ranges and the run's composition.

    Raises:
        ConfigurationError: a reward declares no finite range, so its score cannot be mapped to [0, 1].
    """
    low, high = composite.bounds
    if not (math.isfinite(low) and math.isfinite(high)):
        unbounded = [c.name for c in composite.components if c.weight and not all(map(math.isfinite, c.bounds))]
        raise ConfigurationError(
            f"reward '{', '.join(unbounded)}' declares no finite range, and pace compares rewards with an expected "
            "value in [0, 1]",
            hint="decorate the function with @reward(name, range=(low, high)), or set a threshold",
        )
    return low, high


def offline_priors(source: str, rows: Any) -> dict[bytes, float]:
    """Key of each prompt to its estimated reward, from a column of the rows or a .jsonl file.

    Raises:
        ConfigurationError: there is no such file or column, or the file names no prompt of the data.
        ValidationError: a value is no number in [0, 1].
    """
    if source.endswith(".jsonl"):
        pairs = list(_read_estimates(Path(source).expanduser()))
    elif source in rows.column_names:
        pairs = [(f"row {i}", row["prompt"], row[source]) for i, row in enumerate(rows)]
    else:
        raise ConfigurationError(
            f"algo.offline_estimate is '{source}', which is neither a column of the data nor a .jsonl file",
            hint=f"the columns are: {', '.join(rows.column_names)}",
        )
    values: dict[bytes, list[float]] = {}
    for where, prompt, value in pairs:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
            raise ValidationError(
                f"{source}, {where}: {value!r} is no number in [0, 1]", hint="estimate the reward after rescaling"
            )
        values.setdefault(prompt_key(prompt), []).append(float(value))
    wanted = {prompt_key(p) for p in rows["prompt"]}
    if not wanted & values.keys():
        raise ConfigurationError(
            f"{source} names none of the {len(wanted)} prompts of the data",
            hint="its `prompt` must be the text of the user's message, or the messages, as in the data",
        )
    return {key: math.fsum(found) / len(found) for key, found in values.items() if key in wanted}


def _read_estimates(path: Path) -> Iterable[tuple[str, Any, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # a prompt may hold the other ends of lines
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigurationError(
            f"algo.offline_estimate: cannot read {path} ({getattr(e, 'strerror', None) or e})",
            hint="give a .jsonl file with `prompt` and `value`, or a column of the data",
        ) from e
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield f"line {number}", row["prompt"], row["value"]
        except (json.JSONDecodeError, KeyError, TypeError) as e:
            raise ValidationError(
                f"{path}, line {number}: not an object with `prompt` and `value`", hint="write one JSON object a line"
            ) from e


class PacePlugin(Plugin):
    """Baselines, curriculum and their state.

    Logged for each generation: `pace/value` (mean v before the visits), `pace/rho`, `pace/drift` (of the prompts that
    were met again; left out where there are none), `pace/revisits` (their share) and `pace/visited` (share of all
    prompts that were met at least once).
    """

    def __init__(self, params: PACE) -> None:
        self.params = params
        self.tracker = Tracker(params.rho_min, params.rho_max, params.d_half)
        self.keys: list[bytes] = []
        self.prompts = 0  # different ones among them
        self.range = (0.0, 1.0)
        self.generations = 0
        self.snapshot: list[float] = []
        self.snapshot_step = 0
        self.rows: list[dict[str, Any]] = []

    def start(self) -> None:
        data = self.trainer.train_dataset
        self.keys = [prompt_key(prompt) for prompt in data["prompt"]]
        self.prompts = len(set(self.keys))
        self.range = reward_range(self.trainer.reward_funcs[0].composite)
        if self.params.offline_estimate is not None:
            self.tracker.priors = offline_priors(self.params.offline_estimate, data)
        self._refresh()

    # ---- curriculum ------------------------------------------------------------------------------------------

    def rollout(self, generate: Generate, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if not self.training:
            return generate(rows)
        if self.params.curriculum:
            rows = self._drawn(len(rows))
        self.generations += 1
        self.rows = rows
        return generate(rows)

    def _drawn(self, count: int) -> list[dict[str, Any]]:
        """The rows of this process, `count` of them, out of a draw that is the same on every process."""
        step = self.trainer.state.global_step
        if step - self.snapshot_step >= self.params.refresh:
            self._refresh()
        accelerator, repeat = self.trainer.accelerator, self.params.num_generations
        prompts = count * accelerator.num_processes // repeat
        order = draw(self.snapshot, prompts, f"{self.config.train.seed}:{self.generations}")
        first = accelerator.process_index * count
        return [self.trainer.train_dataset[order[i // repeat]] for i in range(first, first + count)]

    def _refresh(self) -> None:
        self.snapshot = [curriculum_weight(self.tracker.value(key), self.params.exploration) for key in self.keys]
        self.snapshot_step = self.trainer.state.global_step

    # ---- advantages ------------------------------------------------------------------------------------------

    def advantages(self, rewards: Any, out: dict[str, Any]) -> Any:
        """(B,) of this process; the tracker of every process takes in the rewards of all."""
        import torch
        from accelerate.utils import gather_object

        if not self.training:
            return None
        if self.params.num_generations == 1:  # a group of one has no deviation, which would be logged as 1
            self.trainer._metrics["train"].pop("frac_reward_zero_std", None)
        keys: list[bytes] = gather_object([prompt_key(row["prompt"]) for row in self.rows])
        scores = [self._unit(float(r)) for r in self.total(rewards)]
        before = [self.tracker.value(key) for key in keys]
        values = normalised([r - v for r, v in zip(scores, before, strict=True)])
        visits = dict(gather_object(self._looks(keys, out)))
        earned: dict[bytes, list[float]] = {}
        for key, score in zip(keys, scores, strict=True):
            if not math.isnan(score):
                earned.setdefault(key, []).append(score)
        for key, found in earned.items():
            self.tracker.update(key, math.fsum(found) / len(found), *visits[key])
        self._report(before, {key: visits[key][0] for key in earned})
        return self.local(torch.tensor(values, dtype=torch.float32, device=out["completion_ids"].device))

    def _unit(self, reward: float) -> float:
        """The reward in [0, 1]: itself where its declared range lies there, else mapped from that range."""
        low, high = self.range
        if low < 0 or high > 1:
            reward = (reward - low) / (high - low)
        return reward if math.isnan(reward) else min(max(reward, 0.0), 1.0)  # sums may be off by a rounding

    def _looks(self, keys: list[bytes], out: dict[str, Any]) -> list[tuple[bytes, Any]]:
        """(key, (drift, new ids, their log-probabilities)) of the prompts whose last row stands on this process.

        The drift is None on a first visit, and where the visit before left no token in the loss to measure it on.
        """
        count = len(self.rows)
        first = self.trainer.accelerator.process_index * count
        mine = {key: i - first for i, key in enumerate(keys)}  # the last row of each key wins
        own = [(key, row) for key, row in mine.items() if 0 <= row < count]
        jobs, kept = [], []
        for key, row in own:
            prompt = out["prompt_ids"][row][out["prompt_mask"][row].bool()].tolist()
            ids = out["completion_ids"][row][: int(out["completion_mask"][row].sum())].tolist()
            known = self.tracker.beliefs.get(key)
            again = known.ids if known is not None else []
            kept.append((key, ids, again, known))
            jobs += [(prompt, tokens) for tokens in (ids, again) if tokens]
        scored = iter(completion_logps(self, jobs))
        looks: list[tuple[bytes, Any]] = []
        for key, ids, again, known in kept:
            logps = next(scored) if ids else []
            moved = drift(next(scored), known.logps) if known is not None and again else None
            looks.append((key, (moved, ids, logps)))
        return looks

    def _report(self, before: list[float], moved: dict[bytes, float | None]) -> None:
        drifts = [d for d in moved.values() if d is not None]
        self.log("pace/value", math.fsum(before) / len(before))
        self.log("pace/visited", len(self.tracker.beliefs) / self.prompts)
        if moved:
            self.log("pace/rho", math.fsum(map(self.tracker.rho, moved.values())) / len(moved))
            self.log("pace/revisits", len(drifts) / len(moved))
        if drifts:
            self.log("pace/drift", math.fsum(drifts) / len(drifts))

    # ---- checkpoint ------------------------------------------------------------------------------------------

    def _digest(self) -> str:
        """What the tracker's keys and starting values belong to."""
        priors = sorted(self.tracker.priors.items())
        text = b"".join(self.keys) + repr([(k.hex(), v) for k, v in priors]).encode()
        return hashlib.sha256(text).hexdigest()

    def state(self) -> dict[str, Any]:
        import torch

        known = self.tracker.beliefs
        return {
            "generations": self.generations,
            "snapshot_step": self.snapshot_step,
            "prompts": self._digest(),
            "snapshot": torch.tensor(self.snapshot, dtype=torch.float64),
            "keys": torch.tensor([list(k) for k in known], dtype=torch.uint8).reshape(-1, 32),
            "a": torch.tensor([b.a for b in known.values()], dtype=torch.float64),
            "b": torch.tensor([b.b for b in known.values()], dtype=torch.float64),
            "lengths": torch.tensor([len(b.ids) for b in known.values()], dtype=torch.int32),
            "ids": torch.tensor([i for b in known.values() for i in b.ids], dtype=torch.int32),
            "logps": torch.tensor([x for b in known.values() for x in b.logps], dtype=torch.float32),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave.

        Raises:
            TrainingError: the checkpoint's tracker is that of other prompts or estimates.
        """
        if state["prompts"] != self._digest():
            raise TrainingError(
                "the checkpoint's tracker belongs to other prompts, or to another algo.offline_estimate",
                hint="resume with the data and estimates of the run that wrote it, or start anew",
            )
        self.generations, self.snapshot_step = int(state["generations"]), int(state["snapshot_step"])
        self.snapshot = state["snapshot"].tolist()
        ids, logps, begin = state["ids"].tolist(), state["logps"].tolist(), 0
        self.tracker.beliefs = {}
        counts = zip(state["keys"].tolist(), *(state[k].tolist() for k in ("a", "b", "lengths")), strict=True)
        for key, a, b, length in counts:
            end = begin + length
            self.tracker.beliefs[bytes(key)] = Belief(a, b, ids[begin:end], logps[begin:end])
            begin = end


def draw(weights: list[float], count: int, stream: str) -> list[int]:
    """`count` indices drawn in proportion to `weights`, without repetition until all have been drawn once.

    Largest log w + Gumbel noise is a draw without replacement (Efraimidis and Spirakis 2006, in logarithms).

    Args:
        weights: N positive numbers.
        count: how many.
        stream: what decides the noise; the same text gives the same draw.
    """
    import torch

    seed = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "big") >> 1
    generator = torch.Generator().manual_seed(seed)
    logs = torch.tensor(weights, dtype=torch.float64).log()
    order: list[int] = []
    while len(order) < count:
        noise = torch.rand(len(weights), generator=generator, dtype=torch.float64)
        scores = logs - (-noise.clamp(min=1e-300).log()).log()
        take = min(count - len(order), len(weights))
        order += torch.topk(scores, take).indices.tolist()
    return order
