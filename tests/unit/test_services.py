"""Logging services: they get the rows, a resumed run goes on in their run, and none of them stops the training."""

from __future__ import annotations

import json
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

import runs
from aligntune.core import refreshing, services
from aligntune.core.services import _environment, survive


class FakeWandb(types.ModuleType):
    """What Transformers' integration asks of wandb; each call is kept, and one of them may fail or hang."""

    def __init__(self, fails: str = "", hangs: str = "") -> None:
        super().__init__("wandb")
        self.__spec__ = types.SimpleNamespace(name="wandb", loader=None)  # type: ignore[assignment]
        self.fails, self.hangs = fails, hangs
        self.released = threading.Event()
        self.calls: list[tuple[str, Any]] = []
        self.run: Any = None
        self.config = _Config()

    def _note(self, name: str, value: Any) -> None:
        self.calls.append((name, value))
        if name == self.fails:
            raise ConnectionError("no route to the service\nsecond line")
        if name == self.hangs:
            self.released.wait(60)

    def init(self, **given: Any) -> None:
        import os

        found = {k: os.environ[k] for k in ("WANDB_RUN_ID", "WANDB_RESUME") if k in os.environ}
        self._note("init", {**given, **found})
        number = found.get("WANDB_RUN_ID", "abc123")
        self.run = types.SimpleNamespace(id=number, url=f"http://x/{number}", name="n", _label=lambda **k: None)

    def log(self, row: dict[str, Any], **given: Any) -> None:
        self._note("log", row)

    def define_metric(self, *a: Any, **k: Any) -> None:
        """Nothing."""


class _Config(dict):  # type: ignore[type-arg]
    def update(self, *a: Any, **k: Any) -> None:  # type: ignore[override]
        """Nothing."""


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """`wandb(fails="log")` puts a fake package in the real one's place; what hangs is let go at the end."""
    made: list[FakeWandb] = []

    def install(**how: str) -> FakeWandb:
        module = FakeWandb(**how)
        parts = ("wandb.sdk", "wandb.sdk.lib", "wandb.sdk.lib.config_util")
        for name in parts:
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules[parts[-1]].ConfigError = ValueError  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "wandb", module)
        for name in (
            "transformers.integrations.integration_utils",
            "trl.trainer.base_trainer",
            "aligntune.core.checks",
        ):
            __import__(name)
        monkeypatch.setattr("trl.trainer.base_trainer.is_wandb_available", lambda: False)  # its card asks the package
        monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: True)
        made.append(module)
        return module

    yield install
    for module in made:
        module.released.set()


def notes(folder: Path) -> list[str]:
    return list(json.loads((folder / "manifest.json").read_text())["notes"])


def cut_at_step_3(model: Path, folder: Path, options: dict[str, Any]) -> None:
    """A run that is stopped behind its checkpoint of step 2."""
    trainer = runs.trainer("sft", model, folder, **options)
    record = trainer.record

    def stop_after(step: int, logs: dict[str, Any]) -> None:
        record(step, logs)
        if step == 3:
            raise KeyboardInterrupt

    trainer.record = stop_after
    with pytest.raises(KeyboardInterrupt):
        trainer.train()


def test_a_service_gets_the_rows_and_a_resumed_run_goes_on_in_its_run(
    tiny_model: Path, tmp_path: Path, wandb: Any
) -> None:
    held = {"evaluation__dataset": {"name": str(tmp_path / "sft.jsonl"), "max_samples": 4}, "evaluation__every": 2}
    options = {"logging__report_to": ["wandb"], "train__save_steps": 2, **held}
    first = wandb()
    cut_at_step_3(tiny_model, tmp_path, options)
    out = tmp_path / "out"
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["services"] == {"wandb": {"id": "abc123", "url": "http://x/abc123"}}
    assert dict(first.calls)["init"] == {"project": "huggingface", "name": "out"}
    again = wandb()
    runs.trainer("sft", tiny_model, tmp_path, **options).train(resume="latest")
    given = dict(again.calls)["init"]
    assert (given["WANDB_RUN_ID"], given["WANDB_RESUME"]) == ("abc123", "allow")
    rows = [row for name, row in again.calls if name == "log"]
    assert [row["train/global_step"] for row in rows] == [3, 4, 4]
    assert [row["train/loss"] for row in rows if "train/loss" in row] == runs.logged(out)[2:4]
    assert rows[-1]["eval/nll"] == runs.logged(out, "eval_nll")[-1]
    assert not any("logging service" in note for note in notes(out))


@pytest.mark.parametrize(
    ("how", "told", "asked"),
    [
        ({"fails": "init"}, "the logging service wandb failed (ConnectionError: no route to the service)", 0),
        ({"hangs": "init"}, "the logging service wandb failed (DeadlineExceeded: no result after 0.3 s)", 0),
        ({"fails": "log"}, "the logging service wandb failed (ConnectionError: no route to the service)", 4),
        ({"hangs": "log"}, "the logging service wandb failed (DeadlineExceeded: no result after 0.2 s)", 1),
    ],
)
def test_a_service_that_fails_or_hangs_does_not_stop_the_run(
    how: dict[str, str], told: str, asked: int, tiny_model: Path, tmp_path: Path, wandb: Any, monkeypatch: Any
) -> None:
    # Short only where something hangs, so that a slow machine is not taken for a service that does.
    monkeypatch.setattr(services, "START_SECONDS", 0.3 if how == {"hangs": "init"} else 60)
    monkeypatch.setattr(services, "ROW_SECONDS", 0.2 if how == {"hangs": "log"} else 60)
    module = wandb(**how)
    runs.trainer("sft", tiny_model, tmp_path, logging__report_to=["wandb"]).train()
    found = [note for note in notes(tmp_path / "out") if "logging service" in note]
    assert found[0] == f"{told}; the run goes on without it"
    assert found[1:] == (["the logging service wandb failed 4 times"] if asked == 4 else [])  # told once, and counted
    assert len([name for name, _ in module.calls if name == "log"]) == asked
    assert len(runs.logged(tmp_path / "out")) == 4
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["status"] == "finished"


def test_tensorboard_takes_back_what_follows_the_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = {"logging__report_to": ["tensorboard"], "train__save_steps": 2}
    cut_at_step_3(tiny_model, tmp_path, options)
    runs.trainer("sft", tiny_model, tmp_path, **options).train(resume="latest")
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    shown = events.Scalars("train/loss")
    assert [event.step for event in shown] == [1, 2, 3, 4]
    assert [event.value for event in shown] == pytest.approx(runs.logged(tmp_path / "out"))


def test_the_environment_is_put_back_and_the_users_words_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("WANDB_DIR", "mine")
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    with _environment({"WANDB_DIR": "ours", "WANDB_RUN_ID": "x"}):
        assert (os.environ["WANDB_DIR"], os.environ["WANDB_RUN_ID"]) == ("mine", "x")
    assert os.environ["WANDB_DIR"] == "mine"
    assert "WANDB_RUN_ID" not in os.environ


# ---- the report of a run that goes on ----------------------------------------------------------------------------


def test_the_report_is_drawn_while_the_run_goes_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refreshing, "SECONDS", 0.0)
    monkeypatch.setattr(refreshing, "SHARE", 1e9)
    trainer = runs.trainer("sft", tiny_model, tmp_path)
    page, record, seen = tmp_path / "out" / "report.html", trainer.record, []

    def look(step: int, logs: dict[str, Any]) -> None:
        record(step, logs)
        seen.append(page.exists() and "This run is still going on" in page.read_text(encoding="utf-8"))

    trainer.record = look
    trainer.train()
    assert seen == [False, True, True, True]
    assert "This run is still going on" not in page.read_text(encoding="utf-8")


def test_a_report_that_cannot_be_drawn_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(services, "warn", lambda run, sentence: told.append(sentence))
    now = [0.0]
    monkeypatch.setattr(refreshing.time, "monotonic", lambda: now[0])
    drawn: list[float] = []

    def draw(run: Any) -> None:
        drawn.append(now[0])
        now[0] += 2.0
        if len(drawn) == 2:
            raise KeyError("x")

    monkeypatch.setattr(refreshing, "_draw", draw)
    report = refreshing.LiveReport(types.SimpleNamespace())  # type: ignore[arg-type]
    for _ in range(1000):
        report.refresh()
        now[0] += 1.0
    assert drawn == [60.0, 262.0]  # two seconds are 1% of 200
    assert told == ["drawing report.html failed (KeyError: 'x'); the run goes on without it"]


def test_a_run_whose_report_cannot_be_drawn_is_finished(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: Any) -> None:
        raise KeyError("x")

    monkeypatch.setattr(refreshing, "_draw", fail)
    trainer = runs.trainer("sft", tiny_model, tmp_path, train={"max_steps": 1})
    trainer.train()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["status"] == "finished"
    assert "drawing report.html failed (KeyError: 'x'); the run goes on without it" in manifest["notes"]


def test_a_signal_while_the_report_is_drawn_leaves_the_run_finished(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(run: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(refreshing, "_draw", stop)
    trainer = runs.trainer("sft", tiny_model, tmp_path, train={"max_steps": 1})
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))
    assert (trainer.state.status, manifest["status"]) == ("finished", "finished")
    assert trainer.resume_hint == f"the run is finished, and its model is in {tmp_path / 'out'}"


def test_an_interrupt_is_not_survived() -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        survive(types.SimpleNamespace(), "it", stop)  # type: ignore[arg-type]
