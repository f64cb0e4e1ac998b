"""`diagnose run`, `diagnose`, `info --issue` and `ConfigValidator`: what is wrong is named with its fix."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import health_streams
from aligntune.core.config import load_config
from aligntune.core.resuming import how_to_go_on
from aligntune.diagnosis import check_environment, diagnose_run
from aligntune.diagnosis import environment as looking
from aligntune.errors import ConfigurationError, ValidationError
from aligntune.utils import ConfigValidator
from aligntune.utils.checkpoints import seal


def folder(path: Path, rows: list[dict[str, Any]], **manifest: Any) -> Path:
    path.mkdir(exist_ok=True)
    base: dict[str, Any] = {"status": "finished", "config": {"task": {"name": "instruction_following"}}}
    (path / "manifest.json").write_text(json.dumps({**base, **manifest}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


QUIET = health_streams.supervised(0, 30)


def test_a_healthy_run_has_no_problems(tmp_path: Path) -> None:
    found = diagnose_run(folder(tmp_path / "a", QUIET))
    assert (found.verdict, found.problems, found.step, found.failed) == ("healthy", [], 30, False)
    assert "nothing in its files looks wrong" in str(found)


@pytest.mark.parametrize(
    ("manifest", "status", "message", "fix"),
    [
        (
            {"status": "failed", "error": {"type": "OutOfMemoryError", "message": "CUDA out of memory. Tried 2 GiB"}},
            "failed", "out of memory", "train.per_device_batch_size",
        ),
        (
            {"status": "failed", "error": {"type": "TrainingError", "message": "the loss of step 3 is not a finite number"}},
            "failed", "not a finite number", "train.learning_rate",
        ),
        (
            {"status": "failed", "error": {"type": "ConfigurationError", "message": "No space left on device"}},
            "failed", "disk was full", "free some space",
        ),
        (
            {"status": "failed", "error": {"type": "RewardError", "message": "reward r raised\n  hint: mend r"}},
            "failed", "RewardError: reward r raised", "mend r",
        ),
        ({"status": "running", "process": {"host": "x", "pid": 2, "created": 1.0}}, "killed", "without a word", "dmesg"),
        ({"status": "interrupted"}, "interrupted", "stopped by the user", "begins again at the first step"),
    ],
)  # fmt: skip
def test_how_a_run_ended(tmp_path: Path, manifest: dict[str, Any], status: str, message: str, fix: str) -> None:
    found = diagnose_run(folder(tmp_path / "a", QUIET, **manifest))
    assert (found.status, found.verdict) == (status, status)
    assert message in found.problems[0].message
    assert fix in found.problems[0].fix


def test_how_to_go_on_is_true_of_the_checkpoints_that_are_there(tmp_path: Path) -> None:
    """Those of an earlier part of the run, whole ones beside damaged ones, and none that is whole."""
    run = folder(tmp_path / "a", QUIET, status="interrupted")
    trainer = SimpleNamespace(
        _run=SimpleNamespace(path=run),
        state=SimpleNamespace(checkpoint_path=None, status="interrupted"),
        stop=SimpleNamespace(reason=""),
        config=SimpleNamespace(algorithm=SimpleNamespace(progress=lambda config: "")),
    )
    assert "begins again at the first step" in how_to_go_on(trainer)
    (run / "checkpoint-8").mkdir()
    (run / "checkpoint-8" / "model.safetensors").write_bytes(b"half")
    for said in (how_to_go_on(trainer), diagnose_run(run).problems[0].fix):
        assert "no checkpoint in" in said
        assert "bring one back from a copy" in said
    (run / "checkpoint-4").mkdir()
    (run / "checkpoint-4" / "trainer_state.json").write_text('{"global_step": 4}')
    seal(run / "checkpoint-4", 4)
    assert how_to_go_on(trainer) == f"go on with the same command and --resume (checkpoint: {run / 'checkpoint-4'})"
    fix = diagnose_run(run).problems[0].fix
    assert "go on with the same command and --resume (from step 4; " in fix
    assert "checkpoint-8 is skipped" in fix
    trainer.state.status = "finished"
    assert how_to_go_on(trainer) == f"the run is finished, and its model is in {run}"


def test_a_damaged_manifest_and_configuration_are_told(tmp_path: Path) -> None:
    """The log is read all the same, and the exit code is that of something grave."""
    run = folder(tmp_path / "a", QUIET)
    (run / "config.resolved.yaml").write_text("train: [")
    (found,) = diagnose_run(run).problems
    assert (found.severity, found.message) == ("warning", "config.resolved.yaml cannot be read")
    (run / "manifest.json").write_bytes((run / "manifest.json").read_bytes()[:-9])
    mortem = diagnose_run(run)
    assert (mortem.status, mortem.step, mortem.failed) == ("unknown", 30, True)
    assert mortem.problems[0].message.startswith("manifest.json is damaged, so nobody can tell how it ended")
    assert [p.message for p in mortem.problems[1:]] == ["config.resolved.yaml cannot be read"]


def test_a_killed_run_whose_memory_was_full(tmp_path: Path) -> None:
    path = folder(tmp_path / "a", QUIET, status="running", process={"host": "x", "pid": 2, "created": 1.0})
    event = {"step": 9, "rule": "memory", "severity": "warning", "message": "m", "advice": "a", "value": 1, "limit": 1}
    (path / "events.jsonl").write_text(json.dumps(event) + "\n")
    found = diagnose_run(path)
    assert "memory was nearly full" in found.problems[0].message
    assert [p.fix for p in found.problems[1:]] == ["a"]


def test_health_events_come_by_gravity(tmp_path: Path) -> None:
    rows = health_streams.PLANTED["loss_rise"][1](0)
    rows += [{"step": 900, "grad_norm": 1e9}]
    found = diagnose_run(folder(tmp_path / "a", rows))
    assert found.verdict == "unhealthy"
    assert [p.severity for p in found.problems] == sorted(
        (p.severity for p in found.problems), key=["error", "warning"].index
    )
    assert found.failed


def test_damaged_lines_are_counted(tmp_path: Path, cli: Callable[..., Any]) -> None:
    path = folder(tmp_path / "a", QUIET)
    (path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\nnonsense\n[1]\n{"step": 2, "loss": 2.0}\n{"st')
    found = diagnose_run(path)
    assert found.step == 2
    assert "2 lines of metrics.jsonl are damaged" in found.problems[0].message
    (path / "config.resolved.yaml").write_text("a: [")
    assert cli("diagnose", "run", path, "--json").code == 0
    (path / "manifest.json").write_text("{")
    assert cli("diagnose", "run", path).code == 1


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="not a run folder"):
        diagnose_run(tmp_path)


# ---- the environment ------------------------------------------------------------------------------------------


def test_the_environment_is_looked_at_without_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any]
) -> None:
    monkeypatch.setattr(looking.socket, "create_connection", lambda *a, **k: pytest.fail("the network was touched"))
    done = cli("diagnose", "--json", "--dir", tmp_path)
    assert done.code in (0, 3)
    checks = {c["name"]: c for c in done.json["checks"]}
    assert checks["hub"]["status"] == "note"
    assert checks["python"]["found"] == os.sys.version.split()[0]  # type: ignore[attr-defined]
    assert {"disk", "memory", "threads", "sandbox", "isolation", "package trl", "device", "hub token"} <= set(checks)
    assert all(c["fix"] for c in done.json["checks"] if c["status"] in ("warn", "fail"))


def test_what_is_missing_is_named_with_its_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")

    def refuse(*args: Any, **options: Any) -> Any:
        raise OSError("no route")

    monkeypatch.setattr(looking.socket, "create_connection", refuse)
    monkeypatch.setattr(looking.importlib.metadata, "requires", lambda name: ["trl>=99", "nothing-of-the-kind>=1"])
    monkeypatch.setattr(looking.tempfile, "TemporaryFile", refuse)
    checks = {c.name: c for c in check_environment(tmp_path)}
    assert checks["hub"].status == "warn"
    assert "HF_HUB_OFFLINE=1" in checks["hub"].fix
    assert checks["package trl"].status == "warn"
    assert (checks["package nothing-of-the-kind"].status, checks["threads"].status) == ("fail", "warn")
    assert checks["package nothing-of-the-kind"].fix == "pip install 'nothing-of-the-kind>=1'"
    assert checks["write to the working folder"].status == "fail"
    assert "output_dir" in checks["write to the working folder"].fix


def test_a_block_for_an_issue_holds_no_secrets(cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_private")
    monkeypatch.setenv("HF_HOME", "/home/somebody")
    done = cli("info", "--issue")
    assert done.code == 0
    assert done.out.startswith("```\naligntune ")
    assert "trl " in done.out
    assert "hf_private" not in done.out
    assert "/home/somebody" not in done.out


# ---- configurations -------------------------------------------------------------------------------------------


def test_the_validator_gives_every_fault(tmp_path: Path) -> None:
    raw = {
        "task": "instruction_following",
        "model": {"name_or_path": "m"},
        "dataset": "rows.jsonl",
        "train": {"learning_rat": 1, "max_steps": 0},
    }
    faults = dict(ConfigValidator().faults(raw))
    assert set(faults) == {"train.learning_rat", "train.max_steps"}
    assert "learning_rate" in faults["train.learning_rat"]
    assert not ConfigValidator().is_valid(raw)
    fine = {**raw, "train": {"max_steps": 3}}
    assert ConfigValidator().is_valid(fine)
    assert ConfigValidator().validate(fine) == load_config(fine)
    assert ConfigValidator(["train.max_steps=-1"]).faults(fine)[0][0] == "train.max_steps"
    with pytest.raises(ConfigurationError):
        ConfigValidator().validate(raw)
    assert ConfigValidator().faults(tmp_path / "none.yaml")[0][0] == ""
    assert ConfigValidator().faults({})[0][0] == ""
