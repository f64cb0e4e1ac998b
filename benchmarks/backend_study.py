"""The backend study of `examples/backend_study.yaml`, and what an installed Unsloth does to a run on TRL.

    python benchmarks/backend_study.py [--only dpo grpo isolation] [--folder runs/study] [--quickstart FOLDER]

1. `aligntune quickstart` makes the model that both algorithms start from, and their data (left out where `--quickstart`
   names a folder that has them).
2. `aligntune run examples/backend_study.yaml`: DPO and GRPO, TRL against Unsloth, three seeds, margins in the file.
3. The isolation experiment: the file's run on TRL in two fresh processes, one of which cannot find Unsloth. Losses,
   weights and the fingerprint of the code that trains are compared to the last bit.

Writes `benchmarks/results/backend_study.json`, part by part; `scripts/backend_study_tables.py` shows it in
`docs/backend_study.md`. Times are those of this machine with what else ran on it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import machine

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "examples" / "backend_study.yaml"
RESULT = Path(__file__).parent / "results" / "backend_study.json"
CHILD = """
    import importlib.util, sys
    from hiding import hide
    if sys.argv[2] == "hidden":
        hide("unsloth", "unsloth_zoo")
    assert (importlib.util.find_spec("unsloth") is None) == (sys.argv[2] == "hidden")
    from aligntune.core.backend_factory import create_trainer
    create_trainer(sys.argv[1]).train()
"""


def paths(quickstart: Path) -> list[str]:
    """Overrides that name what the quickstart has left."""
    data = quickstart / "data"
    named = {
        "model": quickstart / "sft",
        "pairs": quickstart / "pairs" / "pairs.jsonl",
        "held_out": quickstart / "held_out_pairs" / "pairs.jsonl",
        "prompts": data / "prompts.jsonl",
        "problems": data / "test.jsonl",
    }
    return [f"values.{name}={path}" for name, path in named.items()]


def program(*words: object) -> None:
    """Run a command of aligntune; its words are shown."""
    subprocess.run([sys.executable, "-m", "aligntune", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def comparison(name: str, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """One stage of the file: conclusions, runs and notes."""
    out = folder / name
    program("run", FILE, "--only", name, f"output_dir={out}", *overrides)
    return read_comparison(next(out.glob(f"*-{name}")) / "comparison.json")


def read_comparison(path: Path) -> dict[str, Any]:
    """What a comparison concluded, with the values and the weights' hash of every run and without its curves."""
    from aligntune.utils.manifest import file_sha256

    raw = json.loads(path.read_bytes())
    runs = [{key: run[key] for key in ("arm", "seed", "status", "values")} for run in raw["runs"]]
    for run in runs:
        weights = path.parent / run["arm"] / f"seed-{run['seed']}" / "model.safetensors"
        run["weights"] = file_sha256(weights) if weights.is_file() else None
    return {"arms": raw["arms"], "rows": raw["rows"], "runs": runs, "notes": raw["notes"]}


def isolation(folder: Path, overrides: list[str], steps: int = 10) -> dict[str, Any]:
    """DPO and GRPO on TRL, with Unsloth there and hidden."""
    from aligntune.core.config.io import dump_config, load_config
    from aligntune.stages import make_plan
    from aligntune.utils.manifest import file_sha256

    plan = make_plan(FILE, [*overrides, f"output_dir={folder / 'plan'}"])
    found: dict[str, Any] = {"steps": steps}
    for name in ("dpo", "grpo"):
        sides = {}
        for side in ("installed", "hidden"):
            out = folder / f"isolation-{name}-{side}"
            changes = [f"train.max_steps={steps}", "evaluation.tasks=[]", f"output_dir={out}", "logging.steps=1"]
            config = load_config(plan[name].kind.config["run"], overrides=changes)
            with tempfile.TemporaryDirectory() as empty:
                file = Path(empty) / "run.yaml"
                file.write_text(dump_config(config), encoding="utf-8")
                line = [sys.executable, "-c", textwrap.dedent(CHILD), str(file), side]
                path = os.pathsep.join([str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
                subprocess.run(line, check=True, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL)
            manifest = json.loads((out / "manifest.json").read_bytes())
            rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            sides[side] = {
                "losses": [row["loss"] for row in rows if "loss" in row],
                "weights": file_sha256(out / "model.safetensors"),
                "fingerprint": manifest["patch_fingerprint"]["hash"],
                "symbols": manifest["patch_fingerprint"]["symbols"],
                "replaced": len(manifest["patch_fingerprint"]["replaced"]),
            }
        a, b = sides["installed"], sides["hidden"]
        found[name] = {
            "losses_equal": a["losses"] == b["losses"],
            "weights_equal": a["weights"] == b["weights"],
            "fingerprint_equal": a["fingerprint"] == b["fingerprint"],
            **sides,
        }
    return found


def main() -> None:
    """Measure, and keep what is known after each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=["dpo", "grpo", "isolation"], default=["dpo", "grpo", "isolation"])
    parser.add_argument("--folder", type=Path, default=Path("runs/study"))
    parser.add_argument("--quickstart", type=Path, help="a finished quickstart; without it, one is made")
    options = parser.parse_args()
    quickstart = options.quickstart or options.folder / "quickstart"
    if not quickstart.is_dir():
        program("quickstart", "--out", quickstart)
    overrides = paths(quickstart.absolute())
    found: dict[str, Any] = json.loads(RESULT.read_bytes()) if RESULT.exists() else {}
    found["machine"] = machine.describe()
    for part in options.only:
        folder = options.folder.absolute()
        found[part] = isolation(folder, overrides) if part == "isolation" else comparison(part, folder, overrides)
        RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(f"{part}: done", flush=True)


if __name__ == "__main__":
    main()
