"""The health monitor: planted faults are caught and told once, healthy streams raise nothing, actions act."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import health_streams
import runs
from aligntune.core.config.health import HealthConfig
from aligntune.errors import ConfigurationError, TrainingError
from aligntune.utils.health import RULES, DiagnosticsCollector, HealthMonitor, TrainingDiagnostics, TrainingMonitor
from aligntune.utils.health.figures import memory_share, repeated

SEEDS = range(20)


def monitor(sampled: bool, **health: Any) -> HealthMonitor:
    return HealthMonitor(HealthConfig(**health), sampled=sampled, room=256 if sampled else None, best_reward=None)


def test_every_rule_has_a_planted_fault_and_a_threshold() -> None:
    assert set(health_streams.PLANTED) == set(RULES)
    assert set(RULES) - {"not_finite"} == set(HealthConfig.__dataclass_fields__) - {"enabled", "action", "window"}


@pytest.mark.parametrize("rule", RULES)
def test_a_planted_fault_is_caught_and_told_once(rule: str) -> None:
    sampled, stream = health_streams.PLANTED[rule]
    for seed in SEEDS:
        found = [e for e in monitor(sampled).replay(stream(seed)) if e.rule == rule]
        assert len(found) == 1, (rule, seed, [(e.step, e.rule) for e in found])
        assert found[0].advice
        assert found[0].step


@pytest.mark.parametrize("sampled", [False, True])
def test_healthy_streams_raise_nothing(sampled: bool) -> None:
    make = health_streams.sampled if sampled else health_streams.supervised
    alarms = [(seed, str(e)) for seed in SEEDS for e in monitor(sampled).replay(make(seed))]
    assert alarms == []


@pytest.mark.parametrize("rule", [name for name in RULES if name != "not_finite"])
def test_null_leaves_a_rule_out(rule: str) -> None:
    sampled, stream = health_streams.PLANTED[rule]
    found = monitor(sampled, **{rule: None}).replay(stream(0))
    assert rule not in {e.rule for e in found}
    assert monitor(sampled, enabled=False).replay(stream(0)) == []


@pytest.mark.parametrize(
    ("rule", "looser"),
    [
        ("loss_spike", 1e6), ("loss_rise", 1e6), ("grad_norm", 1e6), ("kl_dead", 1e-300), ("kl_high", 1e9),
        ("entropy_low", 1e-9), ("reward_flat", 1000), ("clipped", 1.5), ("repetition", 1.5), ("length", 1e6),
        ("held_out", 100), ("throughput", 1e6), ("memory", 1.5), ("disk_gb", 1e-9), ("gpu_memory", 1.5),
    ],
)  # fmt: skip
def test_each_threshold_counts(rule: str, looser: Any) -> None:
    sampled, stream = health_streams.PLANTED[rule]
    rows = stream(0)
    if rule == "kl_dead":
        rows = [{**row, "kl": 1e-9} for row in rows]
    if rule == "disk_gb":
        rows = [{**row, "system/disk_free_gb": 0.5} for row in rows]
    assert rule in {e.rule for e in monitor(sampled).replay(rows)}
    assert rule not in {e.rule for e in monitor(sampled, **{rule: looser}).replay(rows)}


def test_a_solved_task_may_be_sure_of_itself() -> None:
    rows = [{**row, "entropy": 1e-4, "frac_reward_zero_std": 1.0, "reward": 0.99} for row in health_streams.sampled(1)]
    rows[:10] = health_streams.sampled(1)[:10]
    watched = HealthMonitor(HealthConfig(), sampled=True, best_reward=1.0, room=256)
    assert watched.replay(rows) == []
    assert {e.rule for e in monitor(True).replay(rows)} == {"entropy_low", "reward_flat"}


def test_one_answer_to_a_prompt_needs_no_spread_within_it() -> None:
    rows = [{**row, "frac_reward_zero_std": 1.0} for row in health_streams.sampled(2)]
    alone = HealthMonitor(HealthConfig(), sampled=True, room=256, grouped=False)
    assert alone.replay(rows) == []
    same = [{**row, "rewards/total/std": 0.0} for row in rows if "loss" in row]
    assert {e.rule for e in HealthMonitor(sampled=True, room=256, grouped=False).replay(same)} == {"reward_flat"}


def test_an_event_comes_again_after_a_window_without_it() -> None:
    watched = monitor(False, window=10)
    rows = [{"step": i, "grad_norm": 1000.0 ** (i in (20, 21, 60))} for i in range(1, 80)]
    assert [e.step for e in watched.replay(rows)] == [20, 60]


def test_a_resumed_run_tells_nothing_twice() -> None:
    sampled, stream = health_streams.PLANTED["clipped"]
    rows = stream(0)
    straight = monitor(sampled).replay(rows)
    for cut in (50, 120, 180):
        again = monitor(sampled)
        told = again.replay(rows[:cut])
        assert told + again.replay(rows[cut:]) == straight
    later = monitor(False)
    later.note([{"rule": "memory"}])
    assert later.observe(3, {"system/memory": 0.99}) == []


def test_long_runs_need_no_more_memory() -> None:
    watched = monitor(False)
    for step in range(1, 9001):
        watched.observe(step, {"loss": 1.0})
    assert len(watched.history.values["loss"]) <= 4000
    assert watched.history.values["loss"][0] == (1, 1.0)


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("a b c", 0.0),
        ("the cat sat on a mat near me today", 0.0),
        ("go " * 20, 1 - 1 / 17),
        ("x" * 40, 1 - 1 / 33),
    ],
)
def test_repetition_of_a_text(text: str, share: float) -> None:
    assert repeated(text) == pytest.approx(share)


def test_the_machine_is_looked_at_with_its_limits(tmp_path: Path) -> None:
    found = DiagnosticsCollector(tmp_path / "not" / "there").system()
    assert 0 < found["system/memory"] < 1
    assert found["system/disk_free_gb"] == pytest.approx(shutil.disk_usage(tmp_path).free / 1e9, rel=0.1)
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("990\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 5\n")
    assert memory_share(tmp_path) == pytest.approx(0.985)
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_share(tmp_path) < 1
    looks = DiagnosticsCollector(tmp_path, every=1000)
    assert looks.due()
    assert looks.due() == {}


def test_faults_of_the_section_are_told_with_their_keys() -> None:
    with pytest.raises(ConfigurationError, match="window"):
        HealthConfig(window=1)
    with pytest.raises(ConfigurationError, match="action"):
        HealthConfig(action="explode")  # type: ignore[arg-type]


# ---- in runs --------------------------------------------------------------------------------------------------


def events(folder: Path) -> list[dict[str, Any]]:
    path = folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_learning_rate_a_thousand_times_too_high_is_noticed(tiny_model: Path, tmp_path: Path) -> None:
    fine = runs.trainer("sft", tiny_model, tmp_path / "fine", train__max_steps=40)
    fine.train()
    assert events(tmp_path / "fine" / "out") == []
    wild = runs.trainer("sft", tiny_model, tmp_path / "wild", train__max_steps=40, train__learning_rate=1.0)
    wild.train()
    found = events(tmp_path / "wild" / "out")
    assert {"loss_rise", "loss_spike"} & {e["rule"] for e in found}
    assert all("train.learning_rate" in e["advice"] for e in found if e["rule"].startswith("loss"))
    assert len(found) == len({e["rule"] for e in found})
    told = TrainingDiagnostics.of_folder(tmp_path / "wild" / "out")
    assert [e.rule for e in told.events] == [e["rule"] for e in found]
    assert told.verdict == "unhealthy"
    live = TrainingMonitor(tmp_path / "wild" / "out")
    assert [e.rule for e in live.poll()] == [e["rule"] for e in found]
    assert live.poll() == []


def test_a_constant_reward_stops_the_run_where_that_is_asked(tiny_model: Path, tmp_path: Path) -> None:
    def made() -> Any:
        trainer = runs.trainer(
            "grpo", tiny_model, tmp_path, train__max_steps=16, health__action="stop", health__clipped=None,
            health__reward_flat=4,
        )  # fmt: skip
        (tmp_path / "share.py").write_text("def share_of_a(text: str) -> float:\n    return 0.25\n")
        return trainer

    with pytest.raises(TrainingError, match=r"health\.action.*no group of answers") as stopped:
        made().train()
    assert "rewards audit" in stopped.value.hint
    folder = tmp_path / "out"
    found = events(folder)
    assert [(e["rule"], e["step"], e["action"]) for e in found] == [("reward_flat", 4, "stop")]
    assert (folder / "checkpoint-4").is_dir()
    assert json.loads((folder / "manifest.json").read_text())["status"] == "failed"
    result = made().train(resume="latest")  # goes on, and says nothing twice
    assert result.total_steps == 16
    assert events(folder) == found


def test_an_event_can_write_a_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    trainer = runs.trainer(
        "grpo", tiny_model, tmp_path, train__max_steps=14, health__action="checkpoint", health__reward_flat=None
    )
    trainer.train()
    found = events(tmp_path / "out")
    assert [e["rule"] for e in found] == ["clipped"]
    assert (tmp_path / "out" / f"checkpoint-{found[0]['step']}").is_dir()
    assert any("generation.max_completion_length" in note for note in trainer.notes)
