"""The two assistants of `examples/` at laptop size: from the file to tables with intervals, and made a second time.

    python benchmarks/use_cases.py [--only advisory banking] [--folder runs/use_cases] [--no-reproduce]

Each case is one `aligntune run` over its example file: the 260k-parameter story model, full fine-tuning in fp32, real
customer-support and retail-banking rows. A run that was cut goes on. Then `aligntune reproduce` makes each trained
stage again and compares curves and weights to the last bit. `benchmarks/results/use_cases/` gets, for each case, a
file with every value, paired difference and time, and the manifests of its trained stages; `docs/use_cases.md` shows
them (`scripts/use_case_tables.py`).

It needs the folder with data and models (`--shared`, by default `../shared`).
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "use_cases"
METRICS = ("rougeL", "rouge1", "rouge2", "bleu", "chrf")
# A model of this size needs a larger rate than the files' default, which is for models of 100 M parameters and more.
SMALL = ["stages.sft.train.learning_rate=1e-3", "values.test=120", "values.max_new_tokens=256"]
CASES = {
    "advisory": (
        "advisory_assistant.yaml",
        "bitext_customer_support/customer_support.csv",
        [*SMALL, "values.sft_steps=900"],
    ),
    "banking": (
        "banking_assistant.yaml",
        "retail_banking/retail_banking_dataset.json",
        [*SMALL, "values.sft_steps=300"],
    ),
}


def command(*words: object, check: bool = True) -> dict[str, Any]:
    """What `aligntune ... --json` printed."""
    line = [sys.executable, "-m", "aligntune", *map(str, words), "--json"]
    done = subprocess.run(line, stdout=subprocess.PIPE, text=True, check=check, cwd=ROOT)
    return json.loads(done.stdout)


def stages_of(out: Path) -> dict[str, dict[str, Any]]:
    """Name of each stage to its record."""
    return {r["name"]: {**r, "folder": str(p.parent)} for p in sorted(out.glob("*/stage.json")) for r in [_read(p)]}


def _read(path: Path) -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(path.read_bytes())
    return {"name": path.parent.name.split("-", 1)[1], **raw}


def better(tables: dict[str, Any]) -> dict[str, Any]:
    """For each task: the metrics of content on which SFT is above the base with the whole interval, and the others."""
    found: dict[str, Any] = {}
    for row in tables["differences"]:
        said = row["comparison"]
        if row["model"] != "sft" or said["metric"] not in METRICS or said["difference"] is None:
            continue
        kind = "above" if said["difference"]["low"] > 0 else "not above"
        found.setdefault(said["task"], {"above": [], "not above": []})[kind].append(said["metric"])
    return found


def measure(name: str, folder: Path, shared: Path, again: bool) -> dict[str, Any]:
    """Run a case, collect its tables, make its trained stages again."""
    import helpers

    file, data, overrides = CASES[name]
    model = folder / "stories260K"
    if not model.is_dir():
        helpers.convert_stories260k(shared / "models/stories260K", model)
    out = folder / name
    words = [f"values.data={shared / 'data' / data}", f"values.model={model}", f"output_dir={out}", *overrides]
    started = time.perf_counter()
    command("run", ROOT / "examples" / file, *words)
    stages = stages_of(out)
    tables = json.loads((Path(stages["scores"]["folder"]) / "tables.json").read_bytes())
    result: dict[str, Any] = {
        "machine": machine.describe(),
        "file": file,
        "overrides": overrides,
        "wall_seconds": round(time.perf_counter() - started, 1),
        "stages": {
            n: {k: r.get(k) for k in ("kind", "status", "seconds", "memory", "numbers", "outcome")}
            for n, r in stages.items()
        },
        "sft_above_base": better(tables),
        **{key: tables[key] for key in ("models", "values", "differences", "steps", "tasks", "by", "classes")},
    }
    trained = [n for n, record in stages.items() if record["kind"] == "train"]
    kept = RESULTS / name
    kept.mkdir(parents=True, exist_ok=True)
    for stage in trained:
        manifest = (Path(stages[stage]["folder"]) / "manifest.json").read_text()
        (kept / f"{stage}.manifest.json").write_text(relative(manifest, folder, shared))
    write(name, result)
    for stage in trained if again else []:
        target = folder / f"{name}-{stage}-again"
        shutil.rmtree(target, ignore_errors=True)
        said = command("reproduce", stages[stage]["folder"], "--output-dir", target, check=False)
        result.setdefault("reproduced", {})[stage] = said.get("verdict") or said
        write(name, result)
    return result


def relative(text: str, folder: Path, shared: Path) -> str:
    """A manifest without the places of this machine."""
    for place, name in ((folder, "runs/use_cases"), (shared, "../shared"), (ROOT, "."), (Path(sys.prefix), ".venv")):
        text = text.replace(str(place), name)
    return text


def write(name: str, result: dict[str, Any]) -> None:
    """Keep what is known so far."""
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "use_cases")
    parser.add_argument("--no-reproduce", action="store_true")
    a = parser.parse_args()
    sys.path[:0] = [str(ROOT / "tests")]
    for name in a.only:
        result = measure(name, a.folder.resolve(), a.shared.resolve(), not a.no_reproduce)
        print(name, json.dumps({k: result[k] for k in ("wall_seconds", "sft_above_base")}), result.get("reproduced"))


if __name__ == "__main__":
    main()
