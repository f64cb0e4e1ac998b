"""Isolation, both ways: neither backend touches the other's runs.

Without Unsloth means here: a Python environment that does not hold it. It is built from links to everything on this
interpreter's path but Unsloth's two packages and their metadata, so both environments run the same files and no import
hook takes part. Checked are: Unsloth is not found there; the losses of the runs, bit for bit; the trained weights; the
fingerprint of the code.

Kernels that are not deterministic would make any two runs differ. So the run with Unsloth installed is made twice: only
if those two are equal does a difference from the third say something, and the verdict is `undecided` otherwise. The
attention is the plain one (`eager`), whose kernels are deterministic.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

from gpu import configs, models
from gpu.child import answer, environment, last, run, train
from gpu.record import Case, Part, Settings, Values

FOREIGN = ("unsloth", "unsloth_zoo")
KINDS = ("instruction_following", "dpo", "grpo")
SEEN = """
import importlib.metadata, importlib.util, json, sys, torch
names = ["unsloth", "unsloth_zoo"]
def version(name):
    try: return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError: return None
hooks = [type(f).__name__ if not isinstance(f, type) else f.__name__ for f in sys.meta_path]
print(json.dumps({
    "found": [n for n in names if importlib.util.find_spec(n)], "versions": [version(n) for n in names],
    "torch": torch.__version__, "cuda": torch.cuda.is_available(), "prefix": sys.prefix, "hooks": hooks,
}))
"""
SCRIPT = """
import sys
from aligntune.core.backend_factory import create_trainer
result = {}
for name, values in given["runs"].items():
    with create_trainer(values) as trainer:
        result[name] = trainer.train().final_loss
result = {"losses": result, "imported": [m for m in ("torch", "trl", "unsloth") if m in sys.modules]}
"""


def environment_without(folder: Path) -> Path:
    """The interpreter of an environment like this one without Unsloth; made anew.

    Args:
        folder: for the environment.
    """
    shutil.rmtree(folder, ignore_errors=True)
    base = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(base, check=True, capture_output=True)
    site = next((folder / "lib").glob("python3*/site-packages"))
    python = folder / "bin" / "python"
    there = {str(Path(p).resolve()) for p in _path(python, PYTHONPATH="")}
    for place in _path(Path(sys.executable)):
        source = Path(place)
        if not source.is_dir() or str(source.resolve()) in there:
            continue
        for entry in source.iterdir():
            if _foreign(entry.name) or entry.name == "__pycache__" or (site / entry.name).exists():
                continue
            (site / entry.name).symlink_to(entry.resolve())
    return python


def _foreign(name: str) -> bool:
    head = name.lower().replace("-", "_")
    return any(head == f or head.startswith((f"{f}.", f"{f}_")) for f in FOREIGN) or head.startswith(
        "__editable__unsloth"
    )


def _path(python: Path, **env: str) -> list[str]:
    """Where an interpreter looks for modules, the folder that it is started in left out."""
    line = [str(python), "-P", "-c", "import json, sys; print(json.dumps([p for p in sys.path if p]))"]
    found = subprocess.run(line, check=True, capture_output=True, text=True, env={**os.environ, **env})
    return list(json.loads(found.stdout))


def cases(settings: Settings) -> list[Case]:
    """The environment, three kinds of run in both, one script with both backends, and the fingerprints."""
    python = settings.work / "without-unsloth" / "bin" / "python"
    made = [Case("environment without Unsloth", partial(_environment, settings))]
    made += [Case(f"{k}: TRL with and without Unsloth", partial(_pair, k, python, settings)) for k in KINDS]
    made.append(Case("one script, TRL and Unsloth in turn", partial(_turns, settings)))
    made += [Case(f"fingerprint, {b}", partial(_fingerprint, b, settings)) for b in ("trl", "unsloth")]
    return made


def _environment(settings: Settings, seconds: float) -> Values:
    python = environment_without(settings.work / "without-unsloth")
    env = {k: v for k, v in environment(settings).items() if k != "PYTHONPATH"}
    done = run([str(python), "-c", SEEN], seconds, env=env)
    if done.returncode:
        return {"ok": False, "error": last(done.stderr)}
    seen = json.loads(done.stdout.splitlines()[-1])
    here = run([sys.executable, "-c", SEEN], seconds, env=environment(settings))
    with_it = json.loads(here.stdout.splitlines()[-1])
    hidden = seen["found"] == [] and seen["versions"] == [None, None] and with_it["found"] == list(FOREIGN)
    same = all(seen[k] == with_it[k] for k in ("torch", "cuda"))
    return {"ok": hidden and same, "without": seen, "with": with_it}


def _pair(kind: str, python: Path, settings: Settings, seconds: float) -> Values:
    """Twice here, once there."""
    if not python.exists():
        environment_without(python.parents[1])
    model, _ = models.build("llama", "0.1b", settings, small_vocabulary=True)
    values = configs.config(
        kind, settings, model, backend="trl", steps=3 if settings.tiny else 6, model={"attn_implementation": "eager"}
    )
    found = {}
    for name, other in (("here", None), ("here, again", None), ("there", str(python))):
        ran = train(values, f"isolation/{kind}/{name}", seconds / 3, settings, python=other)
        if not ran["ok"]:
            return {"ok": False, "error": f"{name}: {ran['error']}"}
        weights = _digest(Path(ran["folder"]) / "run")
        found[name] = {"losses": ran["losses"], "weights": weights, "fingerprint": ran["fingerprint"]}
        found[name]["foreign"] = ran["foreign"]
    here, again, there = (found[n] for n in ("here", "here, again", "there"))
    code = here["fingerprint"] == there["fingerprint"] and here["foreign"] == there["foreign"] == 0
    steady = here["losses"] == again["losses"] and here["weights"] == again["weights"]
    equal = here["losses"] == there["losses"] and here["weights"] == there["weights"]
    verdict = "equal bit for bit" if equal else ("DIFFERENT" if steady else "undecided: two runs here differ too")
    return {"ok": code and (equal or not steady), "verdict": verdict, "same_code": code, **found}


def _digest(folder: Path) -> str:
    """A hash of the trained weights."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _turns(settings: Settings, seconds: float) -> Values:
    """TRL, Unsloth, TRL, Unsloth from one script, each in its process: equal in pairs."""
    model, _ = models.build("llama", "0.1b", settings, small_vocabulary=True)
    runs = {}
    for i, backend in enumerate(("trl", "unsloth", "trl", "unsloth")):
        folder = settings.work / "runs" / "isolation" / "turns" / f"{i}-{backend}"
        shutil.rmtree(folder, ignore_errors=True)
        values = configs.config("instruction_following", settings, model, backend=backend, steps=3)
        runs[f"{i} {backend}"] = {**values, "isolation": "process", "output_dir": str(folder)}
    told = answer(SCRIPT, seconds, settings, runs=runs)
    losses = list(told["losses"].values())
    return {
        "ok": losses[0] == losses[2] and not told["imported"],
        "losses": told["losses"],
        "trl_equal": losses[0] == losses[2],
        "unsloth_equal": losses[1] == losses[3],
        "imported_by_the_script": told["imported"],
    }


def _fingerprint(backend: str, settings: Settings, seconds: float) -> Values:
    """What `aligntune diagnose isolation` says of a process of this backend."""
    line = [sys.executable, "-m", "aligntune", "diagnose", "isolation", "--backend", backend, "--json"]
    done = run(line, seconds, env=environment(settings))
    try:
        found = json.loads(done.stdout)["fingerprint"]
    except (ValueError, KeyError):
        return {"ok": False, "error": last(done.stderr)}
    replaced, foreign = sum(found["by"].values()), len(found["foreign"])
    ok = (replaced == 0) if backend == "trl" else foreign > 0
    return {"ok": ok, "symbols": found["symbols"], "replaced": replaced, "foreign": foreign, "by": found["by"]}


PARTS = [Part("isolation", "a TRL run with Unsloth installed is the run without it; the Unsloth run is patched", cases)]
