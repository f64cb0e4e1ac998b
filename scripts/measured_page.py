"""Write the figures of docs/measured.md from benchmarks/results/.

    python scripts/measured_page.py          # rewrite what stands between the markers
    python scripts/measured_page.py --check  # exit code 1 if the page is out of date

A figure is computed from one file, which stands beside it. Nothing is rounded up: ratios have two digits, shares one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks" / "results"
PAGE = REPO / "docs" / "measured.md"
BEGIN, END = "<!-- figures: begin (scripts/measured_page.py writes this part) -->", "<!-- figures: end -->"


def read(name: str) -> Any:
    """A file of results."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(rows: list[tuple[str, str, str]]) -> str:
    """Rows of (what, figure, file) as Markdown."""
    lines = ["| what | measured | file |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {what} | {figure} | `{file}.json` |" for what, figure, file in rows)])


def percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def interval(entry: dict[str, float]) -> str:
    value = entry["value"] if "value" in entry else entry["estimate"]
    return f"{percent(value)} ({percent(entry['low'])} to {percent(entry['high'])})"


def learning() -> str:
    """The quickstart's stages, and each algorithm's gain."""
    rows = []
    for run in read("quickstart")["runs"]:
        shown = ", ".join(f"{s['name']} {interval(s['accuracy'])}" for s in run["summary"]["stages"])
        rows.append(
            (
                f"quickstart, seed {run['seed']}: accuracy on {run['summary']['problems']} held-out sums",
                shown,
                "quickstart",
            )
        )
    rows.append(("the same, time and memory", _span([r["wall"] for r in read("quickstart")["runs"]], "s", 0) + ", "
                 + _span([r["peak_gb"] for r in read("quickstart")["runs"]], "GB", 2), "quickstart"))  # fmt: skip
    for file, what in LEARNED.items():
        for name, pairs in gains(read(f"learning_{file}")["runs"]).items():
            shown = ", ".join(f"{before:.2f} to {after:.2f}" for before, after in pairs)
            rows.append((f"`{name}`: {what.get(name, what[''])}", shown, f"learning_{file}"))
    found = read("learning_classification")
    banking = ", ".join(percent(s["accuracy"]) for s in found["banking77"]["seeds"])
    rows.append((
        f"`text_classification` from random weights, {found['banking77']['classes']} classes of banking77: accuracy "
        f"(chance {percent(found['banking77']['chance'])}, a linear model {percent(found['banking77']['linear']['accuracy'])})",
        banking, "learning_classification",
    ))  # fmt: skip
    return table(rows)


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
    """Algorithm to (before, after) by seed, whether seeds stand in the name or below it; other measurements are left."""
    found: dict[str, list[tuple[float, float]]] = {}
    for name, run in runs.items():
        for entry in [run] if "after" in run else [v for v in run.values() if isinstance(v, dict) and "after" in v]:
            before = next(v for k, v in entry.items() if k.split()[-1] == "before")
            found.setdefault(name.rpartition(", seed")[0] or name, []).append((before, entry["after"]))
    return found


def _span(values: list[float], unit: str, digits: int) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f} {unit}"


def costs() -> str:
    """What our own code costs."""
    rows = []
    for name, entry in read("overhead")["algorithms"].items():
        ratio = entry["median_ratio"]
        shown = f"processor time {ratio['cpu']:.2f}, wall {ratio['wall']:.2f}, peak memory {ratio['peak_mib']:.2f}"
        rows.append((f"{name}, {entry['steps']} steps, against bare TRL (ratio)", shown, "overhead"))
    startup = read("startup")["median_wall_seconds"]
    rows += [(f"`{command}`", f"{startup[command]:.2f} s", "startup")
             for command in ("aligntune --help", "aligntune train refused.yaml")]  # fmt: skip
    rows += [(f"preparing {m['rows']:,} rows of {m['format']}, {m['arm']}, against TRL (ratio of times)",
              f"{m['times_trl']:.2f}", "data") for m in read("data")["measurements"] if "times_trl" in m]  # fmt: skip
    check = read("check")
    rows.append((f"`aligntune check` of {check['rows']:,} rows, processor time",
                 _span([v["cpu_seconds"] for v in check.values() if isinstance(v, dict) and "cpu_seconds" in v], "s", 0), "check"))  # fmt: skip
    code = read("rewards")["code"]["median_ms"]
    rows += [
        (f"a program in the sandbox, level `{level}`", f"{code[level]:.1f} ms", "rewards")
        for level in ("strong", "full")
    ]
    return table(rows)


def trust() -> str:
    """What is right, and how often a verdict is wrong."""
    kill = read("kill")["cases"]
    rows = [(
        f"runs killed and resumed ({', '.join(c['name'] for c in kill)}): differing from the run never killed",
        f"{sum(c['faults'] for c in kill)} of {sum(c['kills'] for c in kill)} kills", "kill",
    )]  # fmt: skip
    ratios = [case["ratio"] for case in read("memory")["cases"].values()]
    rows.append(
        (
            f"estimated against measured memory, {len(ratios)} cases of SFT on the CPU (ratio)",
            _span(ratios, "", 2).strip(),
            "memory",
        )
    )
    health = read("health")
    for kind, found in health["healthy_streams"].items():
        shown = f"{sum(found['runs_with_event_by_rule'].values())} of {found['runs']}"
        rows.append((f"health rules, healthy simulated {kind} runs with an event", shown, "health"))
    worst = min(health["planted_caught"], key=lambda name: health["planted_caught"][name])
    rows.append(("health rules, planted faults that are caught", f"{percent(health['planted_caught'][worst])} (`{worst}`, the lowest) to "
                 f"{percent(max(health['planted_caught'].values()))}", "health"))  # fmt: skip
    audit = read("audit")
    for name, found in audit["clean"].items():
        rows.append((f"reward audit, clean runs ({name}) with any finding", interval(found["family_wise"]), "audit"))
    rows.append(("reward audit, planted faults that are found", f"{percent(min(audit['found'].values()))} (the lowest) of "
                 f"{len(audit['found'])} kinds", "audit"))  # fmt: skip
    values = read("reward_model")["validation"]["values"]
    rows.append(
        (
            "a reward model trained on rules: held-out pairs in the right order",
            interval(values["pair_accuracy"]),
            "reward_model",
        )
    )
    rows.append(("the same by length alone", interval(values["length_baseline"]), "reward_model"))
    return table(rows)


def figures() -> Iterator[str]:
    """The generated part."""
    yield "## That methods learn\n\n" + learning()
    yield "## What it costs\n\n" + costs()
    yield "## What can be relied on, and how often a verdict is wrong\n\n" + trust()


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
