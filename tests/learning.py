"""What the learning proofs share: the model that reinforcement starts from, and the file that their numbers go to.

The start is the quickstart's: its base model, briefly taught to answer sums in a mixture of two ways, of which one earns
more. `import learning` works in every test, because pytest puts this folder on the path with `conftest.py`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def taught_start(folder: Path, **sizes: int) -> dict[str, Path]:
    """`model` (taught), `prompts` to train on and `test` problems that no training sees, below `folder`.

    Args:
        folder: an empty folder.
        sizes: problems of a split, as for the quickstart's `write_datasets`.
    """
    from aligntune.core.backend_factory import create_trainer
    from aligntune.quickstart import BASE_MODEL
    from aligntune.quickstart.problems import write_datasets

    data = write_datasets(folder / "data", sizes=sizes or None)
    taught = create_trainer(
        {
            "task": "instruction_following",
            "model": {"name_or_path": str(BASE_MODEL), "max_seq_length": 64},
            "dataset": str(data["sft"]),
            "train": {"learning_rate": 1e-3, "per_device_batch_size": 64, "max_steps": 120, "seed": 0},
            "output_dir": str(folder / "sft"),
        }
    )
    taught.train()
    return {"model": folder / "sft", "prompts": data["rl"], "test": data["test"]}


def recorded(area: str, **stated: Any) -> Iterator[dict[str, dict[str, Any]]]:
    """The body of a fixture: a dictionary of runs to fill, which ends in `benchmarks/results/learning_<area>.json`.

    It is written where the environment has `ALIGNTUNE_RECORD=1`; runs of the file that are not among the new ones stay.

    Args:
        area: the name of the file.
        stated: what the file says beside the machine and the runs, such as the margin.
    """
    found: dict[str, dict[str, Any]] = {}
    yield found
    if not os.environ.get("ALIGNTUNE_RECORD"):
        return
    folder = Path(__file__).parents[1] / "benchmarks"
    sys.path.insert(0, str(folder))
    import machine

    file = folder / "results" / f"learning_{area}.json"
    before = json.loads(file.read_text())["runs"] if file.exists() else {}
    about = {"machine": machine.describe(), "load_average": round(os.getloadavg()[1], 1), **stated}
    file.write_text(json.dumps({**about, "runs": {**before, **found}}, indent=1) + "\n")


def mean(values: list[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)
