"""`comparison.html` of several runs and evaluations: key numbers, each metric's curves in one chart, values and items,
rewards, the answers to the same prompts, and what each run was made of.

>>> several_report([read_run("out/a"), read_run("out/b")], [], Path("out/comparison.html"))
PosixPath('out/comparison.html')
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aligntune.report.beside import answers_beside
from aligntune.report.curves import seed_groups, side_by_side, table
from aligntune.report.evaluation import MOST_ITEMS_BYTES, evaluation_block, label_results, run_results
from aligntune.report.facts import chips, facts
from aligntune.report.page import shortened, write_fitting
from aligntune.report.read import RunData
from aligntune.report.rewards import rewards_beside
from aligntune.report.run_page import MOST_MANIFEST, health, manifest_text, tiles

MOST_TEXT_BYTES = 1_500_000
"""Share of a page that the answers may take, beside `MOST_ITEMS_BYTES`."""


def several_report(runs: Sequence[RunData], measured: Sequence[Any], out: Path) -> Path:
    """Write the report of runs and evaluations beside each other; return the file's path."""
    names = [run.name for run in runs]
    labels = [run.name if names.count(run.name) == 1 else str(run.path) for run in runs]
    shown = [{tile.label: tile.value for tile in tiles(run)} for run in runs]
    rows = dict.fromkeys(label for one in shown for label in one)
    by_label = dict(zip(labels, runs, strict=True))
    groups = seed_groups(by_label)
    own = {label: run_results(run.path)[0] for label, run in by_label.items()}
    trained = [(label, found[-1][1]) for label, found in own.items() if found]
    results = [*trained, *label_results(measured)]
    label_of = {id(run): label for label, run in by_label.items()}
    members = [(name, [label_of[id(run)] for run in group]) for name, group in groups.items()]
    colours = {label: i for i, (_, group) in enumerate(members) for label in group}
    answers = answers_beside(by_label, colours)
    most = MOST_MANIFEST // max(len(runs), 1)
    titles = labels or [label for label, _ in results]
    parts = {
        "title": " and ".join(titles) if len(titles) <= 2 else f"{len(titles)} {'runs' if labels else 'evaluations'}",
        "runs": [
            {
                "label": label,
                "status": run.status,
                "chips": chips(run.manifest),
                "facts": facts(run.manifest),
                "config_text": shortened(run.config_text, most),
                "manifest_text": shortened(manifest_text(run), most),
                "numbers": table(run),
                "health": health(run),
            }
            for label, run in zip(labels, runs, strict=True)
        ],
        "rows": [(label, [one.get(label) for one in shown]) for label in rows],
        "charts": side_by_side(groups),
        "seeds": [f"{label}: {', '.join(run.name for run in one)}" for label, one in groups.items() if len(one) > 1],
        "rewards": rewards_beside({label: run.path for label, run in by_label.items()}, members),
    }

    def fitting(budget: int) -> dict[str, Any]:
        items = budget * 2 // 3 if results else 0
        return {
            **parts,
            "evaluation": evaluation_block(results, budget=items),
            "answers": answers.within(budget - items),
        }

    return write_fitting(out, "runs.html.j2", fitting, MOST_ITEMS_BYTES + MOST_TEXT_BYTES)
