"""What came of the sampling, as plain values and as text: prompts, answers, reasons, scores, margins, lengths.

    summarise(ranked, rows, dropped)["length"]["chosen_longer"]       # share of the pairs of unequal length

Every prompt either gave pairs or stands under one reason. Length bias is told by the share of pairs whose chosen answer
has more tokens, with a two-sided binomial test against one half, as `aligntune check` tells it. It judges nothing.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from aligntune.data.pairs.selecting import REASONS, Ranked

BIASED, CHANCE = 0.6, 0.01
"""A note warns of length bias from this share of pairs (or one minus it) that chance makes at most so often (ours)."""


def spread(values: Sequence[float]) -> dict[str, float]:
    """n, mean, std (n - 1), min, quartiles and max; only n where there is none.

    >>> spread([0.0, 1.0])["median"]
    0.5
    """
    if not values:
        return {"n": 0}
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {
        "n": len(values),
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "min": min(values),
        "q1": low,
        "median": middle,
        "q3": high,
        "max": max(values),
    }


def length_bias(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Lengths of the chosen and the rejected answers of pairs.

    Args:
        pairs: rows with `chosen_tokens` and `rejected_tokens`.

    Returns:
        Mean tokens of both, how many chosen answers are longer, shorter and equal, `chosen_longer` (share of the pairs
        of unequal length, None without any) and `p`, how probable a share so far from one half is by chance.
    """
    from aligntune.eval.stats import mcnemar_exact

    chosen = [row["chosen_tokens"] for row in pairs]
    rejected = [row["rejected_tokens"] for row in pairs]
    longer = sum(a > b for a, b in zip(chosen, rejected, strict=True))
    shorter = sum(a < b for a, b in zip(chosen, rejected, strict=True))
    return {
        "chosen_tokens": statistics.fmean(chosen) if chosen else None,
        "rejected_tokens": statistics.fmean(rejected) if rejected else None,
        "longer": longer,
        "shorter": shorter,
        "equal": len(chosen) - longer - shorter,
        "chosen_longer": longer / (longer + shorter) if longer + shorter else None,
        "p": mcnemar_exact(longer, shorter) if longer + shorter else None,
    }


def summarise(
    ranked: Sequence[Ranked], pairs: Sequence[Mapping[str, Any]], dropped: Mapping[str, int]
) -> dict[str, Any]:
    """The numbers of a finished sampling.

    Args:
        ranked: of every prompt that was asked.
        pairs: the rows that were kept.
        dropped: reason to number of prompts.
    """
    answers: Counter[str] = Counter()
    for one in ranked:
        answers += one.counts
        answers["no_score"] += sum(s is None for s in one.scores)
    scores = [s for one in ranked for s in one.scores if s is not None]
    prompts = len(ranked) + dropped.get("prompt_too_long", 0)
    names = ("sampled", "truncated", "empty", "repeated", "no_score")
    return {
        "prompts": prompts,
        "prompts_with_pairs": prompts - sum(dropped.values()),
        "pairs": len(pairs),
        "dropped": {reason: dropped[reason] for reason in REASONS if dropped.get(reason)},
        "answers": {**{name: answers[name] for name in names}, "ranked": len(scores)},
        "scores": spread(scores),
        "margins": spread([row["margin"] for row in pairs]),
        "length": length_bias(pairs),
    }


def notes(report: Mapping[str, Any]) -> list[str]:
    """One sentence for each thing that is worth a look before training."""
    found = []
    length = report["length"]
    share, p = length["chosen_longer"], length["p"]
    if share is not None and p <= CHANCE and max(share, 1 - share) >= BIASED:
        way, part = ("longer", share) if share > 0.5 else ("shorter", 1 - share)
        found.append(
            f"the chosen answer is the {way} one in {part:.0%} of the pairs (p = {p:.2g}): a model learns that first; "
            "give a (smaller) select.max_length_ratio, or weigh length in the rewards"
        )
    cut, sampled = report["answers"]["truncated"], report["answers"]["sampled"]
    if sampled and cut / sampled > 0.2:
        found.append(f"{cut} of {sampled} answers were cut at the token limit: raise sampling.max_new_tokens")
    return found


def described(report: Mapping[str, Any]) -> str:
    """The report as text."""
    a, scores, length = report["answers"], report["scores"], report["length"]
    prompts = report["prompts"]
    lines = [
        f"{report['pairs']} pairs of {prompts} prompts, ranked by {report['ranker']}",
        f"prompts  {report['prompts_with_pairs']} with pairs, {prompts - report['prompts_with_pairs']} without",
        *(f"  {n:>6}  {REASONS[reason]} ({reason})" for reason, n in report["dropped"].items()),
        f"answers  {a['sampled']} sampled, {a['truncated']} cut, {a['empty']} empty, {a['repeated']} repeated, "
        f"{a['no_score']} without a score",
    ]
    shown = "mean {mean:.4g}, min {min:.4g}, quartiles {q1:.4g} {median:.4g} {q3:.4g}, max {max:.4g}"
    lines += [f"{name:<7}  {shown.format(**report[name])}" for name in ("scores", "margins") if report[name]["n"]]
    if scores["n"] and report["pairs"]:
        lines.append(
            f"tokens   {length['chosen_tokens']:.1f} chosen, {length['rejected_tokens']:.1f} rejected on average; "
            f"chosen longer in {length['longer']}, shorter in {length['shorter']}, as long in {length['equal']} pairs"
        )
    lines += [f"- {note}" for note in report["notes"]]
    return "\n".join(lines)
