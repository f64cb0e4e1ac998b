"""Write the tables of docs/backend_study.md from benchmarks/results/backend_study.json.

python scripts/backend_study_tables.py          # rewrite what stands between the markers
python scripts/backend_study_tables.py --check  # exit code 1 if the page is out of date
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "backend_study.md"
RESULT = ROOT / "benchmarks" / "results" / "backend_study.json"
PARTS = ("dpo", "grpo", "isolation")
COSTS = {"step_time": "median step", "tokens_per_second": "tokens per second", "peak_memory": "peak memory"}
SHOWN = (
    "final_loss",
    "reward",
    "kl",
    "eval_nll",
    "eval_rewards/accuracies",
    "eval_rewards/margins",
    "eval/sums/reward",
    "eval/sums/rewards/math_correctness",
    "items/sums/rewards/math_correctness",
)
"""Held-out and final values of the tables; the file has all."""


def marks(part: str) -> tuple[str, str]:
    """The lines around a part's tables."""
    return f"<!-- {part}: begin (scripts/backend_study_tables.py writes this part) -->", f"<!-- {part}: end -->"


def tables(part: str) -> str:
    """The tables of a part as Markdown."""
    raw = json.loads(RESULT.read_bytes())[part]
    return _isolation(raw) if part == "isolation" else _comparison(raw)


def _comparison(raw: dict[str, Any]) -> str:
    finished = [run for run in raw["runs"] if run["status"] == "finished"]
    seeds = len({run["seed"] for run in finished})
    rows = {row["value"]: row for row in raw["rows"]}
    cells = []
    for name in (*COSTS, *SHOWN):
        if name in rows:
            row = rows[name]
            label = COSTS.get(name, f"`{name}`")
            pair = [_number(name, row["base_median"]), _number(name, row["arm_median"])]
            cells.append([label, *pair, _change(row), row["verdict"]])
    told = [f"{len(finished)} of {len(raw['runs'])} runs finished, {seeds} seeds. {_weights(finished)}"]
    grid = _grid(["value", "TRL", "Unsloth", "change", "verdict"], cells)
    return "\n\n".join([*told, grid, *(f"- {note}" for note in raw["notes"])])


def _weights(runs: list[dict[str, Any]]) -> str:
    """In how many seeds the two backends ended with one model, to the last bit."""
    by_seed: dict[int, set[str]] = {}
    for run in runs:
        by_seed.setdefault(run["seed"], set()).add(run["weights"])
    equal = sum(len(found) == 1 for found in by_seed.values())
    return f"In {equal} of {len(by_seed)} seeds the trained weights of the two backends are equal bit for bit."


def _change(row: dict[str, Any]) -> str:
    if row["kind"] == "ratio":
        shown, sign = f"x {row['change']:.3g}", ""
    else:
        shown, sign = f"{row['change']:+.3g}", "+"
    if row["low"] is None:
        return shown
    return f"{shown} [{row['low']:{sign}.3g}, {row['high']:{sign}.3g}]"


def _number(name: str, value: float) -> str:
    if name == "peak_memory":
        return f"{value / 1e6:.0f} MB"
    if name == "step_time":
        return f"{value:.2f} s"
    return f"{value:.0f}" if name == "tokens_per_second" else f"{value:.4g}"


def _isolation(raw: dict[str, Any]) -> str:
    rows = []
    for name in ("dpo", "grpo"):
        found = raw[name]
        equal = ["equal" if found[f"{what}_equal"] else "DIFFERENT" for what in ("losses", "weights", "fingerprint")]
        here = found["installed"]
        rows.append([name, str(len(here["losses"])), *equal, str(here["symbols"]), str(here["replaced"])])
    heads = ["algorithm", "logged losses", "losses", "weights", "fingerprint", "symbols in it", "replaced"]
    return _grid(heads, rows)


def _grid(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page() -> str:
    """The page with today's tables."""
    text = PAGE.read_text(encoding="utf-8")
    for part in PARTS:
        begin, end = marks(part)
        head, rest = text.split(begin)
        text = f"{head}{begin}\n\n{tables(part)}\n\n{end}{rest.split(end)[1]}"
    return text


def main() -> None:
    """Write the page, or check it."""
    text = page()
    if "--check" in sys.argv[1:]:
        if text != PAGE.read_text(encoding="utf-8"):
            raise SystemExit(f"{PAGE} is out of date: run python scripts/backend_study_tables.py")
        return
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
