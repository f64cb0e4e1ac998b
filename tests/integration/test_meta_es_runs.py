"""Meta-ES with real members: one iteration of two, what it leaves behind, and a stop in the midst of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import runs

pytestmark = pytest.mark.slow


def plain(model: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """One iteration of two members of two steps, and a final training of three."""
    folder.mkdir(parents=True, exist_ok=True)
    held = runs.write_rows(folder / "held.jsonl", runs.SFT_ROWS[:4])
    small = {"iterations": 1, "population": 2, "steps": 2, "num_generations": 4, "divergence_weight": 10.0}
    given: dict[str, Any] = {
        "algo": {"name": "meta_es", **small},
        "evaluation": {"dataset": {"name": str(held)}, "max_new_tokens": 8, "temperature": 1.0},
        "train__max_steps": 3,
        "train__save_steps": 1,
        "train__learning_rate": 1e-2,
        **changes,
    }
    return runs.plain("grpo", model, folder, **given)


def rows_of(out: Path) -> list[dict[str, Any]]:
    path = out / "population.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_one_iteration_of_two_members_and_the_final_training(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    from aligntune.algorithms.gbmpo import MAP_FILE
    from aligntune.algorithms.mirror_map import MirrorMap
    from aligntune.core.backend_factory import create_trainer

    run = create_trainer(plain(tiny_model, tmp_path))
    result = run.train()
    out = tmp_path / "out"
    rows = rows_of(out)
    assert [(r["name"], r["sign"], r["seed"], r["steps"]) for r in rows] == [
        ("i000-m00", 1, 4, 2),
        ("i000-m01", -1, 4, 2),
    ]
    best = max(rows, key=lambda r: r["fitness"])
    assert result.metrics["meta_es/best_fitness"] == best["fitness"]
    used = MirrorMap.load(out / MAP_FILE).flat()
    assert torch.equal(used, MirrorMap.load(out / "meta_es" / f"{best['name']}.safetensors").flat())
    maps = [MirrorMap.load(out / "meta_es" / f"{r['name']}.safetensors").flat() for r in rows]
    assert torch.allclose((maps[0] + maps[1]) / 2, MirrorMap.random(3).flat())
    assert not [p for p in (out / "meta_es").iterdir() if p.is_dir()]
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["status"], manifest["meta_es"]["best"]) == ("finished", best["name"])
    assert result.total_steps == 3 == len(runs.logged(out))
    assert (out / "checkpoint-3").is_dir()

    # the final training is a run of neural_mirror with that map
    algo = {"name": "neural_mirror", "num_generations": 4, "divergence_weight": 10.0}
    given = {"algo": {**algo, "mirror_path": str(out / MAP_FILE)}}
    other = create_trainer(plain(tiny_model, tmp_path / "plain", **given))
    other.train()
    assert runs.same_weights(out, tmp_path / "plain" / "out")

    # and a member is one too, with its own seed and length
    given["algo"]["mirror_path"] = str(out / "meta_es" / "i000-m01.safetensors")
    member = create_trainer(
        plain(tiny_model, tmp_path / "member", **given, train__seed=4)
        | {"output_dir": str(tmp_path / "member" / "out")}
    )
    member.config.train.max_steps, member.config.train.save_steps = 2, None
    assert member.train().metrics["eval_reward"] == rows[1]["fitness"]


def test_a_stopped_search_leaves_no_process_and_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    """Ctrl-C on the command line after the first member; then --resume, which trains the second one only."""
    import psutil

    file = tmp_path / "run.yaml"
    raw = plain(tiny_model, tmp_path, algo__steps=2)
    file.write_text(yaml.safe_dump(raw), encoding="utf-8")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "aligntune", "train", str(file), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        if rows_of(out) and (out / "meta_es" / "i000-m01.log").exists():
            break
        time.sleep(0.2)
    first = rows_of(out)
    assert [r["name"] for r in first] == ["i000-m00"]
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume (1 of 2 members of the search" in told
    assert "Traceback" not in told
    psutil.wait_procs(children, timeout=20)
    assert not [c for c in children if c.is_running() and c.status() != psutil.STATUS_ZOMBIE]
    assert json.loads((out / "manifest.json").read_text())["status"] == "interrupted"

    again = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert again.returncode == 2  # a run that did not finish is not overwritten
    assert "did not finish" in again.stderr
    resumed = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    rows = rows_of(out)
    assert [r["name"] for r in rows] == ["i000-m00", "i000-m01"]
    assert rows[0] == first[0]
    assert json.loads((out / "manifest.json").read_text())["status"] == "finished"


def test_a_killed_search_takes_its_members_with_it(tiny_model: Path, tmp_path: Path) -> None:
    import psutil

    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(plain(tiny_model, tmp_path, algo__steps=500)), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "aligntune", "train", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    children: list[Any] = []
    for _ in range(600):
        children = psutil.Process(process.pid).children(recursive=True)
        if children:
            break
        time.sleep(0.1)
    assert children
    time.sleep(1.0)
    process.kill()
    process.wait()
    gone, _ = psutil.wait_procs(children, timeout=30)
    assert len(gone) == len(children)


def test_it_runs_on_unsloth_from_the_same_file(tiny_model: Path, tmp_path: Path) -> None:
    import importlib.util

    if importlib.util.find_spec("unsloth") is None:
        pytest.skip("unsloth is not installed")
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(plain(tiny_model, tmp_path, algo__workers=2)), encoding="utf-8")
    command = [sys.executable, "-m", "aligntune", "train", str(file), "backend=unsloth", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    rows = rows_of(tmp_path / "out")
    assert [r["name"] for r in rows] == ["i000-m00", "i000-m01"]
    assert result["metrics"]["meta_es/best_fitness"] == max(r["fitness"] for r in rows)
    assert (result["total_steps"], len(runs.logged(tmp_path / "out"))) == (3, 3)
    assert (tmp_path / "out" / "checkpoint-3").is_dir()
