"""The checks of an audit: each looks at the numbers of a `Case` and says what it found, with threshold and source.

    findings = check(case)

An effect counts where its whole 99.9% interval lies beyond the threshold, so that a clean run stays without findings;
`benchmarks/audit.py` measures how often it does not. Sources of the thresholds: the simulation of four components in
docs/audits.md (a 0-100 score with weight 0.1: 92% of the signal; 80% of the groups without signal: nothing is
learned), DAPO (arXiv:2503.14476), "A Long Way to Go" (Singhal et al. 2023, arXiv:2310.03716: length alone gives most
of the gain), Gao et al. 2022 (arXiv:2210.10760: the proxy rises while the gold score falls). The others are ours, and
say so.

A clean audit is no proof: it sees only what varied in these rollouts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from aligntune.rewards.audit.held_out import CONFIDENCE, EFFECT, hacked
from aligntune.rewards.audit.measure import SAME, Case
from aligntune.rewards.audit.ranks import Estimate, centred, correlation, group_spans
from aligntune.rewards.audit.report import SEVERITIES, Finding

LEAST_GROUPS = 20
"""Groups below which shares of groups are not judged."""
DEAD = 0.8
DOMINANT, SMALL_WEIGHT, WIDER = 0.8, 0.5, 5.0
SATURATED, SATURATED_LEAST = 0.95, 0.9
LENGTH = 0.5
"""Correlation from which length explains a quarter of the variance."""
COPY, OPPOSED = 0.9, -0.8
TEMPLATED, SAME_TEXT, COLLAPSED = 0.5, 0.5, 0.5
MISSING = 0.2
CUT_OFF = 0.5
BY_LENGTH = ("length", "brevity", "conciseness", "soft_overlong", "cosine_length", "mbpp_reward")
"""Rewards whose purpose is the length."""
OURS = "our choice"
RESEARCH = "simulation of four components, docs/audits.md"


def check(case: Case) -> list[Finding]:
    """All findings, by severity, the strongest first."""
    found = [f for one in CHECKS for f in one(case)]
    return sorted(found, key=lambda f: (SEVERITIES.index(f.severity), -f.rank, f.code))


def no_signal(case: Case) -> Iterator[Finding]:
    """Groups whose rewards are all equal, which teach a group-relative algorithm nothing."""
    import numpy as np

    if case.attribution.baseline != "group":
        return
    spans = group_spans(case.rollouts.total, case.rollouts.group)
    spans = spans[~np.isnan(spans)]
    if len(spans) < LEAST_GROUPS:
        return
    dead = int((spans <= SAME).sum())
    low = _share(dead, len(spans)).low or 0.0
    if low > DEAD or dead == len(spans):
        share = dead / len(spans)
        rows = np.flatnonzero(np.isin(case.rollouts.group, np.unique(case.rollouts.group)[:1]))[:3]
        yield Finding(
            "no_signal", "critical" if share > 0.95 else "warning", "total",
            f"in {share:.0%} of {len(spans)} groups every completion has the same reward: they move nothing",
            {"share": share, "groups": len(spans), "mean reward": case.components["total"].mean or 0.0},
            f"more than {DEAD:.0%} of the groups", RESEARCH,
            "take prompts that are neither always nor never solved, raise algo.num_generations, or let algo: dapo "
            "leave such groups out",
            rows.tolist(), share,
        )  # fmt: skip


def constant(case: Case) -> Iterator[Finding]:
    """A weighted component that never varies, or never within a group."""
    import numpy as np

    r = case.rollouts
    for name in r.names:
        audit, values = case.components[name], r.values(name)
        there = values[~np.isnan(values)]
        if not r.weighted(name) or len(there) < 3 * LEAST_GROUPS:
            continue
        key = r.components[name].key("weight")
        if float(np.ptp(there)) <= SAME:
            yield Finding(
                "constant", "warning", name, f"'{name}' is {there[0]:g} in all of its {len(there)} scores",
                {"scores": len(there), "steps": case.steps, "weight": audit.weight},
                "not one score differs", "such a component moves no advantage",
                f"set {key} to 0 (it is still logged), or mend the reward: try `aligntune rewards test`",
                [0], len(there),
            )  # fmt: skip
        elif audit.dead_groups == 1.0 and case.attribution.baseline == "group" and _groups(case) >= LEAST_GROUPS:
            yield Finding(
                "constant_in_groups", "warning", name,
                f"'{name}' differs between prompts, but never among the answers to one prompt",
                {"groups": _groups(case), "std": audit.std or 0.0}, "not one group differs",
                "only differences within a group move a group-relative advantage",
                f"it may score the prompt; mend it, or set {key} to 0", [0], 1.0,
            )  # fmt: skip


def dominant(case: Case) -> Iterator[Finding]:
    """A component of small weight whose scale makes nearly all of the advantage."""
    r = case.rollouts
    weighted = [n for n in r.names if r.weighted(n)]
    if len(weighted) < 2 or _normalised(r):
        return
    swings = {n: abs(case.components[n].weight) * _width(case, n) for n in weighted}
    whole = sum(abs(case.components[n].weight) for n in weighted)
    for name in weighted:
        share, audit = case.components[name].share, case.components[name]
        others = max(swings[n] for n in weighted if n != name)
        part = abs(audit.weight) / whole if whole else 1.0
        if share is not None and share >= DOMINANT and part <= SMALL_WEIGHT and swings[name] >= WIDER * others:
            facts = r.components[name]
            finite = all(math.isfinite(v) for v in facts.range)
            advice = f"set {facts.key('normalization')} to minmax" if finite else (
                f"declare its range, @reward(name, range=(low, high)), and set {facts.key('normalization')} to minmax"
            )  # fmt: skip
            yield Finding(
                "dominant_scale", "critical", name,
                f"'{name}' makes {share:.0%} of the advantage with {part:.0%} of the weight: its scale drowns the rest",
                {"share of the advantage": share, "share of the weight": part, "weight x span": swings[name],
                 "the widest other": others},
                f"share at least {DOMINANT:.0%}, weight at most {SMALL_WEIGHT:.0%}, span {WIDER:g} times the others'",
                RESEARCH, f"{advice}, or composition.normalise to group with composition.normalise_of components",
                _extremes(case, r.values(name)), share,
            )  # fmt: skip


def saturated(case: Case) -> Iterator[Finding]:
    """A weighted component that stands at a bound of its range by now."""
    import numpy as np

    r = case.rollouts
    rows = case.last if len(case.last) else np.arange(len(r))
    for name in r.names:
        values = r.values(name)[rows]
        there = values[~np.isnan(values)]
        if not r.weighted(name) or len(there) < 3 * LEAST_GROUPS or _is_constant(case, name):
            continue
        for bound, word in zip(r.components[name].bounds, ("lowest", "highest"), strict=True):
            if not math.isfinite(bound):
                continue
            hits = int((np.abs(there - bound) <= SAME).sum())
            share = _share(hits, len(there))
            if share.value >= SATURATED and (share.low or 0.0) > SATURATED_LEAST:
                at = rows[np.abs(values - bound) <= SAME][:3]
                yield Finding(
                    "saturated", "note" if word == "highest" else "warning", name,
                    f"'{name}' stands at its {word} value ({bound:g}) in {share.value:.0%} of the last fifth's rows",
                    {"share": share.value, "rows": len(there)}, f"{SATURATED:.0%} at a bound", OURS,
                    f"set {r.components[name].key('weight')} to 0, or make it a gate (composition.mode: gated)"
                    if word == "highest" else "the policy does not reach it: ease it, or show examples first (SFT)",
                    at.tolist(), share.value,
                )  # fmt: skip


def length_driven(case: Case) -> Iterator[Finding]:
    """An advantage that follows the length of the answer."""
    import numpy as np

    r = case.rollouts
    found = correlation(case.attribution.advantage, r.length, r.group, CONFIDENCE)
    if found is None or found.low is None or found.high is None:
        return
    if not (found.low > LENGTH or found.high < -LENGTH):
        return
    lengths = {n: c.length.value for n in r.names if (c := case.components[n]).length and r.weighted(n)}
    cause = max(lengths, key=lambda n: abs(lengths[n] * (case.components[n].share or 0.0)), default="total")
    meant = r.components[cause].name in BY_LENGTH or _type(case, cause) in BY_LENGTH if cause != "total" else False
    order = np.argsort(np.nan_to_num(case.attribution.advantage))
    key = r.components[cause].key("weight") if cause != "total" else "rewards"
    yield Finding(
        "length_driven", "warning" if meant or abs(found.value) < 0.8 else "critical", cause,
        f"longer answers earn {'more' if found.value > 0 else 'less'}: length explains {found.value**2:.0%} of the "
        f"advantage's variance, mostly through '{cause}'" + (", whose purpose it is" if meant else ""),
        {"r within groups": str(found), **{f"r of {n}": v for n, v in lengths.items()}},
        f"|r| above {LENGTH:g}, with its whole 99.9% interval", "Singhal et al. 2023, arXiv:2310.03716",
        f"lower {key}, score at equal length (length_controlled), or add a budget (brevity, soft_overlong)",
        [int(order[-1]), int(order[0])], abs(found.value),
    )  # fmt: skip


def duplicated(case: Case) -> Iterator[Finding]:
    """Two weighted components that measure the same thing, or work against each other."""
    import numpy as np

    r = case.rollouts
    for (a, b), shown in case.correlations.items():
        if not (r.weighted(a) and r.weighted(b)):
            continue
        both = (np.nan_to_num(group_spans(r.values(a), r.group)) > SAME) & (
            np.nan_to_num(group_spans(r.values(b), r.group)) > SAME
        )
        found = correlation(r.values(a), r.values(b), r.group, CONFIDENCE)
        if int(both.sum()) < 10 or found is None or found.low is None or found.high is None:
            continue
        signs = np.sign(case.components[a].weight * case.components[b].weight)
        evidence = {"r within groups": str(shown), "groups in which both vary": int(both.sum())}
        if (found.low if signs > 0 else -found.high) > COPY:
            yield Finding(
                "duplicated", "warning", b, f"'{a}' and '{b}' say the same: r = {shown.value:+.2f} within groups",
                evidence, f"|r| above {COPY:g}, with its whole 99.9% interval", OURS,
                f"remove one, or halve the weights: together they count {_sum_of_weights(case, a, b):g}",
                _extremes(case, r.values(b)), abs(shown.value),
            )  # fmt: skip
        elif (found.high if signs > 0 else -found.low) < OPPOSED:
            yield Finding(
                "opposed", "warning", b, f"'{a}' and '{b}' undo each other: r = {shown.value:+.2f} within groups",
                evidence, f"r of the weighted scores below {OPPOSED:g}", OURS,
                "decide which of them is meant, or make one a gate (composition.mode: gated)",
                _extremes(case, r.values(b)), abs(shown.value),
            )  # fmt: skip


def repeated(case: Case) -> Iterator[Finding]:
    """Completions that are copies or fillings of one template."""
    late = case.late
    if late is None:
        import numpy as np

        from aligntune.rewards.audit.repeats import repeats

        late = repeats(case.rollouts, np.arange(len(case.rollouts)))
    if late is None:
        return
    before = case.early.coverage if case.early and case.early.coverage is not None else math.nan
    if late.coverage is not None and late.coverage > TEMPLATED:
        yield Finding(
            "templated", "critical" if late.coverage > 0.9 else "warning", "total",
            f"half of the completions consist to {late.coverage:.0%} or more of phrases that a fifth of the prompts "
            f"share, such as \"{late.shared}\"",
            {"median coverage": late.coverage, "in the first fifth": before, "prompts": late.prompts},
            f"median coverage above {TEMPLATED:.0%}", OURS,
            "add a reward that reads the prompt or the gold answer, or repetition; raise generation.temperature",
            late.templated, late.coverage,
        )  # fmt: skip
    elif late.prompts >= 10 and late.most_common_share > SAME_TEXT:
        short = len(late.most_common.split()) <= 3
        yield Finding(
            "same_answer", "note" if short else "critical", "total",
            f"{late.most_common_share:.0%} of the prompts get the same completion",
            {"share of prompts": late.most_common_share, "prompts": late.prompts},
            f"more than {SAME_TEXT:.0%}", OURS,
            "check that a reward compares with the row's gold answer; with few possible answers this may be right",
            _with_text(case, late.most_common), late.most_common_share,
        )  # fmt: skip
    if (
        late.groups >= LEAST_GROUPS
        and (_share(round(late.same_groups * late.groups), late.groups).low or 0) > COLLAPSED
    ):
        yield Finding(
            "collapsed", "warning", "total",
            f"in {late.same_groups:.0%} of the last fifth's groups all completions are the same text",
            {"share of groups": late.same_groups, "groups": late.groups, "copies within groups": late.in_group},
            f"more than {COLLAPSED:.0%} of the groups", OURS,
            "raise generation.temperature, or algo.entropy_coef; lower train.learning_rate", [], late.same_groups,
        )  # fmt: skip


def falling(case: Case) -> Iterator[Finding]:
    """A component (or the total) that is lower at the end than at the beginning."""
    r = case.rollouts
    total = case.change(r.total, CONFIDENCE)
    rises = total is not None and (total.low or 0.0) > 0
    for name in [n for n in r.names if r.weighted(n)] + ["total"]:
        values = r.total if name == "total" else r.values(name)
        sign = 1.0 if name == "total" or case.components[name].weight >= 0 else -1.0
        found, effect = case.change(sign * values, CONFIDENCE), case.effect(sign * values)
        if found is None or found.high is None or effect is None or found.high >= 0 or effect > -EFFECT:
            continue
        audit = case.components[name]
        beside = " while the total rises" if rises and name != "total" else ""
        yield Finding(
            "drift", "critical" if name == "total" or beside else "warning", name,
            f"'{name}' fell from {audit.first:.3g} to {audit.last:.3g}{beside}",
            {"change": str(audit.change), "effect": effect, "trend": audit.trend},
            f"falls by at least {EFFECT:g} standard deviations, with its whole 99.9% interval below 0", OURS,
            f"weigh it more ({r.components[name].key('weight')}) or make it a gate (composition.mode: gated)"
            if name != "total" else "lower train.learning_rate, or raise algo.beta",
            _lowest(case, sign * values), abs(effect) if math.isfinite(effect) else 100.0,
        )  # fmt: skip


def longer(case: Case) -> Iterator[Finding]:
    """Answers whose length changes by half or more."""
    r = case.rollouts
    found, audit = case.change(r.length, CONFIDENCE), case.change(r.length, 0.95)
    first = float(r.length[case.first].mean()) if len(case.first) else 0.0
    if found is None or found.low is None or found.high is None or audit is None or first <= 0:
        return
    grows, shrinks = found.low > 0.5 * first, found.high < -first / 3
    if grows or shrinks:
        last = float(r.length[case.last].mean())
        yield Finding(
            "length_drift", "note", "total",
            f"answers {'grew' if grows else 'shrank'} from {first:.0f} to {last:.0f} {r.length_unit}",
            {"change": str(audit), "ratio": last / first}, "longer by half, or shorter by a third", OURS,
            "read the last answers; if the length is not meant, see `length_driven`, or add soft_overlong",
            case.last[:2].tolist(), abs(math.log(last / first)) if last > 0 else 10.0,
        )  # fmt: skip


def missing(case: Case) -> Iterator[Finding]:
    """Scores that are not there."""
    import numpy as np

    r = case.rollouts
    for name in r.names:
        values = r.values(name)
        gone = int(np.isnan(values).sum())
        if len(values) >= 3 * LEAST_GROUPS and (_share(gone, len(values)).low or 0) > MISSING:
            lost = float(np.isnan(r.total).mean())
            yield Finding(
                "missing_scores", "warning" if r.weighted(name) else "note", name,
                f"'{name}' gave no score to {gone / len(values):.0%} of the rows; {lost:.0%} of all rows have no total",
                {"share": gone / len(values), "rows without a total": lost}, f"more than {MISSING:.0%}", OURS,
                "see what was counted under rewards/<name>/ in metrics.jsonl (no_reference, errors, timeout); mend the "
                "column, or choose composition.none",
                np.flatnonzero(np.isnan(values))[:3].tolist(), gone / len(values),
            )  # fmt: skip


def cut_off(case: Case) -> Iterator[Finding]:
    """Answers that end because they may not be longer."""
    import numpy as np

    r = case.rollouts
    generation = r.config.get("generation")
    limit = generation.get("max_completion_length") if isinstance(generation, dict) else None
    rows = case.last if len(case.last) else np.arange(len(r))
    if r.length_unit != "tokens" or not isinstance(limit, int) or len(rows) < 3 * LEAST_GROUPS:
        return
    hits = int((r.length[rows] >= limit).sum())
    if (_share(hits, len(rows)).low or 0) > CUT_OFF:
        at = rows[r.length[rows] >= limit][:3]
        yield Finding(
            "cut_off", "warning", "total",
            f"{hits / len(rows):.0%} of the last fifth's answers are cut at {limit} tokens",
            {"share": hits / len(rows), "limit": limit}, f"more than {CUT_OFF:.0%}",
            "DAPO, arXiv:2503.14476, section 3.4: scores of cut answers are noise",
            "raise generation.max_completion_length, or set algo.mask_truncated_completions",
            at.tolist(), hits / len(rows),
        )  # fmt: skip


def _share(count: int, n: int) -> Estimate:
    from aligntune.eval.stats import wilson_interval

    found = wilson_interval(count, n, CONFIDENCE)
    return Estimate(found.estimate, found.low, found.high, n)


def _groups(case: Case) -> int:
    import numpy as np

    return int((~np.isnan(group_spans(case.rollouts.total, case.rollouts.group))).sum())


def _is_constant(case: Case, name: str) -> bool:
    std = case.components[name].std
    return std is not None and std <= SAME


def _width(case: Case, name: str) -> float:
    """The declared width of a component's values; where it is not declared, the width that was seen."""
    import numpy as np

    low, high = case.rollouts.components[name].bounds
    if math.isfinite(low) and math.isfinite(high):
        return high - low
    values = case.rollouts.values(name)
    there = values[~np.isnan(values)]
    return float(np.ptp(there)) if len(there) else 0.0


def _normalised(rollouts: Any) -> bool:
    algo = rollouts.config.get("algo")
    apart = isinstance(algo, dict) and algo.get("reward_aggregation") == "normalize_then_sum"
    return apart or rollouts.composition.get("normalise", "none") != "none"


def _type(case: Case, name: str) -> str:
    listed, position = case.rollouts.config.get("rewards"), case.rollouts.components[name].position
    if not isinstance(listed, list) or position is None:
        return name
    entry = listed[position]
    return str(entry.get("type")) if isinstance(entry, dict) else str(entry)


def _sum_of_weights(case: Case, a: str, b: str) -> float:
    return case.components[a].weight + case.components[b].weight


def _extremes(case: Case, values: Any) -> list[int]:
    """The rows with the highest and the lowest value among their group."""
    import numpy as np

    deviations = centred(values, case.rollouts.group)
    if np.isnan(deviations).all():
        return []
    return [int(np.nanargmax(deviations)), int(np.nanargmin(deviations))]


def _lowest(case: Case, values: Any) -> list[int]:
    """Three rows of the last fifth with the lowest values."""
    import numpy as np

    rows = case.last[~np.isnan(values[case.last])]
    return [int(i) for i in rows[np.argsort(values[rows], kind="stable")[:3]]]


def _with_text(case: Case, text: str) -> list[int]:
    """Three rows of different prompts that hold a text."""
    seen: dict[str, int] = {}
    for i in case.last if len(case.last) else range(len(case.rollouts)):
        if " ".join(case.rollouts.completion[i].split()) == text:
            seen.setdefault(case.rollouts.prompt[i], int(i))
    return list(seen.values())[:3]


CHECKS = (
    no_signal, constant, dominant, saturated, length_driven, duplicated, repeated, falling, hacked, longer, missing,
    cut_off,
)  # fmt: skip
