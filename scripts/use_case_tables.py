"""Write the tables of docs/use_cases.md from benchmarks/results/use_cases.

python scripts/use_case_tables.py          # rewrite what stands between the markers
python scripts/use_case_tables.py --check  # exit code 1 if the page is out of date
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "use_cases.md"
RESULTS = ROOT / "benchmarks" / "results" / "use_cases"
CASES = ("advisory", "banking")
HIDDEN = ("empty",)
FACTS = ("tokens", "finished")
"""Neither more nor less of them is better, so the tables of differences leave them out."""
Interval = tuple[float, float, float]


def marks(case: str) -> tuple[str, str]:
    """The lines around a case's tables."""
    return f"<!-- {case}: begin (scripts/use_case_tables.py writes this part) -->", f"<!-- {case}: end -->"


def tables(case: str) -> str:
    """The tables of a case as Markdown."""
    raw = json.loads((RESULTS / f"{case}.json").read_bytes())
    models = raw["models"]
    cells = {(r["task"], r["name"], r["model"]): (r["value"], r["low"], r["high"]) for r in raw["values"]}
    keys = list(dict.fromkeys((r["task"], r["name"]) for r in raw["values"] if r["name"] not in HIDDEN))
    judged = [key for key in keys if key[1] not in FACTS]
    count = raw["values"][0]["n"]
    parts = [
        f"{count} held-out rows, greedy answers. In brackets: the 95% interval.",
        _grid(["task", "metric", *models], [[*key, *(_number(*cells[(*key, m)]) for m in models)] for key in keys]),
        f"Differences to {models[0]}, paired row by row:",
        _gaps(raw["differences"], judged, models[1:]),
    ]
    if raw["steps"]:
        parts += [f"{models[-1]} minus {models[-2]}:", _gaps(raw["steps"], judged, models[2:])]
    for task, other in dict.fromkeys((r["changed"], r["against"]) for r in raw["tasks"]):
        own = [r for r in raw["tasks"] if r["changed"] == task]
        parts += [f"`{task}` minus `{other}`:", _gaps(own, [key for key in judged if key[0] == other], models)]
    rows = [[n, s["kind"], f"{s['seconds']:.0f} s", f"{(s['memory'] or 0) / 1e6:.0f} MB"] for n, s in _made(raw)]
    parts += ["What it took on one core:", _grid(["stage", "kind", "time", "peak memory"], rows)]
    said = ", ".join(f"{stage}: {verdict}" for stage, verdict in raw.get("reproduced", {}).items())
    return "\n\n".join([*parts, f"`aligntune reproduce`, each trained stage made a second time: {said or 'not run'}."])


def _made(raw: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, stage) for name, stage in raw["stages"].items() if stage["kind"] != "report"]


def _gaps(rows: list[dict[str, Any]], keys: list[tuple[str, str]], models: list[str]) -> str:
    found: dict[tuple[str, str, str], str] = {}
    for row in rows:
        said, gap = row["comparison"], row["comparison"]["difference"]
        if gap is not None:
            text = _number(gap["difference"], gap["low"], gap["high"], sign=True)
            found[said["task"], said["metric"], row["model"]] = text
    lines = [[*key, *(found.get((*key, m), "") for m in models)] for key in keys if (*key, models[0]) in found]
    return _grid(["task", "metric", *models], lines)


def _number(value: float, low: float, high: float, *, sign: bool = False) -> str:
    digits = 1 if max(abs(value), abs(low), abs(high)) >= 10 else 2 if max(abs(low), abs(high)) >= 2 else 3
    shown = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return f"{shown} [{low:.{digits}f}, {high:.{digits}f}]"


def _grid(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * 2 + ["---:"] * (len(heads) - 2), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def page() -> str:
    """The page with fresh tables."""
    text = PAGE.read_text(encoding="utf-8")
    for case in CASES:
        begin, end = marks(case)
        head, _, rest = text.partition(begin)
        text = f"{head}{begin}\n\n{tables(case)}\n\n{end}{rest.partition(end)[2]}"
    return text


def main() -> int:
    """Rewrite or check the page."""
    fresh = page()
    if "--check" not in sys.argv:
        PAGE.write_text(fresh, encoding="utf-8")
        return 0
    return int(fresh != PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(main())
