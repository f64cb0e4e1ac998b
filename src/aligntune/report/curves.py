"""Which metrics of a run become a chart, in which order, and what each chart says in words.

Names are those that TRL logs, and ours with the prefix `eval_` for held-out data. A metric that the run does not log
gives no chart; every logged metric is in the table of numbers.

>>> [chart.title for chart in charts(read_run("out/sft"))]
['Loss', 'Entropy', 'Token accuracy', 'Gradient norm', 'Learning rate']
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from aligntune.report.numbers import compact, whole_percent
from aligntune.report.read import RunData, held_out
from aligntune.report.svg import COLOURS, Point, Series, line_chart, runs


@dataclass(frozen=True)
class Panel:
    """One chart: its title, what it tells a reader, and the metrics that it draws as (name, label).

    `pattern` adds every metric that matches, labelled by its first group.
    """

    title: str
    meaning: str
    metrics: tuple[tuple[str, str], ...] = ()
    pattern: str = ""
    text: Callable[[float], str] = compact
    smoothed: bool = True
    y_range: tuple[float | None, float | None] = (None, None)


def _share(value: float) -> str:
    return f"{100 * value:.0f}%"


TRAIN, HELD_OUT = "training", "held out"
PANELS = (
    Panel("Loss", "what training lowers", (("loss", TRAIN), ("eval_nll", HELD_OUT), ("eval_loss", HELD_OUT))),
    Panel(
        "Labels",
        "of held-out rows; F1 of entities, or the mean over labels",
        (("eval_accuracy", "accuracy"), ("eval_f1", "F1"), ("eval_f1_macro", "F1 by label")),
        text=_share,
    ),
    Panel("Reward", "mean score of the sampled answers", (("reward", TRAIN), ("eval_reward", HELD_OUT))),
    Panel("Reward components", "mean of each reward by itself", pattern=r"^rewards/(?!total/)(.+)/mean$"),
    Panel(
        "Spread of rewards",
        "among the answers to one prompt",
        (("reward_std", "standard deviation"),),
    ),
    Panel(
        "Groups without contrast",
        "prompts whose answers all scored the same",
        (("frac_reward_zero_std", "share"),),
        text=_share,
        y_range=(0, None),
    ),
    Panel(
        "Preference accuracy",
        "pairs whose chosen answer gained more",
        (("rewards/accuracies", TRAIN), ("eval_rewards/accuracies", HELD_OUT)),
        text=_share,
    ),
    Panel(
        "Implicit rewards",
        "log-probability gained over the reference",
        (("rewards/chosen", "chosen"), ("rewards/rejected", "rejected")),
    ),
    Panel("Margin", "chosen minus rejected", (("rewards/margins", TRAIN), ("eval_rewards/margins", HELD_OUT))),
    Panel("KL divergence", "distance from the reference model", (("kl", "KL"),)),
    Panel("Entropy", "how undecided the next token is", (("entropy", "nats per token"),)),
    Panel(
        "Completion length",
        "tokens in a sampled answer",
        (("completions/mean_length", "all"), ("completions/mean_terminated_length", "ended by themselves")),
    ),
    Panel(
        "Answers cut off",
        "that reached the length limit",
        (("completions/clipped_ratio", "share"),),
        text=_share,
        y_range=(0, None),
    ),
    Panel(
        "Clipped updates",
        "tokens outside the trust region",
        (("clip_ratio/region_mean", "share"),),
        text=whole_percent,
        y_range=(0, None),
    ),
    Panel("Token accuracy", "next tokens guessed right", (("mean_token_accuracy", TRAIN),), text=_share),
    Panel(
        "Tasks",
        "shares of right answers in evaluation tasks",
        pattern=r"^eval/(.+/(?:accuracy|f1|f1_macro|pass@1))$",
        text=_share,
    ),
    Panel("Gradient norm", "before clipping; spikes are unstable steps", (("grad_norm", "norm"),)),
    Panel("Learning rate", "as scheduled", (("learning_rate", "learning rate"),), smoothed=False),
)


@dataclass(frozen=True)
class Chart:
    """A drawn panel: `first` and `last` are the first line's values as text, `notes` what a reader must know."""

    title: str
    meaning: str
    first: str
    last: str
    legend: list[tuple[int, str]]
    svg: Markup
    notes: list[str]


@dataclass(frozen=True)
class Line:
    """A metric to draw: label, values, how many were not finite, whether to mark the points, colour from 0."""

    label: str
    values: list[Point]
    lost: int
    dots: bool
    colour: int
    lows: Sequence[Point] = ()
    highs: Sequence[Point] = ()


def charts(run: RunData) -> list[Chart]:
    """The charts of all panels for which the run has at least one value."""
    found: list[Chart] = []
    for panel in PANELS:
        wanted = [*panel.metrics, *_matching(panel.pattern, run.metric_names())]
        lines = [_line(run, key, label, i) for i, (key, label) in enumerate(wanted)]
        found += draw(panel, [line for line in lines if line.values], "in the table of numbers")
    return found


def seed_groups(runs: Mapping[str, RunData]) -> dict[str, list[RunData]]:
    """Runs that differ in their seed alone, together; the key is the run's label, or what the labels have in common."""
    groups: dict[str, list[str]] = {}
    for label, run in runs.items():
        groups.setdefault(_without_seed(run) or label, []).append(label)
    found = {}
    for labels in groups.values():
        common = _common_start(labels).rstrip("-_/. 0123456789") or labels[0]
        name = labels[0] if len(labels) == 1 else f"{common}, {len(labels)} seeds"
        found[name if name not in found else f"{name} ({labels[0]})"] = [runs[label] for label in labels]
    return found


def _common_start(labels: Sequence[str]) -> str:
    """The characters with which all labels begin."""
    lowest, highest = min(labels), max(labels)
    return lowest[: next((i for i, c in enumerate(lowest) if highest[i : i + 1] != c), len(lowest))]


def _without_seed(run: RunData) -> str:
    """The configuration without seed, folder and name; empty where there is none."""
    import yaml

    try:
        plain = yaml.safe_load(run.config_text)
    except yaml.YAMLError:
        return ""
    train, logging = (plain or {}).get("train"), (plain or {}).get("logging")
    if not isinstance(train, dict) or "model" not in plain:
        return ""
    plain = {**plain, "train": {**train, "seed": None}, "output_dir": None}
    if isinstance(logging, dict):
        plain["logging"] = {**logging, "run_name": None}
    return yaml.safe_dump(plain)


def side_by_side(groups: Mapping[str, Sequence[RunData]]) -> list[Chart]:
    """One chart per metric with one line per group of seeds (or single run), labelled by the mapping's keys."""
    found: list[Chart] = []
    for panel in PANELS:
        names = dict.fromkeys(name for runs in groups.values() for run in runs for name in run.metric_names())
        for key, label in [*panel.metrics, *_matching(panel.pattern, names)]:
            single = len(panel.metrics) == 1
            title = panel.title if single or label == TRAIN else f"{panel.title}, {label}"
            lines = [_over_seeds(runs, key, name, i) for i, (name, runs) in enumerate(groups.items())]
            if not held_out(key):  # runs of other lengths would be marked unevenly
                lines = [replace(line, dots=len(line.values) == 1) for line in lines]
            found += draw(replace(panel, title=title), lines, "not drawn")
    return found


def _over_seeds(runs: Sequence[RunData], key: str, label: str, colour: int) -> Line:
    """A metric of runs that differ in their seed alone; of one run, its line."""
    line = joined([run.values(key) for run in runs], label, colour)
    return replace(line, lost=sum(run.not_finite(key) for run in runs), dots=len(line.values) <= 24 or held_out(key))


def joined(logged: Sequence[Sequence[Point]], label: str, colour: int) -> Line:
    """The mean over runs at the steps that all of them have, with the range as a band; of one run, its line."""
    if len(logged) == 1:
        return Line(label, list(logged[0]), 0, len(logged[0]) == 1, colour)
    known = [{step: value for step, value in points if value is not None} for points in logged]
    steps = sorted(set.intersection(*(set(one) for one in known)))
    at = [[one[step] for one in known] for step in steps]
    values: list[Point] = [(step, sum(found) / len(found)) for step, found in zip(steps, at, strict=True)]
    lows, highs = ([(step, pick(found)) for step, found in zip(steps, at, strict=True)] for pick in (min, max))
    return Line(label, values, 0, len(values) == 1, colour, lows, highs)


def _line(run: RunData, key: str, label: str, colour: int) -> Line:
    values = run.values(key)
    return Line(label, values, run.not_finite(key), len(values) <= 24 or held_out(key), colour)


def draw(panel: Panel, lines: Sequence[Line], rest: str) -> list[Chart]:
    """The panel's chart, with a legend where there is more than one line to tell apart; none without a value."""
    found = [line for line in lines if line.values]
    if not found:
        return []
    notes = [
        f"{line.lost} {line.label} value{'s are' if line.lost > 1 else ' is'} not finite and left out"
        for line in found
        if line.lost
    ]
    if len(found) > COLOURS:
        notes.append(f"{len(found) - COLOURS} more are {rest}")
        found = found[:COLOURS]
    series = [
        Series(
            line.label, line.values, smooth(line.values) if panel.smoothed else [], line.dots, line.colour,
            _band(line, smoothed=panel.smoothed),
        )
        for line in found
    ]  # fmt: skip
    ends = [_ends(one.smooth or one.points) for one in series]
    describe = "; ".join(
        f"{line.label} from {panel.text(first)} to {panel.text(last)}"
        for line, (first, last) in zip(found, ends, strict=True)
    )
    svg = line_chart(panel.title, series, describe=describe, text=panel.text, y_range=panel.y_range)
    legend = [(line.colour % COLOURS + 1, line.label) for line in found] if len(lines) > 1 else []
    first, last = panel.text(ends[0][0]), panel.text(ends[0][1])
    return [Chart(panel.title, panel.meaning, first, last, legend, svg, notes)]


def _band(line: Line, *, smoothed: bool) -> list[tuple[float, float, float]]:
    """The range over seeds, smoothed as the line is."""
    lows, highs = ((smooth(side) or side) if smoothed else side for side in (line.lows, line.highs))
    return [(x, low, high) for (x, low), (_, high) in zip(lows, highs, strict=True) if None not in (low, high)]  # type: ignore[misc]


def _matching(pattern: str, keys: Iterable[str]) -> list[tuple[str, str]]:
    if not pattern:
        return []
    return [(key, match.group(1)) for key in keys if (match := re.match(pattern, key))]


def _ends(values: Sequence[Point]) -> tuple[float, float]:
    present = [y for _, y in values if y is not None]
    return present[0], present[-1]


def smooth(values: Sequence[Point], least: int = 30) -> list[Point]:
    """A centred moving mean over about a twelfth of the points, within each stretch; none for few points.

    At the ends of a stretch the mean is over the neighbours that there are.
    """
    if len(values) < least:
        return []
    half = max(len(values) // 24, 2)
    smoothed: list[Point] = []
    for run in runs(values):
        for i in range(len(run)):
            window = run[max(i - half, 0) : i + half + 1]
            smoothed.append((run[i][0], sum(y for _, y in window) / len(window)))
        smoothed.append((run[-1][0], None))
    return smoothed[:-1]


def first_and_last(values: Sequence[Point]) -> tuple[float, float] | None:
    """The first and the last value, of the moving mean where there are points enough; None without values."""
    return _ends(smooth(values) or values) if values else None


def table(run: RunData) -> list[tuple[str, list[str]]]:
    """Every metric with its first, last, lowest and highest value as text, and how many values there are."""
    rows: list[tuple[str, list[str]]] = []
    for key in run.metric_names():
        present = [y for _, y in run.values(key) if y is not None]
        lost = run.not_finite(key)
        if present:
            texts = [compact(v) for v in (present[0], present[-1], min(present), max(present))]
        else:
            texts = ["", "", "", ""]
        rows.append((key, [*texts, f"{len(present)}" + (f" and {lost} not finite" if lost else "")]))
    return rows
