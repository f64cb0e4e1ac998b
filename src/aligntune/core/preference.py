"""Held-out measures of preference algorithms: pairs, and single answers with a label, by the algorithm's own reward.

| rows | values |
|---|---|
| pairs | `rewards/accuracies`, `rewards/margins`, `rewards/chosen`, `rewards/rejected`; `loss` of the plain losses |
| labels | `rewards/chosen`, `rewards/rejected`, `rewards/margins`, `rewards/auc`, `kl`, `loss` (KTO) |
| labels of pairs taken apart | the above and `rewards/accuracies` over the pairs |

`rewards/auc` is the chance that a desirable answer has the larger reward of the two, one of each kind drawn at random
(ties count half): 0.5 is chance. `rewards/chosen` and `rewards/rejected` are means over desirable and undesirable
answers. The implicit reward is `Preference.implicit_reward`; log-probabilities are those of TRL's trainers (same
tokens, cut at the same length), summed in fp64. TRL's per-batch means are not used: they change with the batch size.

Intervals are Wilson's for shares and Student's t for means; `rewards/auc` has DeLong's. KTO's loss has none, because
its baseline is estimated from the same rows.

>>> auc_interval([2.0, 0.5], [1.0]).estimate
0.5
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from aligntune.algorithms.dpo import DPO
from aligntune.algorithms.kto import KTO
from aligntune.algorithms.preference import Preference, Referenced, Scored
from aligntune.core.held_out import Values
from aligntune.eval.estimates import clipped, mean_of
from aligntune.eval.stats import Interval, auc_interval, welch_interval, wilson_interval

if TYPE_CHECKING:
    from aligntune.core.trainer import Trainer


def evaluate_pairs(trainer: Trainer, rows: Any) -> Values:
    """Measures of rows with `prompt`, `chosen` and `rejected`."""
    from aligntune.eval.likelihood import preference_logprobs

    params: Any = trainer.config.algorithm
    params = params if isinstance(params, Preference) else Referenced(beta=getattr(params, "beta", 1.0))
    pairs, tokenizer = list(rows), trainer.tokenizer
    batch, longest = trainer.config.evaluation.batch_size, trainer.config.model.max_seq_length

    def scores(model: Any) -> list[Any]:
        return preference_logprobs(model, tokenizer, pairs, batch, max_length=longest)

    policy, base = scores(trainer.model), None
    if params.keeps_reference():
        with reference_of(trainer) as reference:
            base = scores(reference)
    sides: dict[str, list[Scored]] = {}
    for side in ("chosen", "rejected"):
        own = [getattr(p, side) for p in policy]
        other = [getattr(b, side)[0] for b in base] if base else [0.0] * len(own)
        sides[side] = [(logp, max(n, 1), ref) for (logp, n), ref in zip(own, other, strict=True)]
    good, bad = ([params.implicit_reward(*s) for s in sides[side]] for side in ("chosen", "rejected"))
    losses = [params.held_out_loss([c], [r]) for c, r in zip(sides["chosen"], sides["rejected"], strict=True)]
    return {
        **({} if None in losses else {"loss": mean_of(losses)}),
        "rewards/accuracies": wilson_interval(sum(a > b for a, b in zip(good, bad, strict=True)), len(pairs)),
        **_means(good, bad),
        "rewards/margins": mean_of([a - b for a, b in zip(good, bad, strict=True)]),  # the sides are paired
        "rows": float(len(pairs)),
    }


def evaluate_unpaired(trainer: Trainer, rows: Any) -> Values:
    """Measures of rows with `prompt`, `completion`, `label` and, where pairs were taken apart, `pair`."""
    params: Any = trainer.config.algorithm
    table = list(rows)
    mismatched = [{**row, "completion": table[i - 1]["completion"]} for i, row in enumerate(table)]
    with_baseline = isinstance(params, KTO) and params.loss_type == "kto"
    scored = table + mismatched if with_baseline else table
    policy = _logps(trainer, trainer.model, scored)
    with reference_of(trainer) as reference:
        base = _logps(trainer, reference, scored)
    ratios = [p - b for p, b in zip(policy, base, strict=True)]
    rewards = [params.beta * r for r in ratios[: len(table)]]
    good = [r for r, row in zip(rewards, table, strict=True) if row["label"]]
    bad = [r for r, row in zip(rewards, table, strict=True) if not row["label"]]
    values: dict[str, float | Interval] = {"rows": float(len(table)), **_means(good, bad)}
    if good and bad:
        values["rewards/auc"] = auc_interval(good, bad)
    if with_baseline:
        kl = clipped(mean_of(ratios[len(table) :]), 0.0)
        values["kl"] = kl
        values["loss"] = kto_loss(good, bad, params.beta * kl.estimate, params) / len(table)
    accuracy = _pair_accuracy(rewards, table)
    return values if accuracy is None else {**values, "rewards/accuracies": accuracy}


def kto_loss(good: Sequence[float], bad: Sequence[float], baseline: float, params: KTO) -> float:
    """The sum of KTO's loss over answers with these implicit rewards; `baseline` is beta times the KL estimate."""
    losses_good = [params.desirable_weight * (1 - _sigmoid(r - baseline)) for r in good]
    losses_bad = [params.undesirable_weight * (1 - _sigmoid(baseline - r)) for r in bad]
    return sum(losses_good) + sum(losses_bad)


def _means(good: Sequence[float], bad: Sequence[float]) -> dict[str, Interval]:
    """Means of both sides and their difference (Welch's interval, since labelled answers are not paired)."""
    values = {}
    if good:
        values["rewards/chosen"] = mean_of(good)
    if bad:
        values["rewards/rejected"] = mean_of(bad)
    if good and bad:
        values["rewards/margins"] = welch_interval(good, bad)
    return values


def _pair_accuracy(rewards: Sequence[float], table: Sequence[dict[str, Any]]) -> Interval | None:
    """The share of pairs whose desirable answer has the larger reward; None where there are no pairs."""
    sides: dict[str, dict[bool, float]] = {}
    for reward, row in zip(rewards, table, strict=True):
        if row.get("pair") is not None:
            sides.setdefault(row["pair"], {})[row["label"]] = reward
    whole = [side for side in sides.values() if len(side) == 2]
    return wilson_interval(sum(side[True] > side[False] for side in whole), len(whole)) if whole else None


def _logps(trainer: Trainer, model: Any, rows: list[dict[str, Any]]) -> list[float]:
    from aligntune.eval.likelihood import completion_nll

    batch, longest = trainer.config.evaluation.batch_size, trainer.config.model.max_seq_length
    return [-nll for nll, _ in completion_nll(model, trainer.tokenizer, rows, batch, max_length=longest)]


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


@contextmanager
def reference_of(trainer: Trainer) -> Iterator[Any]:
    """The reference model: the trainer's own, the model with its adapter off, or its weights loaded again.

    Where the reference moves in training (`sync_ref_model`) it is the one that the run began with.
    """
    params, model = trainer.config.algorithm, trainer.model
    moves = isinstance(params, DPO) and params.sync_ref_model
    kept = None if moves else getattr(trainer._hf, "ref_model", None)
    if kept is not None:
        yield kept
    elif isinstance(params, Referenced) and params.reference is not None:
        yield _load(trainer, params.reference_config(trainer.config))
    elif hasattr(model, "disable_adapter"):
        if "ref" in model.peft_config:
            active = model.active_adapter
            model.set_adapter("ref")
            try:
                yield model
            finally:
                model.set_adapter(active)
        else:
            with model.disable_adapter():
                yield model
    else:
        yield _load(trainer, trainer.starting_config)


def _load(trainer: Trainer, config: Any) -> Any:
    return trainer.backend.load_model(config).model.to(trainer.model.device).eval()
