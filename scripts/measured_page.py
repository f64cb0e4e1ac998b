"""Write the figures of docs/measured.md from benchmarks/results/.

    python scripts/measured_page.py          # rewrite what stands between the markers
    python scripts/measured_page.py --check  # exit code 1 if the page is out of date

A figure is computed from one file, which stands beside it. Nothing is rounded up: ratios have two digits, shares one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks" / "results"
PAGE = REPO / "docs" / "measured.md"
BEGIN, END = "<!-- figures: begin (scripts/measured_page.py writes this part) -->", "<!-- figures: end -->"


def read(name: str) -> Any:
    """A file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


Row = tuple[str, str, str]
"""What it is, the figure, and the file that it comes from."""


def table(rows: Iterable[Row]) -> str:
    """Rows as Markdown."""
    lines = ["| what | measured | file |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {what} | {figure} | `{file}.json` |" for what, figure, file in rows)])


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def interval(entry: dict[str, float]) -> str:
    value = entry["value"] if "value" in entry else entry["estimate"]
    return f"{percent(value)} ({percent(entry['low'])} to {percent(entry['high'])})"


def learning() -> Iterator[Row]:
    """The quickstart's stages, and each algorithm's gain."""
    runs = read("quickstart")["runs"]
    for run in runs:
        what = f"quickstart, seed {run['seed']}: accuracy on {run['summary']['problems']} held-out sums"
        shown = ", ".join(f"{s['name']} {interval(s['accuracy'])}" for s in run["summary"]["stages"])
        yield what, shown, "quickstart"
    shown = f"{span([r['wall'] for r in runs], 0)} s, {span([r['peak_gb'] for r in runs], 2)} GB"
    yield "the same, time and memory", shown, "quickstart"
    for file, what_by_name in LEARNED.items():
        for name, pairs in gains(read(f"learning_{file}")["runs"]).items():
            shown = ", ".join(f"{before:.2f} to {after:.2f}" for before, after in pairs)
            yield f"`{name}`: {what_by_name.get(name, what_by_name[''])}", shown, f"learning_{file}"
    found = read("learning_classification")["banking77"]
    beside = f"chance {percent(found['chance'])}, a linear model {percent(found['linear']['accuracy'])}"
    what = f"`text_classification` from random weights, {found['classes']} classes of banking77: accuracy ({beside})"
    yield what, ", ".join(percent(s["accuracy"]) for s in found["seeds"]), "learning_classification"


LEARNED: dict[str, dict[str, str]] = {
    "preference": {"": "share of held-out pairs in the right order, before and after, by seed"},
    "grpo": {"": "mean reward on held-out questions, by seed"},
    "ppo": {"": "PPO, value model as named: mean reward, by seed"},
    "gbmpo": {"": "mean reward, by seed"},
    "pace": {"": "mean reward, by seed"},
    "online": {
        "": "divergence from the teacher, which falls, by seed",
        "online_dpo": "mean reward, by seed",
        "spin": "share of pairs in the right order, by seed",
    },
}
"""File of a learning proof to what its numbers are, by algorithm; "" for the rest."""


def gains(runs: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Algorithm to (before, after) by seed, whether seeds stand in the name or below it; other values are left."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name, run in runs.items():
        for entry in [run] if "after" in run else [v for v in run.values() if isinstance(v, dict) and "after" in v]:
            before = next(v for k, v in entry.items() if k.split()[-1] == "before")
            found.setdefault(name.rpartition(", seed")[0] or name, []).append((before, entry["after"]))
    return found


def span(values: list[float], digits: int) -> str:
    """Lowest and highest of some values."""
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def costs() -> Iterator[Row]:
    """What our own code costs."""
    for file, when in (("overhead", ""), ("overhead_again", " with monitors and the live report")):
        for name, entry in read(file)["algorithms"].items():
            ratio = entry["median_ratio"]
            shown = f"processor time {ratio['cpu']:.2f}, wall {ratio['wall']:.2f}, peak memory {ratio['peak_mib']:.2f}"
            what = f"{name}{when}, {entry['steps']} steps, {len(entry['pairs'])} pairs, against bare TRL (median)"
            yield what, shown, file
    live = read("live")
    shown = f"{100 * live['share_of_time']:.1f}% of the time; {live['drawing_ms']:.1f} ms of processor time a drawing"
    yield "the live view, in a run of many short steps", shown, "live"
    startup = read("startup")["median_wall_seconds"]
    for command in ("aligntune --help", "aligntune train refused.yaml"):
        yield f"`{command}`", f"{startup[command]:.2f} s", "startup"
    arms = {(m["rows"], m["format"], m["arm"]): m for m in read("data")["measurements"]}
    for rows, kind in dict.fromkeys(key[:2] for key in arms):
        cold, cached = arms[rows, kind, "cold"], arms[rows, kind, "cached"]
        memory = f"{cold['peak_mb']:,.0f} MB against {arms[rows, kind, 'trl']['peak_mb']:,.0f}"
        shown = f"cold {cold['times_trl']:.2f}, cached {cached['times_trl']:.3f}; memory {memory}"
        yield f"preparing {rows:,} rows of {kind}, time against TRL (ratio)", shown, "data"
    evaluation = read("eval")
    for name in ("multiple_choice", "generation"):
        shown = f"{evaluation[name]['ratio']:.2f} of {span(evaluation[name]['ratios'], 2)}"
        yield f"items per second of {name.replace('_', ' ')}, against lm-eval (ratio, median)", shown, "eval"
    held = evaluation["in_training"]
    what = f"an evaluation of {held['rows']} held-out rows while a run trains, the quickstart's model"
    yield what, f"{held['seconds_per_evaluation']:.2f} s", "eval"
    for file, often in (("survival_minute", "a checkpoint after a minute"), ("survival", "checkpoints each 20 s")):
        for name, run in read(file)["runs"].items():
            ratios = [pair["on"]["wall"] / pair["off"]["wall"] for pair in run["pairs"]]
            what = f"{often}, health, rollouts and report in a {name} run, time against a run without (ratio)"
            shown = f"{run['median_ratio']['wall']:.3f} of {span(ratios, 3)}"
            yield what, f"{shown}; {percent(run['share_of_all_parts'])} is not the library's own writing", file
    check = read("check")
    seconds = [v["cpu_seconds"] for v in check.values() if isinstance(v, dict) and "cpu_seconds" in v]
    yield f"`aligntune check` of {check['rows']:,} rows, processor time", f"{span(seconds, 0)} s", "check"
    programs = read("rewards")["code"]["median_ms"]
    for level in ("strong", "full"):
        yield f"a program in the sandbox, level `{level}`", f"{programs[level]:.1f} ms", "rewards"


def trust() -> Iterator[Row]:
    """What is right, and how often a verdict is wrong."""
    kill = [case for case in read("kill")["cases"] if "kills" in case]
    names = ", ".join(dict.fromkeys(case["name"] for case in kill))
    what = f"runs killed and resumed ({names}): differing from the run never killed"
    yield what, f"{sum(c['faults'] for c in kill)} of {sum(c['kills'] for c in kill)} kills", "kill"
    ratios = [case["ratio"] for case in read("memory")["cases"].values()]
    what = f"estimated against measured memory on the CPU, {len(ratios)} cases of SFT, DPO, reward models, GRPO (ratio)"
    yield what, span(ratios, 2), "memory"
    health = read("health")
    for kind, found in health["healthy_streams"].items():
        shown = f"{sum(found['runs_with_event_by_rule'].values())} of {found['runs']}"
        yield f"health rules, healthy simulated {kind} runs with an event", shown, "health"
    caught = health["planted_caught"]
    worst = min(caught, key=lambda name: caught[name])
    shown = f"{percent(caught[worst])} (`{worst}`, the lowest) to {percent(max(caught.values()))}"
    yield "health rules, planted faults that are caught", shown, "health"
    audit = read("audit")
    for name, found in audit["clean"].items():
        yield f"reward audit, clean runs ({name}) with any finding", interval(found["family_wise"]), "audit"
    shown = f"{percent(min(audit['found'].values()))} (the lowest) of {len(audit['found'])} kinds"
    yield "reward audit, planted faults that are found", shown, "audit"
    values = read("reward_model")["validation"]["values"]
    what = "a reward model trained on rules: held-out pairs in the right order"
    yield what, interval(values["pair_accuracy"]), "reward_model"
    yield "the same by length alone", interval(values["length_baseline"]), "reward_model"


def figures() -> Iterator[str]:
    """The generated part."""
    yield "## That methods learn\n\n" + table(learning())
    yield "## What it costs\n\n" + table(costs())
    yield "## What can be relied on, and how often a verdict is wrong\n\n" + table(trust())


def main() -> int:
    """Rewrite or check the page."""
    text = PAGE.read_text(encoding="utf-8")
    head, _, rest = text.partition(BEGIN)
    fresh = f"{head}{BEGIN}\n\n" + "\n\n".join(figures()) + f"\n\n{END}{rest.partition(END)[2]}"
    if text == fresh:
        return 0
    if "--check" in sys.argv:
        print("docs/measured.md is out of date: run scripts/measured_page.py")
        return 1
    PAGE.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
